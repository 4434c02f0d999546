"""What differs between devices (the CPU, CUDA's GPUs, Intel's, xpu, and Apple's, mps), and how networks compute there.

``precision`` and ``tf32`` are for training steps. Validation and prediction compute in float32 (bf16 if new images are
predicted with ``--precision bf16``), and without TF32 unless ``val_tf32`` is true, so that a result is not a matter of
how its network was trained, or on what.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from utils.run.errors import UserError

Moved = TypeVar('Moved', bound='Tensor | nn.Module')
NEEDS = {'cuda': 'install a GPU driver and a CUDA build of PyTorch', 'xpu': 'install an XPU build of PyTorch',
         'mps': 'use a Mac with Apple silicon and macOS 14'}
DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def _available(kind: str) -> bool:
    return torch.backends.mps.is_available() if kind == 'mps' else torch.get_device_module(kind).is_available()


def pick_device(name: str) -> torch.device:
    """'auto' takes the first there is of cuda, xpu, mps and cpu. Raises UserError if the one asked for is not there."""
    if name == 'auto':
        name = next((kind for kind in NEEDS if _available(kind)), 'cpu')
    elif name in NEEDS and not _available(name):
        raise UserError(f'device: {name} is asked for, but PyTorch sees no {name.upper()} device; set device: cpu (or '
                        f'auto), or {NEEDS[name]}.')
    return torch.device(name)


def require_processes(device: torch.device) -> None:
    """Raise UserError for a device on which several processes cannot train together."""
    if device.type not in ('cpu', 'cuda'):
        raise UserError(f'several processes need CUDA GPUs or CPUs, and this device is {device.type}; start one '
                        '(--nproc 1), or set device=cpu.')


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has this format, and does not emulate it."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == 'mps':
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return device.type != 'xpu' or torch.xpu.is_bf16_supported()


def reads_pinned(device: torch.device) -> bool:
    """Whether copies to the device from pinned memory need not be waited for."""
    return device.type in ('cuda', 'xpu')


def pin(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor, contiguous and in memory from which the device copies without a wait, if there is such."""
    if not reads_pinned(device):
        return x.contiguous()
    with torch.get_device_module(device).device(device):  # that of a thread is the first one, whatever the process has
        return x.contiguous().pin_memory()


def to_device(x: Moved, device: torch.device, channels_last: bool = True) -> Moved:
    """A network or a tensor on the device; images (B, C, H, W) and convolutions channels-last, which is faster."""
    four = isinstance(x, nn.Module) or x.dim() == 4
    order = torch.channels_last if four and channels_last else torch.contiguous_format
    return x.to(device=device, non_blocking=reads_pinned(device), memory_format=order)  # type: ignore


def on_cpu(state: Any) -> Any:
    """Nested dicts and lists with all their tensors on the CPU, after one wait for each device that they come from."""
    copies = pytree.tree_map_only(Tensor, lambda x: x.to('cpu', non_blocking=True), state)
    for device in {x.device for x in pytree.tree_leaves(state) if isinstance(x, Tensor)} - {torch.device('cpu')}:
        named = [device] * (device.type != 'mps')  # of which there is one
        torch.get_device_module(device).synchronize(*named)
    return copies


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that training on the device draws from: of the CPU, and of the device."""
    states = {'cpu': torch.get_rng_state()}
    return states if device.type == 'cpu' else states | {device.type: torch.get_device_module(device).get_rng_state()}


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Take up what ``random_states`` gave; a generator that had no part in it goes on as it is."""
    torch.set_rng_state(states['cpu'])
    if device.type != 'cpu' and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])


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
