"""Convolutions at which PyTorch's kernels are slow on the CPU, done in another way there."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 2 ** 19  # numbers at a time in a sum over taps: what a core's cache holds of the input and the output
AVX2 = torch.backends.cpu.get_cpu_capability() == 'AVX2'  # whose kernels for the gradient of weights are slower
DILATED = 2 if AVX2 else 4  # dilation from which on products are faster


def taps(length: int, dilation: int, size: int) -> list[tuple[int, slice, slice]]:
    """The taps of a dilated kernel of odd length that meet a row of ``size`` pixels: tap, outputs, inputs."""
    shifts = [(tap, (tap - length // 2) * dilation) for tap in range(length)]
    return [(tap, slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by)))
            for tap, by in shifts if abs(by) < size]


class SameConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the image's size, without the taps that would read padding alone.

    Where the dilation is no smaller than the map, only the middle row or column of the kernel can meet the map. On the
    CPU the gradient of the weights is a product a tap, which leaves out padding too, where that is faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (slice(None) if rate < size else slice(length // 2, length // 2 + 1) for length, rate, size
                         in zip(self.kernel_size, self.dilation, x.shape[-2:], strict=True))
        weight = self.weight[:, :, rows, columns]
        padding = [rate * (length // 2) for rate, length in zip(self.dilation, weight.shape[-2:], strict=True)]
        cast = torch.is_autocast_enabled('cpu') and x.dtype != torch.float64
        faster = self.dilation[0] >= DILATED if any(padding) else AVX2
        if faster and not cast and x.device.type == 'cpu' and torch.is_grad_enabled() and weight.requires_grad:
            return _WeightsByProducts.apply(x, weight, padding, self.dilation)
        return F.conv2d(x, weight, None, 1, padding, self.dilation)


class _WeightsByProducts(torch.autograd.Function):
    """A convolution of stride 1 without bias, whose weight gradient is one product a tap, of the pixels that meet."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, None, 1, padding, dilation)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_input, *_ = torch.ops.aten.convolution_backward(slope, x, weight, None, [1, 1], ctx.padding, ctx.dilation,
                                                           False, [0, 0], 1, [ctx.needs_input_grad[0], False, False])
        inputs, outputs = (t.permute(0, 2, 3, 1) for t in (x, slope))  # B x h x w x C
        gradient = torch.zeros_like(weight)
        rows, columns = (taps(length, rate, size)
                         for length, rate, size in zip(weight.shape[2:], ctx.dilation, x.shape[2:], strict=True))
        for row, to_y, from_y in rows:
            for column, to_x, from_x in columns:
                gradient[:, :, row, column] = (outputs[:, to_y, to_x].flatten(0, 2).T
                                               @ inputs[:, from_y, from_x].flatten(0, 2))
        return of_input, gradient, None, None


class _SumOverTaps(torch.autograd.Function):
    """Dilated depthwise convolution, at which PyTorch's kernels are slow on the CPU: a sum over the kernel's taps.

    x B x h x w x C, weight k x k x C -> B x h x w x C; taps that meet padding alone are left out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows, columns = (taps(len(weight), dilation, size) for size in x.shape[1:3])
        ctx.taps = [((row, column), (slice(None), to_y, to_x), (slice(None), from_y, from_x))
                    for row, to_y, from_y in rows for column, to_x, from_x in columns]
        ctx.images, y = max(1, BLOCK // x.shape[1:].numel()), torch.zeros_like(x)
        for some, out in zip(x.split(ctx.images), y.split(ctx.images), strict=True):
            for tap, outputs, inputs in ctx.taps:
                out[outputs].addcmul_(some[inputs], weight[tap])
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for some, part, grad in zip(*(t.split(ctx.images) for t in (x, slope.contiguous(), grad_x)), strict=True):
            for tap, outputs, inputs in ctx.taps:
                grad[inputs].addcmul_(part[outputs], weight[tap])
                grad_weight[tap] += (some[inputs] * part[outputs]).sum((0, 1, 2))
        return grad_x, grad_weight, None


class DilatedDepthwiseConv(nn.Conv2d):
    """Of stride 1, keeping the image's size: on the CPU a sum over taps, in float32 at least; elsewhere PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled('cpu')
        if x.device.type != 'cpu' or (x.dtype != self.weight.dtype and not autocast):
            return super().forward(x)
        full = torch.promote_types(x.dtype, torch.float32)
        wide, weight = x.permute(0, 2, 3, 1).to(full).contiguous(), self.weight[:, 0].permute(1, 2, 0).to(full)
        y = _SumOverTaps.apply(wide, weight.contiguous(), self.dilation[0]).permute(0, 3, 1, 2)
        y = y if self.bias is None else y + self.bias[:, None, None]
        return y.to(torch.get_autocast_dtype('cpu') if autocast and full == torch.float32 else x.dtype)


def speed_up(network: nn.Module) -> None:
    """Let those convolutions of a network that gain run as ``SameConv2d`` and ``DilatedDepthwiseConv``, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.stride == (1, 1) and module.padding_mode == 'zeros':
            size, rate = module.kernel_size[0], module.dilation[0]
            usual = [(n, n) for n in (size, rate, rate * (size // 2))]
            if size % 2 and [module.kernel_size, module.dilation, module.padding] == usual:
                if module.groups == 1 and module.bias is None and (rate > 1 or (AVX2 and size == 1)):
                    module.__class__ = SameConv2d
                elif module.groups == module.in_channels == module.out_channels and rate > 1:
                    module.__class__ = DilatedDepthwiseConv
