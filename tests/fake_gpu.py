"""A fictitious CUDA device: code runs on tensors without numbers, and what would be slow or wrong on a GPU is recorded.

A CUDA runtime that only answers (built by the C compiler, loaded before PyTorch) lets PyTorch count one device;
FakeTensorMode gives tensors shape, type, strides and device, and refuses a mix of devices; ``Watch`` records the rest.
Numbers, speed, the choices of cuDNN and races stay unseen.
"""
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = Path(torch.__file__).parent / 'lib'
RUNTIME = r'''
#include <stdlib.h>
#include <string.h>
static int zero(int *value) { *value = 0; return 0; }
static int some(void **handle) { *handle = calloc(1, 64); return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { return zero(device); }
int cudaSetDevice(int device) { return device ? 101 : 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { return zero(value); }
int cudaDeviceCanAccessPeer(int *answer, int from, int to) { return zero(answer); }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *greatest = -5; return zero(least); }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return some(stream); }
int cudaStreamIsCapturing(void *stream, int *status) { return zero(status); }
int cudaStreamGetCaptureInfo(void *stream, int *status, ...) { return zero(status); }
int cudaStreamGetCaptureInfo_v2(void *stream, int *status, ...) { return zero(status); }
int cudaStreamQuery(void *stream) { return 0; }
int cudaStreamSynchronize(void *stream) { return 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return some(event); }
int cudaEventRecord(void *event, void *stream) { return 0; }
int cudaEventQuery(void *event) { return 0; }
int cudaEventSynchronize(void *event) { return 0; }
int cudaEventDestroy(void *event) { free(event); return 0; }
int cudaThreadExchangeStreamCaptureMode(int *mode) { return 0; }
int cudaDeviceGetDefaultMemPool(void **pool, int device) { return some(pool); }
int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { return 0; }
int cudaMemPoolSetAttribute(void *pool, int attribute, void *value) { return 0; }
int cudaMalloc(void **memory, size_t size) { *memory = calloc(1, size); return 0; }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaMemGetInfo(size_t *free_, size_t *total) { *free_ = *total = (size_t)80 << 30; return 0; }
int cudaGetDeviceProperties(char *p, int device) {  /* the fields up to `minor` lie alike in CUDA 12 and 13 */
  memset(p, 0, 512);
  strcpy(p, "fictitious GPU");
  *(size_t *)(p + 288) = (size_t)80 << 30;  /* totalGlobalMem */
  *(int *)(p + 308) = 32;                   /* warpSize */
  *(int *)(p + 360) = 9;                    /* major */
  return 0;
}
int cudaGetDeviceProperties_v2(char *p, int device) { return cudaGetDeviceProperties(p, device); }
'''
WAITS = {'_local_scalar_dense': 'item', 'nonzero': 'nonzero', 'masked_select': 'masked_select', 'equal': 'equal',
         'bincount': 'bincount', '_unique2': 'unique', 'unique_dim': 'unique', 'unique_consecutive': 'unique',
         'repeat_interleave': 'repeat_interleave', '_linalg_svd': 'svd', '_linalg_eigh': 'eigh', 'histc': 'histc'}
FOREGROUND = 0.3  # share of the entries that nonzero finds


def missing() -> str | None:
    """Why there is no fictitious GPU here, or None."""
    if shutil.which('gcc') is None:
        return 'the fictitious GPU needs gcc'
    if not (LIBRARIES / 'libcaffe2_nvrtc.so').is_file():
        return 'the fictitious GPU needs a CUDA build of PyTorch'
    return None


def build(folder: Path) -> dict[str, str]:
    """Build the runtime, and a driver whose functions all succeed; returns the environment that loads them."""
    names = set(re.findall(rb'\0(cu[A-Z]\w+)(?=\0)', (LIBRARIES / 'libcaffe2_nvrtc.so').read_bytes()))
    driver = ''.join(f'int {name.decode()}() {{ return 0; }}\n' for name in sorted(names))
    driver = driver.replace('cuDevicePrimaryCtxGetState() {',
                            'cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *active = 0;')
    for library, source in (('libfakecudart.so', RUNTIME), ('libcuda.so.1', driver)):
        subprocess.run(['gcc', '-shared', '-fPIC', '-w', f'-Wl,-soname,{library}', '-x', 'c', '-', '-o',
                        str(folder / library)], input=source, text=True, check=True)
    return {'LD_PRELOAD': str(folder / 'libfakecudart.so'),
            'LD_LIBRARY_PATH': f'{folder}:{os.environ.get("LD_LIBRARY_PATH", "")}'}


def where() -> str:
    """The innermost function of the project on the stack, as file:function."""
    frame = sys._getframe()
    while frame := frame.f_back:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and '.venv' not in path.parts and path != Path(__file__) \
                and not frame.f_code.co_name.startswith('<'):
            return f'{path.relative_to(ROOT).as_posix()}:{frame.f_code.co_name}'
    return '?'


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == 'cuda'


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


