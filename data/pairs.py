"""Random samples by (index, seed), among them the pairs of views that pretraining contrasts."""
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from data.image_set import ImageSet
from data.transforms import Sample, seeded
from data.views import ContrastiveView
from utils.run.errors import UserError

MIN_FOREGROUND, MAX_FOREGROUND = 0.01, 0.99
DRAWS, IMAGES = 3, 50  # of views for an image, and of images for a sample
SEED_RANGE = 2 ** 62


class SeededSampler(Sampler):
    """Indices in a new random order every epoch, each with the seed of its sample's randomness.

    A sample depends on (seed, epoch, position) alone, so a run gives the same batches with any number of loader
    workers, and can be taken up in the middle of an epoch: set ``epoch`` and ``start``, the samples to pass over.
    Each process takes its share of every ``batch``, which counts the images of all; an incomplete one is left out.
    """

    def __init__(self, length: int, seed: int, batch: int = 1, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.batch, self.rank = length, seed, batch, rank
        self.share = batch // world_size
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return (self.length - self.start) // self.batch * self.share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(SEED_RANGE, (self.length,), generator=generator).tolist()
        items = list(zip(order, seeds, strict=True))[self.start:]
        whole = len(items) // self.batch * self.batch
        return (item for i, item in enumerate(items[:whole]) if i % self.batch // self.share == self.rank)


class SeededDataset(Dataset):
    """Images whose transform draws at random, taken by (index, seed)."""

    def __init__(self, base: ImageSet) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        index, seed = item
        with seeded(seed):
            return self.sample(index)

    def sample(self, index: int) -> Sample:
        return self.base[index]


class PairDataset(SeededDataset):
    """Two views of each image with their masks, both with a foreground share in (0.01, 0.99).

    Views are drawn at most three times for an image, then another random image takes its place: 50 in a row raise
    UserError. A sample holds 'query' and 'key', (3, size, size) float32, with 'query_mask' and 'key_mask', (size, size)
    uint8 in {0, 1}, and 'id'.
    """

    def __init__(self, base: ImageSet, view: ContrastiveView) -> None:
        super().__init__(base)
        self.view = view

    def sample(self, index: int) -> Sample:
        for _ in range(IMAGES):
            sample = self.base.load(index)
            pair = self._draw(sample)
            if pair is not None:
                return {'id': sample['id'], **pair}
            index = int(torch.randint(len(self.base), ()))
        raise UserError(f'{IMAGES} images in a row, the last {sample["id"]}, gave no two views with a foreground share '
                        f'between {MIN_FOREGROUND} and {MAX_FOREGROUND}; the masks in {self.base.masks} look empty or '
                        'full: check them.')

    def _draw(self, sample: Sample) -> Sample | None:
        image, mask = sample['image'], sample['sal']
        if not mask.any():
            return None
        for _ in range(DRAWS):
            draws = {name: self.view.draw(mask) for name in ('query', 'key')}
            masks = {name: self.view.make_mask(mask, draw) for name, draw in draws.items()}
            if all(map(_useful, masks.values())):
                return {**{name: self.view.make_image(image, draw) for name, draw in draws.items()},
                        **{f'{name}_mask': torch.from_numpy(view) for name, view in masks.items()}}
        return None


def _useful(mask: np.ndarray) -> bool:
    return MIN_FOREGROUND < cv2.countNonZero(mask) / mask.size < MAX_FOREGROUND
