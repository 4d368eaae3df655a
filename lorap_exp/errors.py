"""The one exception a user is meant to read: one sentence, shown without a traceback."""

LONGEST = 300
"""Characters of another library's message that are shown."""


class LorapError(Exception):
    """Bad input or a run that cannot go on; the message names the setting and what is allowed."""


class Busy(LorapError):  # noqa: N818
    """Another process is running this very job, so there is nothing to do for it here."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Another library's whole message on one line, shortened where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
