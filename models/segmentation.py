"""The two networks of the method: the contrastive encoder and the linear segmentation model."""
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from models.deeplab import CHANNELS, build_decoder
from models.resnet import DilatedResNet
from models.timm_backbone import TIMM, TimmBackbone


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size), align_corners=False."""
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=False)


def build_backbone(name: str) -> DilatedResNet | TimmBackbone:
    """A backbone with random weights: resnet18, resnet50 or timm/<name>.

    It has ``name``, ``out_channels``, ``stride`` (input pixels a side of a feature), ``stages()`` (parameters of the
    stem and of each stage), ``mean`` and ``std`` ((x - mean) / std of RGB in 0..1 is the input that its weights want).
    """
    return TimmBackbone(name) if name.startswith(TIMM) else DilatedResNet(name)


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

    def embed(self, images: Tensor) -> Tensor:
        """The embeddings of ``forward`` alone, for the key encoder, which needs no saliency."""
        embedding = self.head(self.decoder(self.backbone(images)))
        return resize(embedding, images.shape[-2:]) if self.upsample else embedding

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
