"""What a user reads when something fails: one sentence, with what to do about it."""

import errno
from pathlib import Path

from hydra.errors import OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from lorap_exp.errors import LorapError, one_line
from lorap_exp.workspace.memory import causes, disk_full, out_of_memory

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def sentence(error: BaseException, folder: Path | None = None) -> str | None:
    """The sentence for a failure of the machine or of what was typed; None for any other error."""
    for one in causes(error):
        if isinstance(one, LorapError):
            return str(one)
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' cannot be read: {one_line(error)} (quote the value)"
    if isinstance(error, OmegaConfBaseException):
        return one_line(error)
    return _of_machine(error, f" of '{folder}'" if folder is not None else "")


def _of_machine(error: BaseException, where: str) -> str | None:
    goes_on = f"then the same command goes on from here: {one_line(error)}"
    if disk_full(error):
        return f"the disk{where} is full; free some space, {goes_on}"
    if out_of_memory(error):
        return f"memory is exhausted; free some, use a 16 bit dtype or smaller batches, {goes_on}"
    if isinstance(error, OSError):
        said = "cannot be written" if error.errno in READ_ONLY else "cannot be used"
        what = f"'{error.filename}'" if error.filename else f"a file{where}"
        return f"output_root, store.folder or a file in them {said}: {what}: {one_line(error)}"
    return None
