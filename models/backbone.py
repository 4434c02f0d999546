"""From a name to a backbone."""
from __future__ import annotations

from models.backbones import TIMM
from models.resnet import DilatedResNet
from models.timm_backbone import TimmBackbone

Backbone = DilatedResNet | TimmBackbone


def build_backbone(name: str) -> Backbone:
    """A backbone with random weights: resnet18, resnet50 or timm/<name>.

    It has ``name``, ``out_channels``, ``stride`` (input pixels a side of a feature) and ``stages()`` (parameters of the
    stem and of each stage).

    Raises:
        UserError: timm is not installed, or has no such network that fits.
    """
    return TimmBackbone(name) if name.startswith(TIMM) else DilatedResNet(name)
