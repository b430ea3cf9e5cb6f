"""Checkpoints: written beside and renamed, so that a kill at any moment leaves a whole one."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from diminuendo.errors import UserError


@contextmanager
def clear_on_full_disk(path: Path) -> Iterator[None]:
    """Turns "no space left" into one clear line; what was there before is untouched."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise UserError(
            f"no space left on the disk of {path.parent}: free some and continue with --resume; "
            "the last checkpoint is whole"
        ) from error


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; torch and safetensors report it in words of their own."""
    if error is None:
        return False
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = ("No space left on device", "StorageFull", "unexpected pos", "file write failed")
    return any(word in str(error) for word in words) or is_full(error.__context__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain data) so that `path` is always the old checkpoint or the new one."""
    beside = path.with_suffix(".tmp")
    with clear_on_full_disk(path):
        try:
            with beside.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None if there is none."""
    path.with_suffix(".tmp").unlink(missing_ok=True)  # left by a kill
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        raise UserError(f"--resume: {path} is damaged and cannot be read; start again with --overwrite") from error
    return state
