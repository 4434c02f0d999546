"""Checkpoints on disk: written whole or not at all, read as data and never as code."""
from __future__ import annotations

import logging
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import distributed
from utils.config import as_dict
from utils.errors import UserError

log = logging.getLogger(__name__)
PREFIX = 'module.'


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
        if 'GLOBAL' in str(error):
            raise UserError(f'checkpoint {path} is a pickle that holds code, not only tensors, and is not loaded; '
                            'ask its author for a plain state dict.') from error
        raise UserError(f'checkpoint {path} is truncated or no checkpoint; copy or download it again.') from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f'checkpoint {path} is truncated or no checkpoint; copy or download it again.') from error
    if not isinstance(state, dict):
        raise UserError(f'checkpoint {path} holds a {type(state).__name__}, not a dictionary of tensors; '
                        'save a state dict instead.')
    return state


def save_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, config: Mapping,
                  **more: Any) -> None:
    """Write what a training run needs to go on: weights, optimiser, finished epochs, random state, config.

    The entry 'model' has the names of the released checkpoints, each behind 'module.'.
    """
    if not distributed.is_main():
        return
    save_checkpoint({'model': {PREFIX + name: value for name, value in model.state_dict().items()},
                     'optimizer': optimizer.state_dict(), 'epoch': epoch, 'rng': torch.get_rng_state(),
                     'config': as_dict(config), **more}, path)


def resume_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Take a run up where ``save_training`` left it.

    Returns:
        the checkpoint's other entries; 'epoch' is the number of finished epochs, 0 without a checkpoint.

    Raises:
        UserError: the checkpoint cannot be read, or belongs to another model.
    """
    if not path.is_file():
        return {'epoch': 0}
    state = load_checkpoint(path)
    try:
        model.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.pop('model').items()})
        optimizer.load_state_dict(state.pop('optimizer'))
        torch.set_rng_state(state.pop('rng'))
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f'checkpoint {path} does not belong to this run ({str(error).splitlines()[0]}); '
                        'choose another output_dir or delete it.') from error
    log.info('Resuming after epoch %d from %s', state['epoch'], path)
    return state
