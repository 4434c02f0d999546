"""Dilated depthwise convolutions on the CPU, at which PyTorch's kernels are slow, as a sum over the kernel's taps."""
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 2 ** 19  # numbers at a time: what a core's cache holds of the input and the output


class _SumOverTaps(torch.autograd.Function):
    """x B x h x w x C, weight k x k x C -> B x h x w x C; taps that meet padding alone are left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        shifts = [(tap, (tap - len(weight) // 2) * dilation) for tap in range(len(weight))]
        rows, columns = ([(tap, slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by)))
                          for tap, by in shifts if abs(by) < size] for size in x.shape[1:3])  # tap, outputs, inputs
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


def speed_up_depthwise(network: nn.Module) -> None:
    """Let the dilated depthwise convolutions of a network run as ``DilatedDepthwiseConv``; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels:
            size, rate = module.kernel_size[0], module.dilation[0]
            usual = [(n, n) for n in (size, 1, rate, rate * (size // 2))]
            shape = [module.kernel_size, module.stride, module.dilation, module.padding]
            if size % 2 and rate > 1 and shape == usual and module.padding_mode == 'zeros':
                module.__class__ = DilatedDepthwiseConv
