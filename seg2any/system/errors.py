"""The exceptions whose messages are written for the user, and how such messages show values."""


class UserError(ValueError):
    """Bad input. The message is one line: the file or flag, what is wrong, and the fix."""


class Incomplete(Exception):
    """A run that has done all that it could; the message, one line for each, says what is missing and why."""


def shown(value: object, limit: int = 60) -> str:
    """Return `value` in ASCII, on one line of at most `limit` characters."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an int of over 4300 digits has no decimal form, a list may be too deep
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def brief(error: BaseException, limit: int = 100) -> str:
    """Return what an error says, on one line of at most `limit` characters, or its kind if it says nothing."""
    return shown(" ".join(str(error).split()) or type(error).__name__, limit)


def printable(text: str) -> str:
    """Return a line with the codes instead of characters that would steer a terminal or turn its text around."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
