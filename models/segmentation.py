"""The two networks of the method: the contrastive encoder and the linear segmentation model."""
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbone import build_backbone
from models.deeplab import CHANNELS, build_decoder


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size), align_corners=False."""
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=False)


class ContrastiveSegmentationModel(nn.Module):
    """Backbone, decoder, embedding head and (optional) saliency head (paper, section 3.2 and 4.1).

    Args:
        backbone, decoder: see ``build_backbone`` and ``build_decoder``.
        ndim: dimension of the pixel embedding.
        upsample: resize both outputs to the input size; otherwise they stay at 1/stride of it.
        use_classification_head: add the 1x1 convolution that predicts saliency.
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
        features = self.decoder(self.backbone(images))
        embedding = self.head(features)
        scores = None if self.classification_head is None else self.classification_head(features)
        if self.upsample:
            embedding = resize(embedding, images.shape[-2:])
            scores = None if scores is None else resize(scores, images.shape[-2:])
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

    Args:
        num_classes: number of classes, background included.
        features: what the classifier reads, 'decoder', or 'backbone' for a network without decoder.
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
        classifier = self.decoder[-1]
        assert isinstance(classifier, nn.Conv2d)
        return classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes, H, W)."""
        return resize(self.decoder(self.backbone(images)), images.shape[-2:])

    def freeze_all_but_classifier(self) -> None:
        """Only the classifier keeps its gradient."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)

    def network_parameters(self) -> list[nn.Parameter]:
        """The parameters below the classifier."""
        own = set(self.classifier.parameters())
        return [parameter for parameter in self.parameters() if parameter not in own]

    def set_train_mode(self, freeze_batchnorm: str) -> None:
        """Train mode, except for what ``freeze_batchnorm`` ('all', 'backbone', 'none') keeps in eval mode."""
        self.train(freeze_batchnorm != 'all')
        if freeze_batchnorm == 'backbone':
            self.backbone.eval()
