"""The one exception a user is meant to read: one sentence, shown without a traceback."""


class LorapError(Exception):
    """Bad input or a run that cannot go on; the message names the setting and what is allowed."""
