"""One helper that hides whether there are several processes: for one, everything is an identity."""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def all_gather(x: Tensor) -> Tensor:
    """(B, ...) of each process -> (B * processes, ...) on all, in the order of ranks; no gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def any_process(flag: bool) -> bool:
    """Whether ``flag`` holds in any process; asked of the CPU, so that no GPU is waited for."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def gather_objects(value: Any) -> list[Any]:
    """A small Python value of each process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all processes."""
    any_process(False)


def shuffle(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Exchange the images of all processes at random.

    Returns:
        this process's share of the shuffled batch, and what ``unshuffle`` needs to restore the order.
        One process keeps its batch: its BatchNorm sees the same images in any order.
    """
    if world_size() == 1:
        return x, None
    everything = all_gather(x)
    order = torch.randperm(len(everything), device=x.device)
    dist.broadcast(order, src=0)
    return everything[order.view(world_size(), -1)[rank()]], order.argsort()


def unshuffle(x: Tensor, restore: Tensor | None) -> Tensor:
    """Undo ``shuffle`` on what was computed from its share."""
    if restore is None:
        return x
    return all_gather(x)[restore.view(world_size(), -1)[rank()]]
