"""BASNet, a salient-object network: predict coarsely, then refine.

Qin, Zhang, Huang, Gao, Dehghan and Jagersand, "BASNet: Boundary-Aware Salient Object Detection",
CVPR 2019. Names and shapes of the state dict are those of the released checkpoint.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet34
from torchvision.models.resnet import BasicBlock

LEVELS = {6: (1024, 512, 512), 5: (1024, 512, 512), 4: (1024, 512, 256),  # decoder stage: channels read,
          3: (512, 256, 128), 2: (256, 128, 64), 1: (128, 64, 64)}        # channels inside, channels handed on


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize of ``x`` (N, C, h, w) to the height and width of ``like``."""
    return F.interpolate(x, size=like.shape[-2:], mode='bilinear', align_corners=False)


def conv3x3(channels: int, out: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation)


class RefUNet(nn.Module):
    """The residual refinement module: a small U-Net that corrects a raw saliency score."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv0 = conv3x3(1, channels)
        for name in ('1', '2', '3', '4', '5', '_d4', '_d3', '_d2', '_d1'):
            self.add_module(f'conv{name}', conv3x3(2 * channels if 'd' in name else channels, channels))
            self.add_module(f'bn{name}', nn.BatchNorm2d(channels))
        self.conv_d0 = conv3x3(channels, 1)

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f'bn{name}')(self.get_submodule(f'conv{name}')(x)))

    def forward(self, score: Tensor) -> Tensor:
        """(N, 1, H, W) raw score -> (N, 1, H, W) refined raw score."""
        levels, x = [], self.conv0(score)
        for n in range(1, 5):
            levels.append(self._layer(f'{n}', x))
            x = F.max_pool2d(levels[-1], 2, ceil_mode=True)
        x = self._layer('5', x)
        for n in range(4, 0, -1):
            x = self._layer(f'_d{n}', torch.cat([resize(x, levels[n - 1]), levels[n - 1]], dim=1))
        return score + self.conv_d0(x)


class BASNet(nn.Module):
    """The whole network: encoder, dilated bridge, decoder with deep supervision, refinement."""

    def __init__(self) -> None:
        super().__init__()
        self.inconv, self.inbn = conv3x3(3, 64), nn.BatchNorm2d(64)
        stages = resnet34(weights=None)
        self.encoder1, self.encoder2 = stages.layer1, stages.layer2
        self.encoder3, self.encoder4 = stages.layer3, stages.layer4
        for name in ('resb5_1', 'resb5_2', 'resb5_3', 'resb6_1', 'resb6_2', 'resb6_3'):
            self.add_module(name, BasicBlock(512, 512))
        for name in ('bg_1', 'bg_m', 'bg_2'):
            self._add_layer(name, 512, 512, dilation=2)
        self.outconvb = conv3x3(512, 1)
        for n, (channels, inside, out) in LEVELS.items():
            self._add_layer(f'{n}d_1', channels, inside)
            self._add_layer(f'{n}d_m', inside, inside, dilation=2 if n == 6 else 1)
            self._add_layer(f'{n}d_2', inside, out, dilation=2 if n == 6 else 1)
            self.add_module(f'outconv{n}', conv3x3(out, 1))
        self.refunet = RefUNet()

    def _add_layer(self, name: str, channels: int, out: int, dilation: int = 1) -> None:
        self.add_module(f'conv{name}', conv3x3(channels, out, dilation))
        self.add_module(f'bn{name}', nn.BatchNorm2d(out))

    def _stage(self, name: str, x: Tensor) -> Tensor:
        """The three conv-BN-ReLU layers name_1, name_m, name_2."""
        for part in ('1', 'm', '2'):
            x = F.relu(self.get_submodule(f'bn{name}_{part}')(self.get_submodule(f'conv{name}_{part}')(x)))
        return x

    def forward(self, images: Tensor) -> list[Tensor]:
        """Score every pixel.

        Args:
            images: (N, 3, H, W), normalised with the ImageNet mean and standard deviation.

        Returns:
            Eight raw scores (N, 1, H, W), before the sigmoid: refined, side 1..6, bridge.
        """
        levels = [self.encoder1(F.relu(self.inbn(self.inconv(images))))]     # levels[0]: N x 64 x H x W
        for encoder in (self.encoder2, self.encoder3, self.encoder4):
            levels.append(encoder(levels[-1]))                               # levels[3]: N x 512 x H/8 x W/8
        for n in (5, 6):
            x = F.max_pool2d(levels[-1], 2, ceil_mode=True)
            for part in (1, 2, 3):
                x = self.get_submodule(f'resb{n}_{part}')(x)
            levels.append(x)                                                 # levels[5]: N x 512 x H/32 x W/32
        x = self._stage('bg', levels[-1])
        scores = [resize(self.outconvb(x), images)]
        for n in LEVELS:
            x = self._stage(f'{n}d', torch.cat([resize(x, levels[n - 1]), levels[n - 1]], dim=1))
            scores.insert(0, resize(self.get_submodule(f'outconv{n}')(x), images))
        return [self.refunet(scores[0]), *scores]
