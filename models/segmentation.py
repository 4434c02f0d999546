"""The two networks of the method, the contrastive encoder and the linear segmentation model, and mean embeddings."""
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from models.backbones import build_backbone
from models.convolutions import speed_up

CHANNELS, RATES = 256, (12, 24, 36)  # of the decoder


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size), align_corners=False."""
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=False)


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm after global pooling, which also trains on one image.

    A single value a channel has no variance: such a batch is normalised with the running statistics and leaves them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class PyramidPooling(ASPP):
    """torchvision's, with one ReLU for all branches, in place, and global pooling repeated rather than resized.

    It keeps the memory order of the other branches, without which all would be copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in self.convs[:-1]]
        for branch in branches:
            if branch.requires_grad:  # of a concatenation it is a slice, for which BatchNorm is slow
                branch.register_hook(torch.clone)
        pooled = nn.Sequential.forward(self.convs[-1], x)  # type: ignore[arg-type]
        branches.append(torch.empty_like(branches[0]).copy_(pooled))
        return self.project(F.relu_(torch.cat(branches, 1)))


def build_decoder(kind: str, in_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """A decoder, (B, in_channels, h, w) -> (B, 256, h, w), with dropout at the end of the ASPP or 1x1 convolution.

    'deeplab' is that of the paper, whose rates suit an output stride of 8: torchvision's DeepLabHead without its
    classifier. 'conv1x1' is for features that have seen the whole image, such as those of a vision transformer.
    """
    if kind == 'conv1x1':
        plain = nn.Sequential(nn.Conv2d(in_channels, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
                              nn.Dropout(dropout))
        speed_up(plain)
        return plain
    decoder: Any = nn.Sequential(*list(DeepLabHead(in_channels, 1, RATES))[:-1])
    aspp = decoder[0]
    for branch in aspp.convs[1:4]:
        branch[0].reset_parameters()  # drawn twice, as in all versions: a seed keeps its weights
    aspp.__class__ = PyramidPooling
    for branch in aspp.convs:
        branch[-1] = nn.Identity()  # in place of its ReLU
    aspp.convs[4][2] = PooledBatchNorm(CHANNELS)
    aspp.project[3] = nn.Dropout(dropout)
    speed_up(decoder)
    return decoder


class ContrastiveSegmentationModel(nn.Module):
    """Backbone, decoder, embedding head and (optional) saliency head (paper, section 3.2 and 4.1).

    ``backbone`` and ``decoder`` are as of ``build_backbone`` and ``build_decoder``, ``ndim`` is the dimension of the
    pixel embedding; with ``upsample`` both outputs get the input's size, otherwise they stay at 1/stride of it.
    """

    def __init__(self, backbone: str = 'resnet50', ndim: int = 32, upsample: bool = True,
                 use_classification_head: bool = True, dropout: float = 0.5, decoder: str = 'deeplab') -> None:
        super().__init__()
        self.upsample = upsample
        self.backbone = build_backbone(backbone)
        self.decoder = build_decoder(decoder, self.backbone.out_channels, dropout)
        self.head = nn.Conv2d(CHANNELS, ndim, 1)
        self.classification_head = nn.Conv2d(CHANNELS, 1, 1, bias=False) if use_classification_head else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) -> embeddings (B, ndim, H, W), not normalised, and raw saliency scores (B, H, W) or None."""
        maps, size = self.maps(images), images.shape[-2:]
        embedding, scores = maps['embedding'], maps.get('saliency')
        if self.upsample:
            embedding, scores = resize(embedding, size), None if scores is None else resize(scores, size)
        return embedding, None if scores is None else scores.squeeze(1)

    @property
    def output_stride(self) -> int:
        """Input pixels a side of an output of ``forward``."""
        return 1 if self.upsample else self.backbone.stride

    def embed(self, images: Tensor) -> Tensor:
        """'embedding' of ``maps`` alone, for the key encoder, which needs no saliency."""
        return self.head(self.decoder(self.backbone(images)))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Maps at 1/stride: 'backbone' (B, C, h, w), 'embedding' (B, ndim, h, w), 'saliency' (B, 1, h, w)."""
        out = {'backbone': self.backbone(images)}
        features = self.decoder(out['backbone'])
        out['embedding'] = self.head(features)
        if self.classification_head is not None:
            out['saliency'] = self.classification_head(features)
        return out


class BackboneModel(nn.Module):
    """A plain backbone, for baselines without decoder and head (the MoCo row of the retrieval table)."""

    def __init__(self, backbone: str = 'resnet50') -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Maps at 1/stride: 'backbone' (B, C, h, w)."""
        return {'backbone': self.backbone(images)}


class LinearSegmentationModel(nn.Module):
    """Backbone, decoder and a 1x1 classifier on top: ``decoder.4`` (paper, section 4.2).

    ``num_classes`` counts the background. The classifier reads ``features``: 'decoder', or 'backbone' without decoder.
    """

    def __init__(self, backbone: str = 'resnet50', num_classes: int = 21, dropout: float = 0.5,
                 features: str = 'decoder', decoder: str = 'deeplab') -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        plain, channels = features == 'backbone', self.backbone.out_channels
        layers = [] if plain else list(build_decoder(decoder, channels, dropout).named_children())
        classifier = nn.Conv2d(channels if plain else CHANNELS, num_classes, 1)
        nn.init.normal_(classifier.weight, 0, 0.01)
        nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
        self.decoder = nn.Sequential(OrderedDict([*layers, ('4', classifier)]))

    @property
    def classifier(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.decoder[-1])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes, H, W)."""
        return resize(self.decoder(self.backbone(images)), images.shape[-2:])

    def freeze_all_but_classifier(self) -> None:
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)

    def network_parameters(self) -> list[nn.Parameter]:
        """The parameters below the classifier."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith('decoder.4.')]

    def set_train_mode(self, freeze_batchnorm: str) -> None:
        """Train mode, except for what ``freeze_batchnorm`` ('all', 'backbone', 'none') keeps in eval mode."""
        self.train(freeze_batchnorm != 'all')
        if freeze_batchnorm == 'backbone':
            self.backbone.eval()


class _NormalizeRows(torch.autograd.Function):
    """``F.normalize`` of P x D numbers in place, of which no second copy is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(1e-12)
        ctx.save_for_backward(rows.div_(lengths), lengths)
        ctx.mark_dirty(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        unit, lengths = ctx.saved_tensors
        return torch.addcmul(slope, unit, (unit * slope).sum(1, keepdim=True), value=-1).div_(lengths)


def pixel_embeddings(maps: Tensor, size: Sequence[int], pixels: Tensor) -> Tensor:
    """Unit vectors of some pixels of ``resize(maps, size)``, without the other pixels.

    Maps (B, D, h, w) and P flat indices into B x H x W, of which ``size`` is (H, W) -> (P, D). The bilinear resize is
    one of the width and then one of the height, for which two rows of each pixel are read.
    """
    (height, width), h = size, maps.shape[2]
    wide = resize(maps, (h, width)).permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * W) x D
    row, column = pixels // width, pixels % width
    image = row // height
    scale = h / height
    at = ((row % height).to(maps.dtype) * scale + (scale - 1) / 2).clamp_(0, h - 1)  # in rows of the map
    above = at.to(pixels.dtype).clamp_(max=max(0, h - 2))
    first = torch.add(column, torch.add(above, image, alpha=h), alpha=width)
    below = wide.index_select(0, first + width if h > 1 else first)
    rows = wide.index_select(0, first).lerp_(below, at.sub_(above)[:, None])
    del wide, below  # 32 numbers a pixel are not little
    return F.normalize(rows) if torch.compiler.is_compiling() else _NormalizeRows.apply(rows)


