"""What turns the features of a backbone into those that the heads read."""
from __future__ import annotations

from torch import nn

from models.deeplab import CHANNELS, deeplab_decoder


def build_decoder(kind: str, in_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """A decoder of 256 channels, (B, in_channels, h, w) -> (B, 256, h, w).

    Args:
        kind: 'deeplab', that of the paper, whose rates suit an output stride of 8; or 'conv1x1', a 1x1 convolution with
            BatchNorm and ReLU, for features that have seen the whole image, such as those of a vision transformer.
        dropout: probability of the dropout, at the end of the ASPP or of the 1x1 convolution.
    """
    if kind == 'deeplab':
        return deeplab_decoder(in_channels, dropout)
    return nn.Sequential(nn.Conv2d(in_channels, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
                         nn.Dropout(dropout))
