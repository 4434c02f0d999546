"""The feature index of segment retrieval: prototypes of objects with their classes."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmentation.objects import MASKS, EmbeddedSplit, save_masks
from utils.run.checkpoint import read_arrays
from utils.run.errors import UserError, name_some
from utils.run.files import save_arrays

QUERIES, ENTRIES = 512, 4096  # compared at a time: 8 MB of cosines
DECIDES = ('fingerprint', 'backbone', 'features', 'masks', 'min_component', 'size')  # of a network: the prototypes
SAVED = ('prototypes', 'votes', 'images', 'classes', 'db_name', 'made_by', 'network')


def search(queries: np.ndarray, entries: np.ndarray, k: int, own: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The k entries (M, D) of greatest cosine to each query (N, D), all of unit length: exactly, in bounded memory.

    ``own`` (N,) and ``images`` (M,) are the IDs of their images; a query passes over entries of its own image.
    Returns (N, k) indices of entries, the nearest first, of equals the earlier; -1 where there are not so many.
    """
    _, numbers = np.unique(np.concatenate([images, own]), return_inverse=True)
    of_entry, of_query = torch.from_numpy(numbers).split([len(entries), len(queries)])
    shared = bool(torch.isin(of_query, of_entry).any())
    k, memory = min(k, len(entries)), torch.from_numpy(entries)
    found = []
    for chunk, image in zip(torch.from_numpy(queries).split(QUERIES), of_query.split(QUERIES), strict=True):
        best = chunk.new_full((len(chunk), k), -torch.inf)  # n x k: the greatest cosines so far
        indices = torch.full(best.shape, -1)  # whose they are
        for start in range(0, len(memory), ENTRIES):
            cosines = chunk @ memory[start:start + ENTRIES].T  # n x entries
            if shared:
                cosines[image[:, None] == of_entry[start:start + ENTRIES]] = -torch.inf
            better = (cosines.amax(1) > best[:, -1]).nonzero()[:, 0]  # few queries, once the first blocks are through
            cosines = cosines[better]
            values, places = cosines.topk(min(k, cosines.shape[1]))
            last = values[:, -1:]
            tied = ((cosines == last).sum(1) > (values == last).sum(1)).nonzero()[:, 0]  # topk takes any of equals
            places[tied] = cosines[tied].argsort(dim=1, descending=True, stable=True)[:, :values.shape[1]]
            places = places.sort(1).values
            values = cosines.gather(1, places)
            places = torch.where(values == -torch.inf, -1, places + start)
            values, places = torch.cat([best[better], values], 1), torch.cat([indices[better], places], 1)
            values, order = torch.sort(values, dim=1, descending=True, stable=True)  # of equals the earlier entry
            best[better], indices[better] = values[:, :k], places.gather(1, order)[:, :k]
        found.append(indices.numpy())
    return np.concatenate(found)


@dataclass
class FeatureIndex:
    """M prototypes with a class each (paper, section 4.4)."""
    prototypes: np.ndarray  # (M, D) float32 of unit length
    votes: np.ndarray  # (M, classes) pixels of each class in the object's mask, of the background 0; some in every row
    images: np.ndarray  # (M,) the ID of each entry's image
    classes: tuple[str, ...]
    db_name: str = ''  # the data set of its images
    made_by: str = ''  # features, weights, split, masks: for the log
    network: Mapping[str, Any] = field(default_factory=dict)  # see ``models.build.prototype_network``
    masks: Sequence[bytes] = ()  # of the entries, packed; none if they were not kept

    def __len__(self) -> int:
        return len(self.votes)

    @cached_property
    def labels(self) -> np.ndarray:
        """(M,) class of each entry: that of most votes, of equals the higher id."""
        return self.votes.shape[1] - 1 - self.votes[:, ::-1].argmax(1)

    def without(self, ignored: Sequence[int]) -> 'FeatureIndex':
        """Without the votes of these classes, and the entries that have no others. Raises UserError if none is left."""
        votes = self.votes.copy()
        votes[:, ignored] = 0
        kept = votes.any(1)
        if not kept.any():
            raise UserError('the memory shows no object of a class that counts; check ignore_classes.')
        return replace(self, prototypes=self.prototypes[kept], votes=votes[kept], images=self.images[kept], masks=())

    def search(self, queries: np.ndarray, k: int = 1, images: np.ndarray | None = None) -> np.ndarray:
        """See ``search``; ``images`` of the queries, None: none of the index. Raises UserError for no neighbour."""
        own = np.full(len(queries), '') if images is None else images
        found = search(queries, self.prototypes, k, own, self.images)
        if (found[:, 0] < 0).any():
            raise UserError('the memory is of one image alone, which cannot retrieve itself; fill it from more images.')
        return found

    def vote(self, neighbours: np.ndarray) -> np.ndarray:
        """(N, k) neighbours, the nearest first -> (N,) most frequent class, of equals that of the nearest."""
        labels = np.where(neighbours < 0, -1, self.labels[neighbours])
        support = sum(labels == column[:, None] for column in labels.T) * (labels >= 0)  # neighbours of the same class
        return np.take_along_axis(labels, support.argmax(1)[:, None], 1)[:, 0]  # argmax: the first, nearest

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all, and the masks beside it."""
        arrays = {name: getattr(self, name) for name in SAVED}
        save_arrays(path, **{**arrays, 'network': np.array(json.dumps(self.network)), 'labels': self.labels})
        save_masks(path.with_name(MASKS), self.prototypes, self.masks)


def build_index(split: EmbeddedSplit, ids: Sequence[str], classes: Sequence[str], db_name: str = '',
                made_by: str = '', network: Mapping[str, Any] | None = None) -> FeatureIndex:
    """Of a split's objects that cover a class other than background. Raises UserError if no object is left."""
    votes = split.inside * (np.arange(len(classes)) > 0)
    kept = np.flatnonzero(votes.any(1))
    if not len(kept):
        raise UserError('no mask of the memory split covers a labelled object; check the masks and memory_split.')
    return FeatureIndex(split.prototypes[kept], votes[kept], np.array(ids)[split.image[kept]], tuple(classes), db_name,
                        made_by, network or {}, [split.masks[i] for i in kept.tolist()] if split.masks else [])


def load_index(path: Path, classes: Sequence[str], network: Mapping[str, Any]) -> FeatureIndex:
    """Read what ``FeatureIndex.save`` wrote. Raises UserError for another file, other classes or another network."""
    def short(value: Any) -> str:
        return f'{value[:12]}...' if isinstance(value, str) and len(value) == 64 else str(value)  # a fingerprint

    damaged = 'is no memory.npz of retrieval.py, damaged, or of an earlier version; refill it.'
    file = read_arrays(path, SAVED, damaged)
    try:
        saved, made = tuple(map(str, file['classes'])), dict(json.loads(str(file['network'])))
    except (ValueError, TypeError):
        raise UserError(f'{path} {damaged}') from None
    if saved != tuple(classes):
        raise UserError(f'memory {path} was filled with classes {name_some(saved)}, not {name_some(classes)}; fill one '
                        'for this data set and config.')
    changed = [f'{name} {short(made.get(name))} then, {short(network[name])} now' for name in DECIDES
               if made.get(name) != network[name]]
    if changed:
        raise UserError(f'memory {path} was filled with other prototypes ({"; ".join(changed)}); fill one with this '
                        'network and config: leave out --memory.')
    return FeatureIndex(file['prototypes'], file['votes'], file['images'], saved, str(file['db_name']),
                        str(file['made_by']), made)
