"""How networks compute: number formats and memory order.

``precision`` and ``tf32`` are for training steps. Validation and prediction compute in float32, and without TF32 unless
``val_tf32`` is true, so that a result is not a matter of how its network was trained, or on what.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from utils.run.devices import Moved, computes_bf16, to_device
from utils.run.errors import UserError

DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round factors of float32 products to 10 bits, or not; by default PyTorch does so in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """A block, or a function, under ``allow_tf32``; after it all is as before."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Precision:
    """Autocast, loss scaling (of fp16, for small gradients) and memory order of a training run, and TF32 of its steps.

    Weights stay float32 or float64, which autocast leaves alone; convolutions and matrix products compute in the format
    ``name``. Raises UserError for one that the device does not compute in.
    """

    def __init__(self, device: torch.device, name: str = 'fp32', channels_last: bool = True, tf32: bool = True) -> None:
        if name == 'fp16' and device.type != 'cuda':
            raise UserError(f'precision: fp16 needs a CUDA GPU; on {device.type} take bf16 or fp32.')
        if name == 'bf16' and not computes_bf16(device):
            raise UserError(f'precision: bf16 is not what this {device.type} device computes in; take fp32'
                            f'{" or fp16" * (device.type == "cuda")}.')
        self.device, self.dtype, self.channels_last, self.tf32 = device, DTYPES[name], channels_last, tf32
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == 'fp16')  # type: ignore[attr-defined]

    def autocast(self) -> Any:  # of a forward pass, without losses
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def to_device(self, x: Moved) -> Moved:
        return to_device(x, self.device, self.channels_last)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


def to_float32(x: Tensor) -> Tensor:
    """A tensor that autocast made short, in float32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
