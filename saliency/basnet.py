"""BASNet, a salient-object network that predicts coarsely and then refines, and the masks of a trained one.

Qin, Zhang, Huang, Gao, Dehghan and Jagersand, "BASNet: Boundary-Aware Salient Object Detection", CVPR 2019.
Names and shapes of the state dict are those of the released checkpoint.
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet34
from torchvision.models.resnet import BasicBlock

from models.backbones import IMAGENET
from models.segmentation import resize
from models.weights import load_strict, read_weights
from saliency.maps import image_map, network_input
from utils.run.devices import pin, tf32, to_device

SIZE = 256  # side of the input, as published
LEVELS = {6: (1024, 512, 512), 5: (1024, 512, 512), 4: (1024, 512, 256),  # decoder stage: channels read,
          3: (512, 256, 128), 2: (256, 128, 64), 1: (128, 64, 64)}        # channels inside, channels handed on


def join(x: Tensor, level: Tensor) -> Tensor:
    """``x`` at the size of a level of the encoder, in front of its channels."""
    return torch.cat([resize(x, level.shape[-2:]), level], dim=1)


def halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def conv3x3(channels: int, out: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation)


class Layers(nn.Module):
    """Layers of a 3x3 convolution, BatchNorm and ReLU, under the names conv<name> and bn<name>."""

    def add_layer(self, name: str, channels: int, out: int, dilation: int = 1) -> None:
        self.add_module(f'conv{name}', conv3x3(channels, out, dilation))
        self.add_module(f'bn{name}', nn.BatchNorm2d(out))

    def layer(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f'bn{name}')(self.get_submodule(f'conv{name}')(x)))

    def stage(self, name: str, x: Tensor) -> Tensor:
        for part in ('1', 'm', '2'):
            x = self.layer(f'{name}_{part}', x)
        return x


class RefUNet(Layers):
    """The residual refinement module: a small U-Net that corrects a raw saliency score (N, 1, H, W)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv0 = conv3x3(1, channels)
        for name in ('1', '2', '3', '4', '5', '_d4', '_d3', '_d2', '_d1'):
            self.add_layer(name, 2 * channels if 'd' in name else channels, channels)
        self.conv_d0 = conv3x3(channels, 1)

    def forward(self, score: Tensor) -> Tensor:
        levels, x = [], self.conv0(score)
        for name in ('1', '2', '3', '4'):
            levels.append(self.layer(name, x))
            x = halve(levels[-1])
        x = self.layer('5', x)
        for name, level in zip(('_d4', '_d3', '_d2', '_d1'), reversed(levels), strict=True):
            x = self.layer(name, join(x, level))
        return score + self.conv_d0(x)


class BASNet(Layers):
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
            self.add_layer(name, 512, 512, dilation=2)
        self.outconvb = conv3x3(512, 1)
        for n, (channels, inside, out) in LEVELS.items():
            self.add_layer(f'{n}d_1', channels, inside)
            self.add_layer(f'{n}d_m', inside, inside, dilation=2 if n == 6 else 1)
            self.add_layer(f'{n}d_2', inside, out, dilation=2 if n == 6 else 1)
            self.add_module(f'outconv{n}', conv3x3(out, 1))
        self.refunet = RefUNet()

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), normalised as for ImageNet -> eight raw scores (N, 1, H, W): refined, side 1..6, bridge."""
        levels = [self.encoder1(F.relu(self.inbn(self.inconv(images))))]  # levels[0]: N x 64 x H x W
        for encoder in (self.encoder2, self.encoder3, self.encoder4):
            levels.append(encoder(levels[-1]))  # levels[3]: N x 512 x H/8 x W/8
        for n in (5, 6):
            x = halve(levels[-1])
            for part in (1, 2, 3):
                x = self.get_submodule(f'resb{n}_{part}')(x)
            levels.append(x)  # levels[5]: N x 512 x H/32 x W/32
        x, size = self.stage('bg', levels[-1]), images.shape[-2:]
        scores = [resize(self.outconvb(x), size)]
        for n in LEVELS:
            x = self.stage(f'{n}d', join(x, levels[n - 1]))
            scores.insert(0, resize(self.get_submodule(f'outconv{n}')(x), size))
        return [self.refunet(scores[0]), *scores]


def load_basnet(path: Path) -> BASNet:
    """A BASNet from the released state dict or a checkpoint of training. Raises UserError for any other file."""
    with torch.device('meta'):  # without spending time on random weights
        network = BASNet()
    network.to_empty(device='cpu')
    load_strict(network, read_weights(path), hint='give the checkpoint of a BASNet')
    return network


class BASNetSaliency:
    """A mask source around a BASNet on the device, which sees images resized to ``size`` x ``size`` pixels."""

    def __init__(self, network: BASNet, device: torch.device, size: int = SIZE, tf32: bool = False) -> None:
        self.network, self.device, self.size, self.tf32 = network, device, size, tf32

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1; the network is in eval mode then."""
        self.network.eval()
        batch = np.stack([network_input(image, (self.size, self.size), *IMAGENET) for image in images])
        with tf32(self.tf32):
            scores = self.network(to_device(pin(torch.from_numpy(batch), self.device), self.device))[0]
            maps = torch.sigmoid(scores)[:, 0].cpu().numpy()  # N x size x size
        return [image_map(saliency, image) for saliency, image in zip(maps, images, strict=True)]
