"""The flow models that can be asked for a velocity, and the protocol that they share."""
