"""From the config to data sets and loaders: the only part of data/ that sees the config."""
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils.collate import default_collate

from data.download import FOLDER, ensure_dataset
from data.folder import FolderDataset, is_folder
from data.image_set import ImageSet
from data.transforms import Colour, EvaluationTransform, Sample
from data.voc import VOCSegmentation
from utils.config.paths import user_path
from utils.config.schema import Env, Evaluation, Run, Training, TrainSaliency
from utils.run import distributed
from utils.run.devices import pick_device, reads_pinned
from utils.run.errors import UserError
from utils.run.parallel import available_cores, start_worker

log = logging.getLogger(__name__)
Images = TypeVar('Images', bound=ImageSet)
Collate = Callable[[list[Sample]], dict[str, Any]]


def identity(p: Env, *names: str) -> tuple[str, ...]:
    """The keys that tell a run's images: db_root of an unlabelled folder; the VOC layout goes by name, and may move."""
    return ('db_root',) if any(is_folder(Path(p.db_root) / name) for name in names) else ()


def label_maps_of(p: Run) -> Path | None:
    maps = p.get('label_maps')
    return None if maps is None else Path(p.root_dir) / user_path(maps)


def _alike(images: Images) -> Images:
    """The images. Raises UserError where processes have different ones, and would take one for another."""
    found = distributed.gather_objects((len(images), hashlib.sha256(os.fsencode('\n'.join(images.ids))).digest()), True)
    if len(set(found)) > 1:
        counts = ', '.join(str(count) for count, _ in found)
        raise UserError(f'the processes found different images in {images.images} ({counts} of them); all must see '
                        'the same files.')
    return images


def open_images(p: Run, name: str, split: str, truth: bool | None = False, saliency: str | None = None,
                skip: bool = False, share: float = 1, seed: int = 0, label_maps: bool = False) -> ImageSet:
    """A split of a data set, in the layout that its folder has; VOC is downloaded when it is absent.

    With ``truth`` ground truth is read; None reads it where the data set has some. ``saliency`` names the object masks
    that are read. ``skip``: leave out IDs without image or mask and log how many; otherwise they are an error.
    ``share`` and ``seed``: see ``random_share``. ``label_maps``: those of the config stand for the ground truth, as
    they do in an unlabelled image folder. Raises UserError for a data set that is missing, incomplete or not the same
    in all processes.
    """
    root = Path(p.db_root) / name
    if name == FOLDER:
        with distributed.main_first():
            root = ensure_dataset(root)
    if not is_folder(root):
        return _alike(VOCSegmentation(root, split, truth is not False, saliency, skip, share, seed,
                                      p.get('eval_classes', ()), label_maps_of(p) if label_maps else None))
    maps = label_maps_of(p) if truth else None
    if truth and maps is None:
        raise UserError(f'{root} is an unlabelled image folder without ground truth (it has no sets/); kmeans.py '
                        'clusters such a folder, label_maps of pseudo_labels.py can be trained on, everything else '
                        'needs labels and lists.')
    if share < 1:
        raise UserError(f'label_share {share} needs a list of image IDs, and {root} has none (sets/); leave it out.')
    images, output = (root / 'images').resolve(), Path(p.output_dir).resolve()
    if images in (output, *output.parents):
        raise UserError(f'output_dir {output} lies inside {images}, so that results would be taken for images; '
                        'choose another root_dir or output_dir.')
    masks = None if saliency is None else root / f'saliency_{saliency}'
    if maps is not None:
        log.info('%s has no ground truth: scores say how far a network agrees with %s', root, maps)
    return _alike(FolderDataset(root / 'images', masks, split, p.seed, maps))


def open_masks(p: TrainSaliency, images: str, masks: str) -> FolderDataset:
    """Images and precomputed masks of two folders below db_root, or anywhere."""
    return _alike(FolderDataset(p.db_root / user_path(images), p.db_root / user_path(masks)))


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
        seeds = torch.randint(2 ** 62, (self.length,), generator=generator).tolist()
        items = list(zip(order, seeds, strict=True))[self.start:]
        whole = len(items) // self.batch * self.batch
        return (item for i, item in enumerate(items[:whole]) if i % self.batch // self.share == self.rank)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Batch what has one size; keep ground truth, masks, shapes and ids of any size as lists."""
    return {key: default_collate([s[key] for s in samples]) if isinstance(samples[0][key], torch.Tensor)
            else [s[key] for s in samples] for key in samples[0]}


def collate_pairs(samples: list[Sample], step: int = 1) -> dict[str, Any]:
    """``collate`` of ``ContrastivePair``, and what a step needs of the masks, each ``step``-th row and column of them.

    'query_pixels' and 'key_pixels', (P,) int32, are the indices of the foreground in the flat masks of the batch.
    """
    batch = collate(samples)
    for view in ('query', 'key'):
        mask = batch[f'{view}_mask'][:, ::step, ::step].numpy()
        batch[f'{view}_pixels'] = torch.from_numpy(np.flatnonzero(mask).astype(np.int32))
    return batch


def _loader(p: Run, images: ImageSet, batch_size: int, collate_fn: Collate = collate, **kwargs: Any) -> DataLoader:
    # with a generator of its own a loader takes no number from the one that training draws from
    cores, workers = available_cores(), p.num_workers
    if workers is None or workers > cores:
        workers = max(1, cores - 1)
    return DataLoader(images, batch_size, num_workers=workers, persistent_workers=workers > 0,
                      pin_memory=reads_pinned(pick_device(p.device)), collate_fn=collate_fn,
                      worker_init_fn=start_worker, generator=torch.Generator(), **kwargs)


def train_loader(p: Training, images: ImageSet, collate_fn: Collate = collate) -> DataLoader:
    """This process's share of random batches. Raises UserError for a batch that cannot be filled or split."""
    processes = distributed.world_size()
    log.info('Training on %s', images)
    if p.train_batch_size > len(images):
        raise UserError(f'train_batch_size {p.train_batch_size} is larger than the data set: {images.root.name} '
                        f'{images.split} has {len(images)} usable images; lower it or add images.')
    if p.train_batch_size % processes:
        raise UserError(f'train_batch_size {p.train_batch_size} cannot be split over {processes} processes; take a '
                        'multiple of their number.')
    if p.cache == 'ram':
        log.info('cache: ram has no effect: images are read anew each time, in num_workers processes')
    sampler = SeededSampler(len(images), p.seed, p.train_batch_size, distributed.rank(), processes)
    return _loader(p, images, p.train_batch_size // processes, collate_fn, sampler=sampler, drop_last=True)


def loader_in_order(p: Evaluation | TrainSaliency, images: ImageSet) -> DataLoader:
    """All images, none dropped; several processes take the batches that one process has in turn."""
    log.info('Reading %s', images)
    return _loader(p, images, p.val_batch_size, sampler=[*distributed.share(range(len(images)), p.val_batch_size)])


def evaluation_loader(p: Evaluation, images: ImageSet, mean: Colour, std: Colour,
                      originals: int | None = 0) -> DataLoader:
    """All images in order, resized for the network; ground truth and masks keep their own size.

    The first ``originals`` images, None: all, travel with the batch as decoded, 'original'; the others are None there.
    """
    return loader_in_order(p, images.transformed(EvaluationTransform(p.val_size, mean, std, images.ids[:originals])))
