"""Regional attention: settings, tokens, the rule, its pattern, and the one attention call."""
