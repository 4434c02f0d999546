"""Optimisers and learning-rate schedules."""
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn


def learning_rate(scheduler: str, lr: float, epoch: int, epochs: int, lr_decay_rate: float = 0.1,
                  lr_decay_epochs: Sequence[int] = ()) -> float:
    """The rate of an epoch (counted from 0); ``scheduler`` is 'poly', 'step', 'cosine' or 'constant'."""
    if scheduler == 'poly':
        return lr * (1 - epoch / epochs) ** 0.9
    if scheduler == 'step':
        return lr * lr_decay_rate ** sum(epoch > e for e in lr_decay_epochs)
    if scheduler == 'cosine':
        eta_min = lr * lr_decay_rate ** 3
        return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    assert scheduler == 'constant', scheduler
    return lr


def build_optimizer(name: str, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float,
                    momentum: float = 0.9, weight_decay: float = 1e-4, nesterov: bool = False) -> torch.optim.Optimizer:
    """'sgd' or 'adam' over the parameters that have a gradient, or over groups {'params': ..., 'lr_factor': 0.1}."""
    given: list[Any] = list(parameters)
    groups = given if isinstance(given[0], dict) else [{'params': given}]
    trained = [{**group, 'params': [p for p in group['params'] if p.requires_grad]} for group in groups]
    fused = all(p.is_cuda for group in trained for p in group['params']) or None  # else scaling waits at each step
    if name == 'adam':
        return torch.optim.Adam(trained, lr, weight_decay=weight_decay, fused=fused)
    assert name == 'sgd', name
    sgd = torch.optim.SGD(trained, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused)
    if momentum:
        sgd.register_step_pre_hook(_start_momentum)
    return sgd


def _start_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # A momentum of zero changes no first step. Without it the fused kernel takes uninitialised memory, and leaves it so
    # where loss scaling skips the step for an overflow.
    for group in optimizer.param_groups:
        for p in group['params']:
            if p.grad is not None and optimizer.state[p].get('momentum_buffer') is None:
                optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group; a group with a 'lr_factor' takes that multiple of it."""
    for group in optimizer.param_groups:
        group['lr'] = lr * group.get('lr_factor', 1)
