"""Decoders: what turns the features of a backbone into those that the heads read."""
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

CHANNELS = 256


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


def deeplab_decoder(in_channels: int, dropout: float = 0.5) -> nn.Sequential:
    """ASPP (rates 12, 24, 36) and a 3x3 convolution: torchvision's DeepLabHead without its classifier."""
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
