"""The DeepLab-v3 decoder, under torchvision's names."""
from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

CHANNELS = 256


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm after global pooling, which also trains on one image.

    A single value a channel has no variance to normalise by, so such a batch is normalised with the
    running statistics and leaves them as they are. Everything else is nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class DilatedConv2d(nn.Conv2d):
    """A 3x3 convolution padded by its dilation, without the taps that would read padding alone.

    Where the dilation is no smaller than the map, only the middle row or column of the kernel can
    meet the map: leaving out the others changes nothing but the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (slice(None) if rate < size else slice(1, 2)
                         for rate, size in zip(self.dilation, x.shape[-2:], strict=True))
        weight = self.weight[:, :, rows, columns]
        padding = [rate * (length // 2) for rate, length in zip(self.dilation, weight.shape[-2:], strict=True)]
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation)


def deeplab_decoder(in_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """ASPP (rates 12, 24, 36) and a 3x3 convolution: torchvision's DeepLabHead without its classifier.

    Args:
        in_channels: channels of the backbone.
        dropout: probability of the dropout that ends the ASPP.

    Shapes: (B, in_channels, h, w) -> (B, 256, h, w).
    """
    aspp, conv, bn, relu, _ = DeepLabHead(in_channels, 1, atrous_rates=(12, 24, 36))
    assert isinstance(aspp, nn.Module)
    for branch in aspp.get_submodule('convs').children():
        assert isinstance(branch, nn.Sequential)
        if isinstance(branch[0], nn.Conv2d) and branch[0].dilation != (1, 1):
            rate = branch[0].dilation[0]
            branch[0] = DilatedConv2d(in_channels, CHANNELS, 3, padding=rate, dilation=rate, bias=False)
    pooling = aspp.get_submodule('convs.4')
    assert isinstance(pooling, nn.Sequential)
    pooling[2] = PooledBatchNorm(CHANNELS)
    project = aspp.get_submodule('project')
    assert isinstance(project, nn.Sequential)
    project[3] = nn.Dropout(dropout)
    return nn.Sequential(aspp, conv, bn, relu)
