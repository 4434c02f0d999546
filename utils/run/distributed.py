"""One helper that hides whether there are several processes: for one, everything is an identity."""
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=15)  # a dead process is noticed at once, one that hangs by this
PATIENCE = timedelta(hours=6)  # while the main process downloads a data set, or others end their shares of images
_patient: Any = None  # the group that waits so long
Item = TypeVar('Item')
# the name since PyTorch 2.14, and the one before
gather_into: Any = getattr(dist, 'all_gather_single', None) or dist.all_gather_into_tensor


def join(use_cuda: bool) -> None:
    """Join the job that torchrun, or ``utils.run.setup``, has started this process for, if any."""
    global _patient
    if not is_launched() or world_size() > 1:
        return
    if use_cuda:
        torch.cuda.set_device(local_rank())
    # GPUs talk by NCCL; what lives on the CPU, such as the request to stop, by gloo
    dist.init_process_group('cpu:gloo,cuda:nccl' if use_cuda else 'gloo', timeout=TIMEOUT)
    _patient = dist.new_group(backend='gloo', timeout=PATIENCE)


def leave() -> bool:
    """Leave the job, all together; whether this is the main process, which does alone what comes after."""
    main = is_main()
    if world_size() > 1:
        dist.destroy_process_group()
    return main


def is_launched() -> bool:
    """Whether this process is one of several, which may not have joined yet, or have left."""
    return int(os.environ.get('WORLD_SIZE', 1)) > 1


def local_rank() -> int:
    return int(os.environ.get('LOCAL_RANK', 0))


def first_to_fail() -> bool:
    """Whether this process is the one that tells the user why the job ends; the others end silently."""
    if world_size() == 1:
        return os.environ.get('RANK', '0') == '0'
    try:
        return dist.distributed_c10d._get_default_store().add('failed', 1) == 1
    except RuntimeError:  # the store went down with its machine
        return False


def world_size() -> int:
    """The processes that have joined, 1 for one alone; some builds of PyTorch have no others."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def all_gather(x: Tensor) -> Tensor:
    """(B, ...) of each process -> (B * processes, ...) on all, in the order of ranks; no gradient."""
    if world_size() == 1:
        return x
    gathered = x.new_empty(len(x) * world_size(), *x.shape[1:])
    gather_into(gathered, x.contiguous())
    return gathered


def largest(*values: float) -> list[float]:
    """The largest of each value over all processes; asked of the CPU, so that no GPU is waited for."""
    if world_size() == 1:
        return list(values)
    votes = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return votes.tolist()


def any_process(flag: bool) -> bool:
    """Whether ``flag`` holds in any process."""
    return largest(flag) == [True]


def gather_objects(value: Any, patient: bool = False) -> list[Any]:
    """A small Python value of each process, in the order of ranks; ``patient`` waits for hours for the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, _patient if patient else None)
    return values


def alike(value: Any, patient: bool = False) -> bool:
    """Whether all processes have the same small value; see ``gather_objects``."""
    return len({*gather_objects(value, patient)}) == 1


def share(items: Iterable[Item], size: int) -> Iterator[Item]:
    """What this process takes of items that are shared out in turn, ``size`` at a time, as batches of one process."""
    return (item for index, item in enumerate(items) if index // size % world_size() == rank())


def barrier() -> None:
    any_process(False)


@contextmanager
def main_first() -> Iterator[None]:
    """A block that the main process runs before the others, who wait for it for hours: a download."""
    if not is_main():
        dist.barrier(_patient)
    yield
    if is_main() and world_size() > 1:
        dist.barrier(_patient)


def parallel(module: nn.Module) -> nn.Module:
    """The module as the main process has it, with gradients averaged over processes; BatchNorm is each one's own."""
    if world_size() == 1:
        return module
    for value in module.state_dict().values():
        dist.broadcast(value, src=0)
    # 1x1 kernels have no order of strides, and the new name of broadcast_buffers is none of older PyTorch
    warnings.filterwarnings('ignore', 'Grad strides do not match|`broadcast_buffers` is deprecated')
    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def share_buffers(module: nn.Module) -> None:
    """Give all processes the buffers of the main one: each has running statistics of its own."""
    for value in module.buffers() if world_size() > 1 else ():
        dist.broadcast(value, src=0)


def random_order(batch: int, device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """A random order of the images of all processes, the same on each, and the one that undoes it; None for one."""
    if world_size() == 1:
        return None, None  # its BatchNorm sees the same in any order
    order = torch.randperm(batch * world_size(), device=device)
    dist.broadcast(order, src=0)
    return order, order.argsort()


def shuffle(x: Tensor, order: Tensor | None) -> Tensor:
    """(B, ...) of each process -> this process's share of all of it in ``order``."""
    return x if order is None else all_gather(x)[order.view(world_size(), -1)[rank()]]