def mask_prototypes(pixels: Tensor, images: Tensor, count: int) -> Tensor:
    """Mean direction of the pixels of each mask (paper, section 3.2: z_M).

    Unit vectors (P, D) and the index of the image of each, 0..count-1 -> (count, D): their sums at unit length; zero
    for an image without pixels.
    """
    return F.normalize(pixels.new_zeros(count, pixels.shape[1]).index_add_(0, images, pixels), dim=1)


def weighted_prototypes(features: Tensor, weights: Tensor) -> Tensor:
    """Prototypes of upsampled features, without upsampling them.

    The bilinear resize is linear, so summing resized features with full-size weights equals summing
    the small features with the weights carried back through the resize's transpose.

    Features (B, D, h, w), not normalised per pixel, and the weight of each pixel (B, H, W), 0 outside the mask, or
    (B, O, H, W) for O masks an image -> (B, D) or (B, O, D): normalise(sum over pixels of weight * resized feature);
    zero where all weights are 0.
    """
    def resizing(small: int, large: int) -> Tensor:  # large x small
        return resize(torch.eye(small, dtype=features.dtype, device=features.device)[None, None], (large, small))[0, 0]

    rows, columns = map(resizing, features.shape[2:], weights.shape[-2:])  # H x h, W x w
    small = rows.T @ weights.to(features.dtype) @ columns  # B x (O x) h x w
    return F.normalize(torch.einsum('bdhw,b...hw->b...d', features, small), dim=-1)
