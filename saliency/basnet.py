"""BASNet, a salient-object network that predicts coarsely and then refines; the masks of a trained one; its training.

Qin, Zhang, Huang, Gao, Dehghan and Jagersand, "BASNet: Boundary-Aware Salient Object Detection", CVPR 2019.
Names and shapes of the state dict are those of the released checkpoint.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet34
from torchvision.models.resnet import BasicBlock

from data.transforms import Sample, uniform
from models.backbones import IMAGENET
from models.segmentation import resize
from models.weights import Weights, load_strict, read_weights
from saliency.sources import image_map, network_input, resize_by_area
from utils.run.devices import Precision, pin, tf32, to_device, to_float32

SIZE = 256  # side of the input, as published
LEVELS = {6: (1024, 512, 512), 5: (1024, 512, 512), 4: (1024, 512, 256),  # decoder stage: channels read,
          3: (512, 256, 128), 2: (256, 128, 64), 1: (128, 64, 64)}        # channels inside, channels handed on
SSIM_WINDOW, SSIM_SIGMA, SSIM_CONSTANTS = 11, 1.5, (0.01 ** 2, 0.03 ** 2)


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

    def __init__(self) -> None:
        super().__init__()
        channels = 64
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

    def __init__(self, network: BASNet, device: torch.device, size: int = SIZE, tf32: bool = False,
                 precision: str = 'fp32') -> None:
        self.network, self.device, self.size, self.tf32 = network, device, size, tf32
        self.autocast = Precision(device, precision).autocast

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1; the network is in eval mode then."""
        self.network.eval()
        batch = np.stack([network_input(image, (self.size, self.size), *IMAGENET) for image in images])
        with tf32(self.tf32), self.autocast():
            scores = self.network(to_device(pin(torch.from_numpy(batch), self.device), self.device))[0]
        maps = torch.sigmoid(to_float32(scores))[:, 0].cpu().numpy()  # N x size x size
        return [image_map(saliency, image) for saliency, image in zip(maps, images, strict=True)]


class TrainingView:
    """Resize to ``size`` x ``size`` pixels, random crop, horizontal flip (section 4.2).

    A sample's 'image' (H, W, 3) uint8 becomes (3, crop, crop) float32, normalised as for prediction; its 'sal'
    (H, W) in {0, 1} becomes (1, crop, crop) float32, the share of each pixel that is object.
    """

    def __init__(self, size: int = 256, crop: int = 224, flip_probability: float = 0.5) -> None:
        self.size, self.crop, self.flip_probability = size, crop, flip_probability

    def __call__(self, sample: Sample) -> Sample:
        size = (self.size, self.size)
        image = network_input(sample['image'], size, *IMAGENET)
        mask = resize_by_area(sample['sal'].astype(np.float32), size)
        top, left = (int(torch.randint(self.size - self.crop + 1, ())) for _ in range(2))
        rows, columns = slice(top, top + self.crop), slice(left, left + self.crop)
        image, mask = image[:, rows, columns], mask[None, rows, columns]
        if uniform(0, 1) < self.flip_probability:
            image, mask = image[..., ::-1], mask[..., ::-1]
        return {'id': sample['id'], 'image': torch.from_numpy(image.copy()), 'sal': torch.from_numpy(mask.copy())}


def load_initial_weights(network: nn.Module, weights: Weights) -> None:
    """Load a BASNet, or its stages from a ResNet-34, whose stem is another. Raises UserError for other weights."""
    if weights.kind == 'backbone':
        network = nn.ModuleDict({f'layer{n}': network.get_submodule(f'encoder{n}') for n in (1, 2, 3, 4)})
        weights = weights.without('conv1.', 'bn1.')
    load_strict(network, weights, 'set pretraining to the checkpoint of a ResNet-34 or a BASNet')


class _Blur(torch.autograd.Function):
    """Local means of maps (N, C, H, W): Gaussian window, zero padding.

    Without TF32, as is its gradient: the window is symmetric, so that this is the blur of the gradient of the means.
    """

    @staticmethod
    @tf32(False)  # variances are small differences
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        distance = torch.arange(SSIM_WINDOW, dtype=maps.dtype, device=maps.device) - SSIM_WINDOW // 2
        window = torch.exp(-distance ** 2 / (2 * SSIM_SIGMA ** 2))
        window = window / window.sum()
        kernel = torch.outer(window, window).expand(maps.shape[1], 1, -1, -1)  # C x 1 x 11 x 11
        return F.conv2d(maps, kernel, padding=SSIM_WINDOW // 2, groups=maps.shape[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _Blur.apply(slope)


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al., 2004) of maps (N, 1, H, W) in 0..1; Gaussian window, zero padding."""
    local = _Blur.apply(torch.cat([pred, target, pred * pred, target * target, pred * target], dim=1))
    mean_p, mean_t, pp, tt, pt = local.unbind(dim=1)  # each N x H x W
    var_p, var_t, cov = pp - mean_p ** 2, tt - mean_t ** 2, pt - mean_p * mean_t
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_p * mean_t + c1) * (2 * cov + c2)
    return (similarity / ((mean_p ** 2 + mean_t ** 2 + c1) * (var_p + var_t + c2))).mean()


def soft_iou(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over images of the IoU of maps (N, 1, H, W) in 0..1; of two empty maps it is 1."""
    intersection = (pred * target).flatten(1).sum(dim=1)
    union = (pred + target).flatten(1).sum(dim=1) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-12), torch.ones_like(union)).mean()


def hybrid_loss(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """BCE, 1 - SSIM and 1 - soft IoU (section 3.4) of raw scores (N, 1, H, W) and masks in 0..1 of the same dtype."""
    pred = torch.sigmoid(score)
    return F.binary_cross_entropy_with_logits(score, target), 1 - ssim(pred, target), 1 - soft_iou(pred, target)


def basnet_loss(scores: Sequence[Tensor], target: Tensor) -> Tensor:
    """Sum of the hybrid loss over all outputs of the network, with equal weight."""
    return torch.stack([torch.stack(hybrid_loss(score, target)).sum() for score in scores]).sum()


def compute_losses(network: nn.Module, batch: dict[str, Any], precision: Precision) -> dict[str, Tensor]:
    """The 'loss' of one batch of views, in float32."""
    with precision.autocast():
        scores = network(precision.to_device(batch['image']))  # eight, each B x 1 x crop x crop
    return {'loss': basnet_loss([to_float32(score) for score in scores], precision.to_device(batch['sal']))}


