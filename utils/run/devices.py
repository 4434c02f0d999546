"""What differs between devices: the CPU, CUDA's GPUs, Intel's (xpu) and Apple's (mps); no other module asks."""
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from utils.run.errors import UserError

Moved = TypeVar('Moved', bound='Tensor | nn.Module')
NEEDS = {'cuda': 'install a GPU driver and a CUDA build of PyTorch', 'xpu': 'install an XPU build of PyTorch',
         'mps': 'use a Mac with Apple silicon and macOS 14'}


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
    return x.contiguous().pin_memory() if reads_pinned(device) else x.contiguous()


def to_device(x: Moved, device: torch.device, channels_last: bool = True) -> Moved:
    """A network or a tensor on the device; images (B, C, H, W) and convolutions channels-last, which is faster."""
    four = isinstance(x, nn.Module) or x.dim() == 4
    order = torch.channels_last if four and channels_last else torch.contiguous_format
    return x.to(device=device, non_blocking=reads_pinned(device), memory_format=order)  # type: ignore


def on_cpu(state: Any) -> Any:
    """Nested dicts and lists with all their tensors on the CPU, after one wait for the device."""
    copies = pytree.tree_map_only(Tensor, lambda x: x.to('cpu', non_blocking=True), state)
    for kind in {x.device.type for x in pytree.tree_leaves(state) if isinstance(x, Tensor)} - {'cpu'}:
        torch.get_device_module(kind).synchronize()
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
