"""Checkpoints on disk: read as data and never as code, with all that a run needs to go on."""
import errno
import io
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.config.load import as_dict
from utils.run import distributed
from utils.run.devices import on_cpu, random_states, restore_random_states
from utils.run.errors import CANNOT_WRITE, UserError, cannot_read, name_some
from utils.run.files import whole_file

log = logging.getLogger(__name__)
PREFIX = 'module.'
# what a NumPy number is pickled as (by NumPy 1 under another name): data too, such as a best figure beside the weights
SCALAR = np.float64(0).__reduce__()[0]
NUMPY_SCALARS = [SCALAR, (SCALAR, 'numpy.core.multiarray.scalar'), np.dtype,
                 *{type(np.dtype(code)) for code in '?bhilqBHILQefd'}]


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all. Raises UserError if the disk is full or refuses; the old one stays."""
    buffer = io.BytesIO()  # torch.save into a file would hide that the disk is full behind another error
    torch.save(on_cpu(state), buffer)
    try:
        with whole_file(path, lasting=True) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise UserError(f'cannot write checkpoint {path} ({error.strerror}; {last_good(path)}); free some space or '
                        'allow writing there, and rerun.') from error


def last_good(path: Path) -> str:
    return f'{path} is the last good checkpoint' if path.is_file() else 'there is no checkpoint yet'


def load_checkpoint(path: Path, damaged: str = 'copy or download it again') -> dict[str, Any]:
    """Read a checkpoint onto the CPU with ``weights_only=True``; ``damaged`` says what to do about a damaged one.

    Raises UserError for a file that is missing, unreadable, truncated, no checkpoint, or a pickle with code in it.
    """
    if not path.is_file():
        raise UserError(f'checkpoint {path} does not exist; give the path of a checkpoint file.')
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_SCALARS):
            warnings.simplefilter('ignore')  # of files that are refused below, in one sentence
            state = torch.load(path, map_location='cpu', weights_only=True)
    except PermissionError as error:
        raise cannot_read(path) from error
    except (pickle.UnpicklingError, EOFError, RuntimeError, zipfile.BadZipFile, LookupError, ValueError,
            OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek to before an archive that was cut
            raise
        with path.open('rb') as file:  # a pickle that is no archive
            whole_pickle = isinstance(error, pickle.UnpicklingError) and file.read(1) == b'\x80'
        if whole_pickle or re.search('GLOBAL|TorchScript', str(error)):
            raise UserError(f'checkpoint {path} is a pickle that holds code or other objects, not only tensors, and is '
                            'not loaded; ask its author for a plain state dict.') from error
        raise UserError(f'checkpoint {path} is truncated or no checkpoint; {damaged}.') from error
    if not isinstance(state, dict):
        raise UserError(f'checkpoint {path} holds a {type(state).__name__}, no dictionary; save a state dict instead.')
    return state


def save_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping,
                  **progress: Any) -> None:
    """Write what a training run needs to go on, bit for bit on a CPU. All processes call it; the main one writes.

    'model' has the names of the released checkpoints, each behind 'module.'; 'rng' the random states by rank (all are
    PyTorch's). Raises UserError for a weight that is not finite, or as ``save_checkpoint``; the old checkpoint stays.
    """
    weights = model.state_dict()
    states = distributed.gather_objects(random_states(next(iter(weights.values())).device))
    if not distributed.is_main():
        return
    state = on_cpu({'model': {PREFIX + name: value for name, value in weights.items()},
                    'optimizer': optimizer.state_dict(), 'rng': states, 'config': as_dict(config), **progress})
    if not torch.stack([value.isfinite().all() for value in state['model'].values()]).all():
        raise UserError(f'weights are no longer finite, and are not saved; {last_good(path)}: lower '
                        'optimizer_kwargs.lr in another output_dir.')
    save_checkpoint(state, path)


def resume_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer,
                    ids: Sequence[str]) -> dict[str, Any]:
    """Take a run up where ``save_training`` left it, if it did; the checkpoint's other entries.

    Raises UserError for one that cannot be read, is of the published code, other images or another model, or diverged.
    """
    if not path.is_file():
        return {}
    state = load_checkpoint(path, 'restore it, or move it away to start from the beginning')
    if 'model' in state and 'rng' not in state:
        raise UserError(f'{path} is of the published code and cannot be resumed (it holds no random states and no list '
                        'of images): move it to another folder and start from it with pretraining: PATH.')
    if (before := list(state.get('ids', ids))) != list(ids):
        gone, more = sorted({*before} - {*ids}), sorted({*ids} - {*before})
        changes = [f'lacks {len(gone)} of {len(before)} IDs ({name_some(gone)})'] * bool(gone)
        changes += [f'has {len(more)} more ({name_some(more)})'] * bool(more)
        raise UserError(f'the list of training images has changed since the run of {path} was started: it '
                        f'{" and ".join(changes) or "has the same IDs in another order"}; restore it, or choose '
                        'another output_dir.')
    try:
        require_finite(state['model'], path)
        model.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.pop('model').items()})
        optimizer.load_state_dict(state.pop('optimizer'))
        random = state.pop('rng')
        if len(random) == distributed.world_size():
            restore_random_states(random[distributed.rank()], next(iter(model.state_dict().values())).device)
        else:
            log.warning('The checkpoint is of %d processes and this run has %d: it goes on, with other random numbers, '
                        'and in each another share of the batch, within which it contrasts and normalises',
                        len(random), distributed.world_size())
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f'checkpoint {path} does not belong to this run ({str(error).splitlines()[0]}); '
                        'choose another output_dir or delete it.') from error
    return state


def read_arrays(path: Path, names: Sequence[str], damaged: str) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, as data and never as code.

    Raises UserError, the path and ``damaged``, for a file that is missing or cut, and for numbers that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{path} {damaged}') from error
    require_finite({name: array for name, array in arrays.items() if array.dtype.kind == 'f'}, path, 'values')
    return arrays


def require_finite(arrays: Mapping[str, Tensor | np.ndarray], source: Path | str, what: str = 'weights') -> None:
    """Raise UserError, which names them, for arrays of a file with values that are infinite or not a number."""
    if wrong := [name for name, value in arrays.items() if not torch.as_tensor(value).isfinite().all()]:
        raise UserError(f'{source} holds {what} that are not finite ({name_some(wrong)}): its training diverged, or '
                        'the file is damaged; give another one.')
