"""Decoded samples kept in memory."""
from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.run.errors import UserError
from utils.run.log import progress
from utils.run.parallel import available_cores, available_memory, in_threads

log = logging.getLogger(__name__)
PROBES = 32  # samples, spread over the set, that tell how much memory it takes
SHARE = 0.8  # of the free memory may be taken; the rest is for the network and the loader
BLOCK = 2 ** 28
GB = 1e9
Sample = dict[str, Any]


class Place(NamedTuple):
    """Where an array lies."""
    block: int
    start: int
    shape: tuple[int, ...]


class SampleCache:
    """All samples of a data set, decoded.

    Their arrays lie in a few large blocks of memory, which the loader's workers share: forked ones see those of
    their parent, and spawned ones are sent them as shared memory, as PyTorch sends any tensor. What ``cache[index]``
    gives are parts of the blocks, not to be written to.

    Args:
        read: gives a sample by index: uint8 arrays, and other values that are small.
        count: number of samples.

    Raises:
        UserError: the samples need more than four fifths of the memory that is free.
    """

    def __init__(self, read: Callable[[int], Sample], count: int) -> None:
        probes = range(0, count, max(1, count // PROBES))
        need = count / len(probes) * sum(array.size for i in probes for array in _arrays(read(i)).values())
        free = available_memory()
        if free is not None and need > SHARE * free:
            raise UserError(f'cache: ram needs about {need / GB:.2g} GB for {count} decoded images, which is more than '
                            f'{SHARE:.0%} of the {free / GB:.2g} GB of memory that are free for this process; set '
                            'cache: none or use a smaller split.')
        log.info('Decoding %d images into about %.2g GB of memory', count, need / GB)
        self.blocks: list[Tensor] = []
        self.end = 0  # of what is taken of the last block
        threads = available_cores()
        samples = in_threads(read, range(count), threads, 2 * threads)
        self.samples = [{**sample, **{name: self._keep(array) for name, array in _arrays(sample).items()}}
                        for sample in progress(samples, 'decode', count)]

    def __getitem__(self, index: int) -> Sample:
        return {name: self._get(value) if isinstance(value, Place) else value
                for name, value in self.samples[index].items()}

    def _keep(self, array: np.ndarray) -> Place:
        if not self.blocks or self.end + array.size > len(self.blocks[-1]):
            self.blocks.append(torch.empty(max(BLOCK, array.size), dtype=torch.uint8))
            self.end = 0
        place = Place(len(self.blocks) - 1, self.end, array.shape)
        self._get(place)[:] = array
        self.end += array.size
        return place

    def _get(self, place: Place) -> np.ndarray:
        block, size = self.blocks[place.block].numpy(), int(np.prod(place.shape))
        return block[place.start:place.start + size].reshape(place.shape)


def _arrays(sample: Sample) -> dict[str, np.ndarray]:
    return {name: value for name, value in sample.items() if isinstance(value, np.ndarray)}
