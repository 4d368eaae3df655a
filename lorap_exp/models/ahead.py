"""Reading a checkpoint before it is needed: the system fills its page cache while a job works."""

import os

from lorap_exp.errors import LorapError
from lorap_exp.models.headers import weight_files
from lorap_exp.models.origin import local_folder
from lorap_exp.schema.inputs import ModelConfig


def read_ahead(model: ModelConfig) -> int:
    """Ask for the weight files of a model in a folder; returns at once, with the bytes asked for.

    Nothing is asked for a random or a hub model, or where the system has no such call (Linux has).
    A folder without weights is left to the job that needs them, which says so.
    """
    folder = local_folder(model)
    if folder is None or not hasattr(os, "posix_fadvise"):
        return 0
    try:
        files = weight_files(folder)
    except LorapError:
        return 0
    asked = 0
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        asked += file.stat().st_size
    return asked
