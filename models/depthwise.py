"""Dilated depthwise convolutions, which the CPU kernels of PyTorch are slow at, made of dense ones."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DilatedDepthwiseConv(nn.Conv2d):
    """A depthwise convolution of stride 1 and dilation d that keeps the image's size.

    On the CPU the image is taken apart into the d x d images of every d-th pixel (space to batch), in which the kernel
    has no gaps, and kernel taps that meet padding alone are left out; the result is the same sum. Elsewhere, and
    where d is 1, it is PyTorch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        dilation = self.dilation[0]
        if x.device.type != 'cpu' or dilation == 1:
            return super().forward(x)
        batch, channels, height, width = x.shape
        reach = self.kernel_size[0] // 2
        used = min(reach, (max(height, width) - 1) // dilation)
        taps = slice(reach - used, reach + used + 1)
        x = F.pad(x, (0, -width % dilation, 0, -height % dilation))
        rows, columns = x.shape[-2] // dilation, x.shape[-1] // dilation
        x = x.view(batch, channels, rows, dilation, columns, dilation).permute(0, 3, 5, 2, 4, 1)
        x = x.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        x = F.conv2d(x, self.weight[:, :, taps, taps], self.bias, padding=used, groups=channels)
        x = x.permute(0, 2, 3, 1).reshape(batch, dilation, dilation, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, rows * dilation, columns * dilation, channels)
        return x[:, :height, :width].permute(0, 3, 1, 2)


def speed_up_depthwise(network: nn.Module) -> None:
    """Let the dilated depthwise convolutions of a network run as ``DilatedDepthwiseConv``; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels:
            same = {(d * (k // 2), d, k % 2) for d, k in zip(module.dilation, module.kernel_size, strict=True)}
            square = len(same) == 1 and module.kernel_size[0] == module.kernel_size[1]
            padding, dilation, odd = same.pop()
            if square and odd and dilation > 1 and module.stride == (1, 1) and module.padding == (padding, padding) \
                    and module.padding_mode == 'zeros':
                module.__class__ = DilatedDepthwiseConv
