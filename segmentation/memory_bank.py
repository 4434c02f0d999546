"""The memory of segment retrieval: prototypes of objects with their classes."""
from __future__ import annotations

import numpy as np
import torch

from segmentation.embedding import EmbeddedSplit
from utils.errors import UserError

CHUNK = 4096  # queries compared with the whole memory at a time


class MemoryBank:
    """Prototypes with a class each (paper, section 4.4).

    An image enters if its mask covers a class other than background and void; its class is that of
    most pixels of the mask, background and void not counted, and the higher id of equals.

    Args:
        split: the images that fill the memory; columns of ``inside`` for ignored classes set to 0.

    Raises:
        UserError: no image has such a mask.
    """

    def __init__(self, split: EmbeddedSplit) -> None:
        votes = split.inside[:, 1:]
        kept = votes.any(1)
        if not kept.any():
            raise UserError('no mask of the memory split covers a labelled object; check the masks and memory_split.')
        self.prototypes = split.prototypes[kept]  # M x D
        highest_first = votes[kept][:, ::-1]
        self.labels = votes.shape[1] - highest_first.argmax(1)  # M

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, queries: np.ndarray) -> np.ndarray:
        """(N, D) unit vectors -> (N,) class of the bank entry of greatest cosine (exact)."""
        if queries.shape[1] != self.prototypes.shape[1]:
            raise UserError(f'queries of dimension {queries.shape[1]} do not fit a memory of dimension '
                            f'{self.prototypes.shape[1]}; fill it with the same model.')
        memory = torch.from_numpy(self.prototypes).T  # D x M
        best = [(torch.from_numpy(queries[i:i + CHUNK]) @ memory).argmax(1) for i in range(0, len(queries), CHUNK)]
        return self.labels[torch.cat(best).numpy()]


def retrieval_confusion(split: EmbeddedSplit, predicted: np.ndarray) -> np.ndarray:
    """(classes, classes) pixel counts: each mask takes its predicted class, the rest is background."""
    confusion = np.zeros((split.inside.shape[1],) * 2, np.int64)  # predicted x true
    confusion[0] = split.outside.sum(0)
    np.add.at(confusion, predicted, split.inside)
    return confusion.T
