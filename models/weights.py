"""Weights of checkpoints, by the names of the released ones; nothing is ever loaded in part."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torchvision
from torch import Tensor, nn

from utils.checkpoint import load_checkpoint
from utils.errors import UserError, name_some

State = dict[str, Tensor]
HEADS = ('head.', 'classification_head.')
CLASSIFIER = 'decoder.4.'


@dataclass
class Weights:
    """A state dict without prefixes, and what it belongs to.

    kind: 'contrastive' (an encoder of pretraining), 'linear' (a linear segmentation model),
    'backbone' (a ResNet, or a network of timm) or 'basnet'.
    """
    kind: str
    state: State
    source: str


def _strip(state: State, prefix: str) -> State:
    return {name[len(prefix):]: value for name, value in state.items() if name.startswith(prefix)}


def identify(checkpoint: dict[str, Any], source: str, timm: bool = False) -> Weights:
    """Recognise a checkpoint by its names: pretraining, linear model, BASNet, MoCo or torchvision ResNet.

    Args:
        timm: names that are none of them are those of a plain backbone of timm, head included.

    Raises:
        UserError: the names are those of none of them.
    """
    state = checkpoint
    for key in ('model', 'state_dict'):
        if isinstance(state.get(key), dict):
            state = state[key]
    state = {name.removeprefix('module.'): value for name, value in state.items()
             if isinstance(name, str) and isinstance(value, Tensor)}
    if any(name.startswith('model_q.') for name in state):
        return Weights('contrastive', _strip(state, 'model_q.'), source)
    if any(name.startswith('encoder_q.') for name in state):
        return Weights('backbone', _without_fc(_strip(state, 'encoder_q.')), source)
    if 'inconv.weight' in state:
        return Weights('basnet', state, source)
    if CLASSIFIER + 'weight' in state:
        return Weights('linear', state, source)
    if 'head.weight' in state and any(name.startswith('backbone.') for name in state):
        return Weights('contrastive', state, source)
    if 'conv1.weight' in state:
        return Weights('backbone', _without_fc(state), source)
    if timm and state:
        return Weights('backbone', state, source)
    raise UserError(f'{source} is no checkpoint of this method, BASNet, MoCo or torchvision: its entries are '
                    f'{name_some(list(checkpoint)) or "none"}; give another file.')


def _without_fc(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith('fc.')}


def read_weights(path: Path, timm: bool = False) -> Weights:
    """Read and recognise a checkpoint file. Raises UserError as load_checkpoint and identify do."""
    return identify(load_checkpoint(path), str(path), timm)


def load_strict(module: nn.Module, weights: Weights,
                mend: str = 'check backbone and model_kwargs, or give the checkpoint of this architecture') -> None:
    """Load weights that must cover the module exactly.

    Args:
        mend: what the user can do about weights that do not.

    Raises:
        UserError: entries are missing, left over, or of another shape; the sentence lists them.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - weights.state.keys())
    unexpected = sorted(weights.state.keys() - own.keys())
    shapes = [f'{name} {tuple(weights.state[name].shape)} instead of {tuple(value.shape)}'
              for name, value in own.items()
              if name in weights.state and weights.state[name].shape != value.shape]
    problems = [f'{what}: {name_some(names)}' for what, names in
                (('missing', missing), ('unexpected', unexpected), ('other shape', shapes)) if names]
    if problems:
        raise UserError(f'{weights.source} does not fit this model ({"; ".join(problems)}); {mend}.')
    module.load_state_dict(weights.state)


def fingerprint(module: nn.Module) -> str:
    """A SHA-256 of the weights by name, equal for equal weights wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()


def imagenet_weights(backbone: str) -> Weights:
    """torchvision's ImageNet classification weights (version 1) without fc, downloaded once.

    Raises:
        UserError: the download failed.
    """
    weights = torchvision.models.get_model_weights(backbone)['IMAGENET1K_V1']
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, TimeoutError, RuntimeError, ConnectionError) as error:
        raise UserError(f'could not download the ImageNet weights of {backbone} ({error}); fetch {weights.url} '
                        'by hand and set pretraining to its path.') from error
    return Weights('backbone', _without_fc(dict(state)), f'torchvision {backbone} {weights.name}')
