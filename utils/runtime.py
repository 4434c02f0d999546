"""The device and the random state of a run."""
from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.config import save_config
from utils.errors import UserError
from utils.logger import setup_logging

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """'auto' takes the GPU when there is one; 'cpu' and 'cuda' are taken at their word.

    Raises:
        UserError: 'cuda' is asked for and there is none.
    """
    if name == 'cuda' and not torch.cuda.is_available():
        raise UserError('device: cuda is asked for, but PyTorch sees no CUDA device; set device: cpu (or auto), or '
                        'install a GPU driver and a CUDA build of PyTorch.')
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch: weights, dropout and the start of the memory bank."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)


def place(module: nn.Module, device: torch.device) -> None:
    """Move a network to the device with its convolutions in channels-last order, which both CPU and GPU run faster."""
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Move a batch of images (B, 3, H, W) to the device in channels-last order."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)


def prepare(p: Any) -> torch.device:
    """Ready the output directory, the log, the random state and the device of a run.

    Args:
        p: the config.

    Raises:
        UserError: the output directory was made with another config, or the device is not there.
    """
    device = pick_device(p.device)
    output_dir = Path(p.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_config(p, output_dir)
    setup_logging(output_dir)
    seed_everything(p.seed)
    log.info('Output: %s; device: %s', output_dir, device)
    return device
