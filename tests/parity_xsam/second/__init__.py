"""A second set of cases of X-SAM, computed from the published rules in the plainest way, without seg2any.

What the stock modules of transformers compute in the published networks too, they compute here: one picture, one
conversation and one row at a time, in float64. All else is written out with loops.
"""
