"""Names of backbones, and the input that the weights of one want."""
from __future__ import annotations

from difflib import get_close_matches
from types import ModuleType
from typing import NamedTuple

from utils.run.errors import UserError

TIMM = 'timm/'


class Normalisation(NamedTuple):
    """(x - mean) / std of each channel of an RGB image with x in 0..1; another input range is in the two as well."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def require_timm() -> ModuleType:
    """The timm library, which is optional. Raises UserError when it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f'backbone: {TIMM}... needs the library timm ({error}); pip install timm') from error
    return timm


def timm_name(backbone: str) -> str | None:
    """'timm/NAME' -> NAME, checked; None for another backbone.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    if not backbone.startswith(TIMM):
        return None
    timm, name = require_timm(), backbone.removeprefix(TIMM)
    if not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_pretrained()]
        close = get_close_matches(name, known, 1)
        raise UserError(f'timm {timm.__version__} has no network {name}; '
                        + (f'did you mean {TIMM}{close[0]}?' if close else 'timm.list_models() lists its names.'))
    return name


def normalisation_of(backbone: str) -> Normalisation:
    """What the weights of a backbone want: as timm's config of them says, or ImageNet's. Errors as ``timm_name``."""
    name = timm_name(backbone)
    config = None if name is None else require_timm().models.get_pretrained_cfg(name)
    return IMAGENET if config is None else Normalisation(tuple(config.mean), tuple(config.std))
