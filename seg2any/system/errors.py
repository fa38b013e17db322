"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Bad input. The message is one line that names the file or flag, what is wrong with it, and the fix."""
