"""Regional attention: settings, tokens, the rule, its pattern over a batch, and the one attention call."""
