"""Regional attention: settings, tokens, the rule, the pattern it gives, and the one attention call."""
