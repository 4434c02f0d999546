"""The memory of segment retrieval: prototypes of objects with their classes."""
from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmentation.objects import EmbeddedSplit
from segmentation.provenance import differences
from utils.run.checkpoint import require_finite
from utils.run.errors import UserError, name_some
from utils.run.files import save_arrays

QUERIES, ENTRIES = 512, 4096  # compared at a time: 8 MB of cosines


@dataclass
class MemoryBank:
    """M prototypes with a class each (paper, section 4.4).

    prototypes: (M, D) float32 of unit length.
    votes: (M, classes) pixels of each class in the object's mask, of the background 0; at least one in every row.
    images: (M,) the ID of each entry's image.
    classes: their names.
    db_name: the data set that its images are of.
    made_by: what made it, for the log: features, weights, split, masks.
    network: what decides its prototypes, see ``models.build.prototype_network``.
    """
    prototypes: np.ndarray
    votes: np.ndarray
    images: np.ndarray
    classes: tuple[str, ...]
    db_name: str = ''
    made_by: str = ''
    network: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.votes)

    @cached_property
    def labels(self) -> np.ndarray:
        """(M,) class of each entry: that of most votes, of equals the higher id."""
        return self.votes.shape[1] - 1 - self.votes[:, ::-1].argmax(1)

    def without(self, ignored: Sequence[int]) -> MemoryBank:
        """The memory where these classes are ignored: they have no votes, and entries without votes are left out.

        Raises:
            UserError: no entry is left.
        """
        votes = self.votes.copy()
        votes[:, ignored] = 0
        kept = votes.any(1)
        if not kept.any():
            raise UserError('the memory shows no object of a class that counts; check ignore_classes.')
        return replace(self, prototypes=self.prototypes[kept], votes=votes[kept], images=self.images[kept])

    def check_dimension(self, dim: int) -> None:
        """Raises UserError when vectors of this dimension cannot be compared with the entries."""
        if dim != self.prototypes.shape[1]:
            raise UserError(f'queries of dimension {dim} do not fit a memory of dimension {self.prototypes.shape[1]}; '
                            'fill it with the same model.')

    def check_network(self, path: Path, network: Mapping[str, Any]) -> None:
        """Raises UserError when the prototypes of this network cannot be compared with those of the file ``path``."""
        changed = differences(self.network, network)
        if changed:
            raise UserError(f'memory {path} was filled with other prototypes ({"; ".join(changed)}); fill one with '
                            'this network and config: leave out --memory.')

    def search(self, queries: np.ndarray, k: int = 1, images: np.ndarray | None = None) -> np.ndarray:
        """The k entries of greatest cosine, exactly, in bounded memory.

        Args:
            queries: (N, D) vectors of unit length.
            images: (N,) the ID of each query's image, whose entries are passed over; None: no entry is.

        Returns:
            (N, k) indices of entries, the nearest first; fewer columns if the memory has not so many.

        Raises:
            UserError: the queries have another dimension, or nothing but an image's own entries is left.
        """
        self.check_dimension(queries.shape[1])
        _, counts = np.unique(self.images[np.isin(self.images, [] if images is None else images)], return_counts=True)
        most = int(counts.max(initial=0))  # entries of one query's image
        k = min(k, len(self) - most)
        if k < 1:
            raise UserError('the memory holds objects of one image alone, which cannot retrieve itself; fill it from '
                            'more images.')
        memory = torch.from_numpy(self.prototypes)
        found = np.concatenate([_search(chunk, memory, k + most)
                                for chunk in torch.from_numpy(queries).split(QUERIES)])
        if images is None or not most:
            return found
        last = (self.images[found] == images[:, None]).argsort(1, kind='stable')  # own entries go behind the others
        return np.take_along_axis(found, last, 1)[:, :k]

    def vote(self, neighbours: np.ndarray) -> np.ndarray:
        """(N, k) neighbours, the nearest first -> (N,) most frequent class, of equals that of the nearest."""
        labels = self.labels[neighbours]
        support = np.zeros(labels.shape, np.int64)  # how many neighbours share the class of this one
        for column in labels.T:
            support += labels == column[:, None]
        return np.take_along_axis(labels, support.argmax(1)[:, None], 1)[:, 0]  # argmax: the first, nearest

    def nearest(self, queries: np.ndarray, k: int = 1, images: np.ndarray | None = None) -> np.ndarray:
        """(N, D) unit vectors -> (N,) classes by the vote of the k nearest entries; arguments as ``search``."""
        return self.vote(self.search(queries, k, images))

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all."""
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__}
        save_arrays(path, **{**arrays, 'classes': np.array(self.classes, np.str_),
                             'network': np.array(json.dumps(self.network)), 'labels': self.labels})


def _search(queries: torch.Tensor, memory: torch.Tensor, k: int) -> np.ndarray:
    best = queries.new_full((len(queries), k), -torch.inf)  # n x k: the greatest cosines so far
    indices = torch.zeros(best.shape, dtype=torch.int64)  # whose they are
    for start in range(0, len(memory), ENTRIES):
        cosines = queries @ memory[start:start + ENTRIES].T  # n x entries
        better = (cosines.amax(1) > best[:, -1]).nonzero()[:, 0]  # few queries, once the first blocks are through
        values, found = cosines[better].topk(min(k, cosines.shape[1]))
        values, found = torch.cat([best[better], values], 1), torch.cat([indices[better], found + start], 1)
        values, order = torch.sort(values, dim=1, descending=True, stable=True)  # of equals the earlier entry
        best[better] = values[:, :k]
        indices[better] = found.gather(1, order)[:, :k]
    return indices.numpy()


def fill_memory(split: EmbeddedSplit, ids: Sequence[str], classes: Sequence[str], db_name: str = '',
                made_by: str = '', network: Mapping[str, Any] | None = None) -> MemoryBank:
    """The memory of a split.

    An object enters if its mask covers a class other than background and void, which do not vote on its class.

    Args:
        ids: the split's image IDs.
        classes, db_name, made_by, network: kept in the memory, see there.

    Raises:
        UserError: no object has such a mask.
    """
    votes = split.inside * (np.arange(len(classes)) > 0)
    kept = votes.any(1)
    if not kept.any():
        raise UserError('no mask of the memory split covers a labelled object; check the masks and memory_split.')
    return MemoryBank(split.prototypes[kept], votes[kept], np.array(ids)[split.image[kept]], tuple(classes), db_name,
                      made_by, network or {})


def load_memory(path: Path, classes: Sequence[str]) -> MemoryBank:
    """Read a memory that ``MemoryBank.save`` wrote; as data, never as code.

    Raises:
        UserError: it is no such file, or its classes are others.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            bank = MemoryBank(**{name: file[name] for name in MemoryBank.__dataclass_fields__})
            bank.network = json.loads(str(bank.network))
            require_finite({'prototypes': bank.prototypes}, path, 'values')
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'memory {path} is no memory.npz of retrieval.py, damaged, or of an earlier version; fill '
                        'it anew.') from error
    bank.classes = tuple(map(str, bank.classes))
    if bank.classes != tuple(classes):
        raise UserError(f'memory {path} was filled with classes {name_some(bank.classes)}, not {name_some(classes)}; '
                        'fill one for this data set and config.')
    bank.db_name, bank.made_by = str(bank.db_name), str(bank.made_by)
    return bank


def retrieval_confusion(split: EmbeddedSplit, predicted: np.ndarray, ignored: Sequence[int] = ()) -> np.ndarray:
    """(classes, classes) pixel counts: each object takes its predicted class, the rest is background.

    Pixels of the ignored classes do not count.
    """
    confusion = np.zeros((split.inside.shape[1],) * 2, np.int64)  # predicted x true
    confusion[0] = split.outside.sum(0)
    np.add.at(confusion, predicted, split.inside)
    confusion[:, list(ignored)] = 0
    return confusion.T
