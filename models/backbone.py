"""From a name to a backbone."""
from models.resnet import DilatedResNet
from models.timm_backbone import TIMM, TimmBackbone

Backbone = DilatedResNet | TimmBackbone


def build_backbone(name: str) -> Backbone:
    """A backbone with random weights: resnet18, resnet50 or timm/<name>.

    It has ``name``, ``out_channels``, ``stride`` (input pixels a side of a feature), ``stages()`` (parameters of the
    stem and of each stage), ``mean`` and ``std`` ((x - mean) / std of RGB in 0..1 is the input that its weights want).
    """
    return TimmBackbone(name) if name.startswith(TIMM) else DilatedResNet(name)
