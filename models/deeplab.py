"""Decoders: what turns the features of a backbone into those that the heads read."""
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

CHANNELS, RATES = 256, (12, 24, 36)


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm after global pooling, which also trains on one image.

    A single value a channel has no variance: such a batch is normalised with the running statistics and leaves them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class DilatedConv2d(nn.Conv2d):
    """A 3x3 convolution padded by its dilation, without the taps that would read padding alone.

    Where the dilation is no smaller than the map, only the middle row or column of the kernel can meet the map.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (slice(None) if rate < size else slice(1, 2)
                         for rate, size in zip(self.dilation, x.shape[-2:], strict=True))
        weight = self.weight[:, :, rows, columns]
        padding = [rate * (length // 2) for rate, length in zip(self.dilation, weight.shape[-2:], strict=True)]
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation)


def build_decoder(kind: str, in_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """A decoder, (B, in_channels, h, w) -> (B, 256, h, w), with dropout at the end of the ASPP or 1x1 convolution.

    'deeplab' is that of the paper, whose rates suit an output stride of 8: torchvision's DeepLabHead without its
    classifier. 'conv1x1' is for features that have seen the whole image, such as those of a vision transformer.
    """
    if kind == 'conv1x1':
        return nn.Sequential(nn.Conv2d(in_channels, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
                             nn.Dropout(dropout))
    decoder: Any = nn.Sequential(*list(DeepLabHead(in_channels, 1, RATES))[:-1])
    aspp = decoder[0]
    for branch, rate in zip(aspp.convs[1:4], RATES, strict=True):
        branch[0] = DilatedConv2d(in_channels, CHANNELS, 3, padding=rate, dilation=rate, bias=False)
    aspp.convs[4][2] = PooledBatchNorm(CHANNELS)
    aspp.project[3] = nn.Dropout(dropout)
    return decoder