class Watch(TorchDispatchMode):
    """Records what the code asks of the device, by 'kind, file:function'.

    waits: where the host would wait for the device; copied: bytes that come to the host in tensors.
    unpinned: copies to the device that are staged in memory that is not pinned.
    collectives: what is sent between processes; refused: what NCCL would not take.
    launches: operations on the device that are neither views nor allocations.
    live, peak: bytes of tensors on the device.
    """

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes, self.live = fakes, 0
        self.storages: weakref.WeakSet = weakref.WeakSet()
        self.pinned: weakref.WeakSet = weakref.WeakSet()
        self.reset()

    def reset(self) -> None:
        """Count anew, but for what is on the device."""
        self.waits, self.unpinned, self.collectives, self.refused = Counter(), Counter(), Counter(), Counter()
        self.launches, self.peak, self.copied = 0, self.live, 0

    def record(self) -> dict[str, Any]:
        """What was counted since the last ``reset``."""
        return {'waits': dict(self.waits), 'unpinned': dict(self.unpinned), 'collectives': dict(self.collectives),
                'refused': dict(self.refused), 'launches': self.launches, 'peak': self.peak, 'copied': self.copied}

    def wait(self, kind: str) -> None:
        self.waits[f'{kind}, {where()}'] += 1

    def hold(self, tensors: list[Tensor]) -> None:
        """Count the memory of tensors on the device until they die."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if on_gpu(tensor) and storage not in self.storages:
                size = -(-storage.nbytes() // 512) * 512  # the allocator's granularity
                self.storages.add(storage)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size)

    def _fake(self, tensor: Tensor) -> Tensor:
        """Without numbers: with them PyTorch would compute at once, for it takes the tensor for a constant."""
        return tensor if isinstance(tensor, FakeTensor) else self.fakes.from_tensor(tensor)

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == 'prim':  # asks a tensor's device
            return func(*args, **kwargs or {})
        args, kwargs = pytree.tree_map_only(Tensor, self._fake, (args, kwargs or {}))
        name, inputs = func.overloadpacket.__name__, tensors_of((args, kwargs))
        with self:  # inference mode leaves composite operations whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        on_device = any(on_gpu(tensor) for tensor in inputs)
        if func.namespace == 'c10d':
            self._collective(name, inputs)
        elif on_device and name in WAITS:
            self.wait(WAITS[name])
        elif on_device and name in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
            args = (args[0], [part for index in args[1] for part in self._index(index)], *args[2:])
        if name == 'nonzero':
            shape = int(FOREGROUND * args[0].numel()), args[0].dim()
            return torch.empty(shape, dtype=torch.long, device=args[0].device)
        if name == '_local_scalar_dense':
            return 1.0 if args[0].is_floating_point() else True if args[0].dtype == torch.bool else 1
        if name == '_pin_memory':
            pinned = args[0].clone(memory_format=torch.preserve_format)
            self.pinned.add(pinned.untyped_storage())
            return pinned
        out = func(*args, **kwargs)
        outputs = tensors_of(out)
        if name == '_to_copy':
            self._copy(args[0], outputs[0], kwargs.get('non_blocking', False))
        elif name == 'copy_':
            self._copy(args[1], args[0], args[2] if len(args) > 2 else kwargs.get('non_blocking', False))
        known = {id(tensor.untyped_storage()) for tensor in inputs}
        view = not func._schema.is_mutable and all(id(tensor.untyped_storage()) in known for tensor in outputs)
        if func.namespace != 'c10d' and any(on_gpu(tensor) for tensor in inputs + outputs):
            self.launches += not view and 'empty' not in name
        self.hold(outputs)
        return out

    def _index(self, index: Tensor | None) -> list[Tensor | None]:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            self.wait('boolean index')
            count = int(FOREGROUND * index.numel())
            return [torch.empty(count, dtype=torch.long, device='cuda') for _ in range(index.dim())]
        if index is not None and not on_gpu(index):
            self.wait('index on the CPU')
        return [index]

    def _copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        if on_gpu(source) and target.device.type == 'cpu':
            self.wait('copy to the CPU')
            self.copied += source.nbytes
        elif on_gpu(target) and source.device.type == 'cpu':
            as_it_is = source.dtype == target.dtype and (source.is_contiguous() or source.stride() == target.stride())
            if source.untyped_storage() not in self.pinned or not as_it_is:
                self.unpinned[f'{tuple(source.shape)}, {where()}'] += 1
            elif not non_blocking:
                self.wait('blocking copy to the device')

    def _collective(self, name: str, tensors: list[Tensor]) -> None:
        self.collectives[f'{name}, {where()}'] += 1
        if len({tensor.device for tensor in tensors}) > 1:
            self.refused[f'{name} of several devices, {where()}'] += 1
        for tensor in tensors:
            order = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
            if on_gpu(tensor) and not tensor.is_contiguous() and not tensor.is_contiguous(memory_format=order):
                self.refused[f'{name} with strides {tensor.stride()}, {where()}'] += 1


@contextmanager
def fictitious_gpu() -> Iterator[Watch]:
    """The block's tensors are fake; needs the environment of ``build``, and changes PyTorch for the whole process."""
    fakes = FakeTensorMode()
    watch = Watch(fakes)

    def tolist(tensor: Tensor) -> Any:
        if on_gpu(tensor):
            watch.wait('tolist')
        return np.ones(tuple(tensor.shape)).tolist()

    def numpy(tensor: Tensor, **options: Any) -> np.ndarray:
        if on_gpu(tensor):
            raise TypeError('a tensor on the device has no numpy()')
        return np.ones(tuple(tensor.shape), str(tensor.dtype).removeprefix('torch.'))

    FakeTensor.tolist, FakeTensor.numpy = tolist, numpy
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # module.to(device) makes fake weights
    torch.autograd.set_multithreading_enabled(False)  # the backward pass is watched too
    with fakes, watch:
        yield watch
