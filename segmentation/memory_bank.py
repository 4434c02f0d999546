"""The memory of segment retrieval: prototypes of objects with their classes."""
from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segmentation.embedding import EmbeddedSplit
from utils.errors import UserError, name_some
from utils.results import save_arrays

QUERIES, ENTRIES = 512, 4096  # compared at a time: 8 MB of cosines


@dataclass
class MemoryBank:
    """M prototypes with a class each (paper, section 4.4).

    prototypes: (M, D) float32 of unit length.
    labels: (M,) class ids.
    images: (M,) the ID of each entry's image.
    classes, ignored: names of the classes that ``labels`` index, and of those that were void.
    db_name: the data set that its images are of.
    made_by: what made it, for the log: features, weights, split, masks.
    """
    prototypes: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    classes: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    db_name: str = ''
    made_by: str = ''

    def __len__(self) -> int:
        return len(self.labels)

    def check_dimension(self, dim: int) -> None:
        """Raises UserError when vectors of this dimension cannot be compared with the entries."""
        if dim != self.prototypes.shape[1]:
            raise UserError(f'queries of dimension {dim} do not fit a memory of dimension {self.prototypes.shape[1]}; '
                            'fill it with the same model.')

    def search(self, queries: np.ndarray, k: int = 1) -> np.ndarray:
        """The k entries of greatest cosine, exactly, in bounded memory.

        Args:
            queries: (N, D) vectors of unit length.

        Returns:
            (N, min(k, M)) indices of entries, the nearest first.

        Raises:
            UserError: the queries have another dimension.
        """
        self.check_dimension(queries.shape[1])
        memory, k = torch.from_numpy(self.prototypes), min(k, len(self))
        return np.concatenate([_search(chunk, memory, k) for chunk in torch.from_numpy(queries).split(QUERIES)])

    def vote(self, neighbours: np.ndarray) -> np.ndarray:
        """(N, k) neighbours, the nearest first -> (N,) most frequent class, of equals that of the nearest."""
        labels = self.labels[neighbours]
        support = np.zeros(labels.shape, np.int64)  # how many neighbours share the class of this one
        for column in labels.T:
            support += labels == column[:, None]
        return np.take_along_axis(labels, support.argmax(1)[:, None], 1)[:, 0]  # argmax: the first, nearest

    def nearest(self, queries: np.ndarray, k: int = 1) -> np.ndarray:
        """(N, D) unit vectors -> (N,) classes by the vote of the k nearest entries."""
        return self.vote(self.search(queries, k))

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all."""
        save_arrays(path, **{**vars(self), 'classes': np.array(self.classes, np.str_),
                             'ignored': np.array(self.ignored, np.str_)})


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


def fill_memory(split: EmbeddedSplit, ids: Sequence[str], classes: Sequence[str], ignored: Sequence[str] = (),
                db_name: str = '', made_by: str = '') -> MemoryBank:
    """The memory of a split.

    An object enters if its mask covers a class other than background and void; its class is that of
    most pixels of the mask, background and void not counted, and the higher id of equals.

    Args:
        split: the objects; columns of ``inside`` for ignored classes set to 0.
        ids: the split's image IDs.
        classes, ignored, db_name, made_by: kept in the memory, see there.

    Raises:
        UserError: no object has such a mask.
    """
    votes = split.inside[:, 1:]
    kept = votes.any(1)
    if not kept.any():
        raise UserError('no mask of the memory split covers a labelled object; check the masks and memory_split.')
    highest_first = votes[kept][:, ::-1]
    labels = votes.shape[1] - highest_first.argmax(1)
    return MemoryBank(split.prototypes[kept], labels, np.array(ids)[split.image[kept]], tuple(classes),
                      tuple(ignored), db_name, made_by)


def load_memory(path: Path, classes: Sequence[str], ignored: Sequence[str] = ()) -> MemoryBank:
    """Read a memory that ``MemoryBank.save`` wrote; as data, never as code.

    Raises:
        UserError: it is no such file, or its classes (or those ignored) are others.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            bank = MemoryBank(**{name: file[name] for name in MemoryBank.__dataclass_fields__})
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'memory {path} is no memory.npz of retrieval.py, or damaged; fill it anew.') from error
    bank.classes, bank.ignored = (tuple(map(str, names)) for names in (bank.classes, bank.ignored))
    for what, found, expected in (('classes', bank.classes, tuple(classes)),
                                  ('ignore_classes', tuple(sorted(bank.ignored)), tuple(sorted(ignored)))):
        if found != expected:
            raise UserError(f'memory {path} was filled with {what} {name_some(found) or "none"}, not '
                            f'{name_some(expected) or "none"}; fill one for this data set and config.')
    bank.db_name, bank.made_by = str(bank.db_name), str(bank.made_by)
    return bank


def retrieval_confusion(split: EmbeddedSplit, predicted: np.ndarray) -> np.ndarray:
    """(classes, classes) pixel counts: each object takes its predicted class, the rest is background."""
    confusion = np.zeros((split.inside.shape[1],) * 2, np.int64)  # predicted x true
    confusion[0] = split.outside.sum(0)
    np.add.at(confusion, predicted, split.inside)
    return confusion.T
