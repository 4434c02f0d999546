"""Checkpoints on disk: written whole or not at all, read as data and never as code."""
from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write to a temporary file beside ``path``, flush it to disk, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with ``weights_only=True``.

    Raises:
        UserError: the file is missing, truncated, no checkpoint, or a pickle with code in it.
    """
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist; give the path of a checkpoint file.')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if 'Unsupported' in str(error) or 'GLOBAL' in str(error):
            raise UserError(f'checkpoint {path} is a pickle that holds code, not only tensors, and is not loaded; '
                            'ask its author for a plain state dict.') from error
        raise UserError(f'checkpoint {path} is truncated or no checkpoint; copy or download it again.') from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f'checkpoint {path} is truncated or no checkpoint; copy or download it again.') from error
    if not isinstance(state, dict):
        raise UserError(f'checkpoint {path} holds a {type(state).__name__}, not a dictionary of tensors; '
                        'save a state dict instead.')
    return state
