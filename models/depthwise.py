"""Dilated depthwise convolutions, which PyTorch's CPU kernels are slow at, as a sum over the taps of the kernel."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 2 ** 19  # numbers at a time: what a core's cache holds of the input and the output


def _taps(kernel: int, dilation: int, height: int, width: int) -> Iterator[tuple[Any, Any, Any]]:
    """The taps that meet a map: (row, column) of each, where the outputs lie that read through it, and the inputs."""
    def spans(size: int) -> list[tuple[int, slice, slice]]:
        shifts = [(tap, (tap - kernel // 2) * dilation) for tap in range(kernel)]
        return [(tap, slice(max(0, -shift), size - max(0, shift)), slice(max(0, shift), size - max(0, -shift)))
                for tap, shift in shifts if abs(shift) < size]

    for row, out_rows, in_rows in spans(height):
        for column, out_columns, in_columns in spans(width):
            yield (row, column), (slice(None), out_rows, out_columns), (slice(None), in_rows, in_columns)


class _SumOverTaps(torch.autograd.Function):
    """x B x h x w x C, weight k x k x C -> B x h x w x C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.images = dilation, max(1, BLOCK // x.shape[1:].numel())
        y, taps = torch.zeros_like(x), list(_taps(len(weight), dilation, *x.shape[1:3]))
        for some, out in zip(x.split(ctx.images), y.split(ctx.images), strict=True):
            for tap, outputs, inputs in taps:
                out[outputs].addcmul_(some[inputs], weight[tap])
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
        taps = list(_taps(len(weight), ctx.dilation, *x.shape[1:3]))
        for some, part, grad in zip(*(t.split(ctx.images) for t in (x, slope.contiguous(), grad_x)), strict=True):
            for tap, outputs, inputs in taps:
                grad[inputs].addcmul_(part[outputs], weight[tap])
                grad_weight[tap] += (some[inputs] * part[outputs]).sum((0, 1, 2))
        return grad_x, grad_weight, None


class DilatedDepthwiseConv(nn.Conv2d):
    """A depthwise convolution of stride 1 and dilation above 1 that keeps the image's size.

    On the CPU it is a sum over the taps of the kernel, of products of whole maps, a few images at a time; taps that
    meet padding alone are left out. Numbers of 16 bits are summed in float32, which over a network is faster than
    PyTorch's own bf16 kernel; under autocast the weights stay float32. Elsewhere it is PyTorch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled('cpu')
        if x.device.type != 'cpu' or (x.dtype != self.weight.dtype and not autocast):
            return super().forward(x)
        full = torch.promote_types(x.dtype, torch.float32)
        wide, weight = x.permute(0, 2, 3, 1).to(full).contiguous(), self.weight[:, 0].permute(1, 2, 0).to(full)
        y = _SumOverTaps.apply(wide, weight.contiguous(), self.dilation[0]).permute(0, 3, 1, 2)
        y = y if self.bias is None else y + self.bias[:, None, None]
        return y.to(torch.get_autocast_dtype('cpu') if autocast and full == torch.float32 else x.dtype)


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
