"""How a training step computes: number formats and memory order."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Precision:
    """Autocast, loss scaling and memory order of a training run.

    Weights stay as they are, float32 or float64 (which autocast leaves alone); under autocast
    convolutions and matrix products compute in the shorter format.

    Args:
        device: where the run computes.
        name: fp32, bf16 or fp16; fp16 scales the loss so that small gradients survive.
        channels_last: order of images and convolution weights in memory.

    Raises:
        UserError: the device does not compute in this format.
    """

    def __init__(self, device: torch.device, name: str = 'fp32', channels_last: bool = True) -> None:
        if name == 'fp16' and device.type != 'cuda':
            raise UserError('precision: fp16 needs a GPU; on a CPU take bf16 or fp32.')
        if name == 'bf16' and device.type == 'cuda' and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError('precision: bf16 is not what this GPU computes in; take fp16 or fp32.')
        self.device, self.dtype = device, DTYPES[name]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == 'fp16')  # type: ignore[attr-defined]

    def autocast(self) -> Any:
        """The context of a forward pass; losses are computed outside of it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def place(self, module: nn.Module) -> None:
        """Move a network to the device."""
        module.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def images(self, images: Tensor) -> Tensor:
        """Move a batch of images (B, 3, H, W) to the device."""
        return images.to(self.device, non_blocking=True, memory_format=self.memory_format)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Backward and one step of the optimiser."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


def full(x: Tensor) -> Tensor:
    """A tensor that autocast made short, in float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
