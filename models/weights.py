"""Weights of checkpoints, by the names of the released ones; nothing is ever loaded in part."""
import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

from utils.run.checkpoint import load_checkpoint, require_finite
from utils.run.errors import CANNOT_WRITE, UserError, name_some

log = logging.getLogger(__name__)
State = dict[str, Tensor]
HEADS = ('head.', 'classification_head.')
CLASSIFIER = 'decoder.4.'
# a network that follows another one in a checkpoint -> the one that is meant where both are there
FOLLOWERS = {'model_k': 'model_q', 'encoder_k': 'encoder_q', 'momentum_encoder': 'base_encoder',
             'momentum_backbone': 'backbone', 'target_encoder': 'online_encoder', 'student': 'teacher'}
RESNET = ('conv1.weight', 'layer1.0.conv1.weight')  # what tells one
RESNET_HEADS = ('fc', 'head', 'classifier', 'mlp', 'projector', 'projection_head', 'predictor', 'prototypes')
DEPTH = 8  # of dictionaries within each other in a file


@dataclass
class Weights:
    """The networks of one kind in a file."""
    kind: str  # 'contrastive' (an encoder of pretraining), 'linear', 'backbone' (a ResNet or of timm) or 'basnet'
    readings: dict[str, State]  # what stands before a network's names in the file -> the rest; usually one
    source: str

    @property
    def state(self) -> State:
        """The only state dict. Raises UserError for a file that does not say which of several networks is meant."""
        if len(self.readings) > 1:
            shown = name_some([f'{prefix}*' for prefix in self.readings])
            raise UserError(f'{self.source} holds {len(self.readings)} networks that fit ({shown}), and nothing says '
                            'which one is meant; save one of them alone, as a state dict, and give that.')
        return next(iter(self.readings.values()))

    def without(self, *starts: str) -> 'Weights':
        """Without the entries whose names start so."""
        return replace(self, readings={prefix: {name: x for name, x in state.items() if not name.startswith(starts)}
                                       for prefix, state in self.readings.items()})


def _flatten(nested: Mapping, prefix: str = '', depth: int = 0) -> State:
    """All tensors of nested dictionaries by dotted name; those whose names are no text are left out."""
    flat: State = {}
    for name, value in nested.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            flat[prefix + name] = value
        elif isinstance(name, str) and isinstance(value, dict) and depth < DEPTH:
            flat |= _flatten(value, f'{prefix}{name}.', depth + 1)
    return flat


def _prefixes(names: Collection[str], *parts: str) -> list[str]:
    """What stands before all of these parts of dotted names, '' or 'a.b.', in the order of the file."""
    found = [dict.fromkeys(name[:f'.{name}'.find(f'.{part}')] for name in names if f'.{part}' in f'.{name}')
             for part in parts]
    return [prefix for prefix in found[0] if all(prefix in other for other in found)]


def leaders(prefixes: Collection[str]) -> list[str]:
    """Those of networks that follow none of the others, see FOLLOWERS."""
    every = {part for prefix in prefixes for part in prefix.split('.')}
    return [prefix for prefix in prefixes if not any(FOLLOWERS.get(part) in every for part in prefix.split('.'))]


def identify(checkpoint: Mapping[str, Any], source: str, timm: bool = False) -> Weights:
    """Recognise a checkpoint by its names, in whatever dictionaries and behind whatever prefix they stand.

    With ``timm`` other names are those of a plain backbone of timm, head included; else they are a UserError.
    """
    names = _flatten(checkpoint)
    for prefix in _prefixes(names, 'backbone.', 'head.0.convs.'):  # MaskDistill's decoder; head.weight is an embedding
        names = {re.sub(rf'^{re.escape(prefix)}head\.', f'{prefix}decoder.', name): x for name, x in names.items()}
    encoders = _prefixes(names, 'backbone.', 'decoder.')
    encoders += [f'{prefix}model_q.' for prefix in _prefixes(names, 'model_q.')]
    found = {'linear': [prefix for prefix in encoders if f'{prefix}{CLASSIFIER}weight' in names],
             'contrastive': encoders,
             'basnet': _prefixes(names, 'inconv.weight'),
             'backbone': _prefixes(names, *RESNET)}  # last, for it is a part of the first two
    for kind, prefixes in found.items():
        readings = {}
        for prefix in leaders(prefixes):
            left_out = [other for other in prefixes if len(other) > len(prefix)]  # networks further below
            left_out += [f'{prefix}{head}.' for head in RESNET_HEADS] if kind == 'backbone' else []
            readings[prefix] = {name[len(prefix):]: value for name, value in names.items()
                                if name.startswith(prefix) and not name.startswith(tuple(left_out))}
        if readings:
            return Weights(kind, readings, source)
    if timm and names:
        return Weights('backbone', {'': names}, source)
    raise UserError(f'{source} is no checkpoint of this method, BASNet, MoCo or torchvision: its tensors are '
                    f'{name_some(list(names)) or "none"}, where a ResNet has {", ".join(RESNET)}, ..., behind a '
                    'prefix or not; give another file.')


def read_weights(path: Path, timm: bool = False) -> Weights:
    """``identify`` a checkpoint file. Raises UserError as this and ``load_checkpoint`` do."""
    return identify(load_checkpoint(path), str(path), timm)


def load_strict(module: nn.Module, weights: Weights,
                hint: str = 'check backbone and model_kwargs, or give the checkpoint of this architecture') -> None:
    """Load weights of which exactly one reading covers the module with finite values. UserError lists what does not."""
    problems = {prefix: _misfits(module.state_dict(), state) for prefix, state in weights.readings.items()}
    fitting = {prefix: weights.readings[prefix] for prefix, found in problems.items() if not found}
    if not fitting:
        prefix, found = min(problems.items(), key=lambda item: len(item[1]))
        where = f', its entries {prefix}*,' if prefix else ''
        raise UserError(f'{weights.source}{where} does not fit this model ({"; ".join(found)}); {hint}.')
    prefix, state = next(iter(fitting)), replace(weights, readings=fitting).state
    require_finite({prefix + name: value for name, value in state.items()}, weights.source)
    if prefix:
        log.info('Of %s the entries %s* are taken', weights.source, prefix)
    module.load_state_dict(state)


def _misfits(own: State, state: State) -> list[str]:
    shapes = [f'{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}'
              for name, value in own.items() if name in state and state[name].shape != value.shape]
    return [f'{what}: {name_some(names)}' for what, names in (
        ('missing', sorted(own.keys() - state.keys())), ('unexpected', sorted(state.keys() - own.keys())),
        ('other shape', shapes)) if names]


def fingerprint(module: nn.Module) -> str:
    """A SHA-256 of the weights by name, equal for equal weights wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        digest.update(value.cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()


@contextmanager
def downloading(backbone: str, url: str) -> Iterator[None]:
    """Turn what goes wrong with a download into a UserError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:  # where it is kept, not where it comes from
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f'could not download the weights of {backbone} ({reason}); fetch {url} by hand and give '
                        'its path: pretraining, or --weights of saliency/predict.py.') from error


def imagenet_weights(backbone: str) -> Weights:
    """torchvision's ImageNet classification weights (version 1) without fc, downloaded once. Raises UserError."""
    weights = torchvision.models.get_model_weights(backbone)['IMAGENET1K_V1']
    with downloading(backbone, weights.url):
        state = weights.get_state_dict(progress=False, check_hash=True)
    return identify(state, f'torchvision {backbone} {weights.name}')
