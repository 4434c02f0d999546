"""ResNet backbones with output stride 8 under torchvision's names."""
from collections import OrderedDict

import torchvision
from torch import nn

from utils.run.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std of RGB in 0..1 that the weights want
STAGES = ('conv1', 'bn1'), ('layer1',), ('layer2',), ('layer3',), ('layer4',)  # from the stem on
FROZEN = 2  # stages, as published


class DilatedResNet(nn.Sequential):
    """torchvision's ResNet without pooling and fc, at output stride 8 (paper, section 4.1).

    The stride-2 convolutions of layer3 and layer4 take stride 1. Every 3x3 convolution of layer3 has dilation 2 and of
    layer4 dilation 4, except the one that lost its stride, which has half of it.
    (B, 3, H, W) normalised images -> (B, out_channels, ceil(H/8), ceil(W/8)).
    """

    stride = 8
    mean, std = IMAGENET

    def __init__(self, name: str) -> None:
        resnet = torchvision.models.get_model(name, weights=None)
        super().__init__(OrderedDict(
            (child, module) for child, module in resnet.named_children() if child not in ('avgpool', 'fc')))
        self.name = name
        self.out_channels: int = resnet.fc.in_features
        for stage, dilation in (('layer3', 2), ('layer4', 4)):
            for conv in self.get_submodule(stage).modules():
                if isinstance(conv, nn.Conv2d):
                    rate = dilation
                    if conv.stride == (2, 2):
                        conv.stride, rate = (1, 1), dilation // 2
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (rate, rate)

    def stages(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of each of the four stages."""
        return [[p for name in names for p in self.get_submodule(name).parameters()] for names in STAGES]


def freeze_layers(backbone: nn.Module, stages: int = FROZEN) -> None:
    """Freeze the stem and the first stages of a backbone; 0: the stem alone. Raises UserError if it has fewer."""
    groups = backbone.stages()  # type: ignore[operator]
    if stages >= len(groups):
        raise UserError(f'freeze_layers: {stages} is more than the {len(groups) - 1} stages of {backbone.name}; lower '
                        'it.')
    frozen = {parameter for group in groups[:stages + 1] for parameter in group}
    for parameter in frozen:
        parameter.requires_grad_(False)
    for module in backbone.modules():
        own = set(module.parameters())
        if own and own <= frozen:  # eval mode, which a later train() of the parent does not lift
            module.eval().train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
