"""From the config to loaders: the only part of data/ that sees the config."""
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.collate import default_collate

from data.download import ensure_dataset
from data.folder import FolderDataset, is_folder
from data.image_set import ImageSet
from data.pairs import PairDataset, SeededDataset, SeededSampler
from data.transforms import Colour, EvaluationTransform, LinearTrainTransform, Sample
from data.views import ContrastiveView
from data.voc import VOCSegmentation, read_classes, scored_classes
from utils.config.paths import user_path
from utils.config.schema import Env, Evaluation, LinearFinetune, Pretrain, Run, Training, TrainSaliency
from utils.run import distributed
from utils.run.devices import pick_device, reads_pinned
from utils.run.errors import UserError
from utils.run.parallel import available_cores, guard_worker

log = logging.getLogger(__name__)
DOWNLOADABLE = 'VOCSegmentation'


def dataset_root(p: Env, name: str) -> Path:
    """Folder of a data set; VOC is downloaded when it is absent."""
    root = Path(p.db_root) / name
    if name != DOWNLOADABLE:
        return root
    with distributed.main_first():
        return ensure_dataset(root)


def identity(p: Env, *names: str) -> tuple[str, ...]:
    """The keys that say which images a run is made of, if one of its data sets is an unlabelled image folder: db_root.

    A data set in the VOC layout is told by its name and may move.
    """
    return ('db_root',) if any(is_folder(Path(p.db_root) / name) for name in names) else ()


def has_ground_truth(p: Env, name: str) -> bool:
    """Whether a data set has labels; an unlabelled image folder has none."""
    return not is_folder(dataset_root(p, name))


def labelled_root(p: Env, name: str) -> Path:
    """Folder of a data set with ground truth. Raises UserError for an unlabelled image folder."""
    root = dataset_root(p, name)
    if is_folder(root):
        raise UserError(f'{root} is an unlabelled image folder without ground truth (it has no sets/); kmeans.py '
                        'clusters such a folder, everything else needs labels and lists.')
    return root


def scored_names(p: Evaluation, name: str) -> tuple[str, ...]:
    """The scored classes of a labelled data set, background first. Raises UserError as ``labelled_root``."""
    return scored_classes(read_classes(labelled_root(p, name)), p.eval_classes)[0]


def _image_set(p: Run, name: str, split: str, saliency: str | None = None, skip: bool = False,
               transform: Any = None) -> ImageSet:
    """Images, with masks if ``saliency`` names some, of an unlabelled folder or of the VOC layout."""
    root = dataset_root(p, name)
    if not is_folder(root):
        return VOCSegmentation(root, split, saliency=saliency, skip_without_saliency=skip, transform=transform)
    images, output = (root / 'images').resolve(), Path(p.output_dir).resolve()
    if images in (output, *output.parents):
        raise UserError(f'output_dir {output} lies inside {images}, so that results would be taken for images; '
                        'choose another root_dir or output_dir.')
    masks = None if saliency is None else root / f'saliency_{saliency}'
    return FolderDataset(root / 'images', masks, split, p.seed, transform)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Batch what has one size; keep ground truth, masks, shapes and ids of any size as lists."""
    return {key: default_collate([s[key] for s in samples]) if isinstance(samples[0][key], torch.Tensor)
            else [s[key] for s in samples] for key in samples[0]}


def _start_worker(_: int) -> None:
    import cv2
    guard_worker()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _loader(p: Run, dataset: Dataset, batch_size: int, **kwargs: Any) -> DataLoader:
    # with a generator of its own a loader takes no number from the one that training draws from
    workers = min(p.num_workers, available_cores())
    return DataLoader(dataset, batch_size, num_workers=workers, persistent_workers=workers > 0,
                      pin_memory=reads_pinned(pick_device(p.device)), collate_fn=collate,
                      worker_init_fn=_start_worker, generator=torch.Generator(), **kwargs)


def _train_loader(p: Training, base: ImageSet, dataset: Dataset) -> tuple[DataLoader, SeededSampler]:
    if p.train_batch_size > len(base):
        raise UserError(f'train_batch_size {p.train_batch_size} is larger than the data set: {base.root.name} '
                        f'{base.split} has {len(base)} usable images; lower it or add images.')
    processes = distributed.world_size()
    if p.train_batch_size % processes:
        raise UserError(f'train_batch_size {p.train_batch_size} cannot be split over {processes} processes; take a '
                        'multiple of their number.')
    if p.cache == 'ram':
        log.info('cache: ram has no effect: images are read anew each time, in num_workers processes')
    sampler = SeededSampler(len(base), p.seed, p.train_batch_size, distributed.rank(), processes)
    return _loader(p, dataset, p.train_batch_size // processes, sampler=sampler, drop_last=True), sampler


def pretrain_loader(p: Pretrain, mean: Colour, std: Colour) -> tuple[DataLoader, SeededSampler]:
    """Pairs of views for pretraining; logs how many IDs have no image or mask.

    Args:
        mean, std: of the network's input, as in all loaders.

    Raises:
        UserError: the data set is missing or incomplete, or smaller than the batch.
    """
    base = _image_set(p, p.train_db_name, p.train_split, p.saliency, skip=True)
    log.info('Pretraining on %d images of %s %s; %d of its IDs have no image or no mask in %s',
             len(base), base.root.name, p.train_split, base.left_out, base.masks and base.masks.name)
    return _train_loader(p, base, PairDataset(base, ContrastiveView(mean, std, **p.augmentation_kwargs)))


def probe_set(p: Pretrain, mean: Colour, std: Colour) -> VOCSegmentation:
    """The labelled images of the probe, in order. Raises UserError for a data set without ground truth."""
    return VOCSegmentation(labelled_root(p, p.train_db_name), p.probe_split, semseg=True,
                           transform=EvaluationTransform(p.augmentation_kwargs.size, mean, std))


def linear_loader(p: LinearFinetune, mean: Colour, std: Colour) -> tuple[DataLoader, SeededSampler, list[str]]:
    """Augmented images with ground truth for the linear classifier, and their IDs; errors as ``pretrain_loader``."""
    base = VOCSegmentation(labelled_root(p, p.train_db_name), p.train_split, semseg=True,
                           transform=LinearTrainTransform(p.train_size, mean, std, p.border_label),
                           share=p.label_share, seed=p.label_seed, eval_classes=p.eval_classes)
    log.info('Training on %d images of %s %s (label_share %g)', len(base), p.train_db_name, p.train_split,
             p.label_share)
    return *_train_loader(p, base, SeededDataset(base)), base.ids


def _in_turn(p: Evaluation | TrainSaliency, base: ImageSet, originals: int | None = 0) -> DataLoader:
    if isinstance(base.transform, EvaluationTransform):
        base.transform.originals = frozenset(base.ids[:originals])
    # the batches that one process has, each taken by one process: each image comes up once, with the same neighbours
    share = [i for i in range(len(base)) if i // p.val_batch_size % distributed.world_size() == distributed.rank()]
    return _loader(p, base, p.val_batch_size, sampler=share)


def evaluation_loader(p: Evaluation, db_name: str, split: str, mean: Colour, std: Colour, saliency: str | None = None,
                      skip: bool = False, originals: int | None = 0) -> tuple[DataLoader, VOCSegmentation]:
    """All images of a split in order, with ground truth (and masks) at their own size; no image is dropped.

    Several processes take the batches in turn.

    Args:
        skip: leave out IDs without image or mask and log how many; otherwise they are an error.
        originals: how many of the first images travel with the batch as decoded, 'original'; None: all of them. The
            others are None there.
    """
    base = VOCSegmentation(labelled_root(p, db_name), split, semseg=True, saliency=saliency,
                           skip_without_saliency=skip, eval_classes=p.eval_classes,
                           transform=EvaluationTransform(p.val_size, mean, std))
    log.info('Evaluating on %d images of %s %s', len(base), db_name, split)
    return _in_turn(p, base, originals), base


def unlabelled_loader(p: Evaluation, db_name: str, split: str, mean: Colour, std: Colour, saliency: str | None = None,
                      skip: bool = False, originals: int | None = 0) -> tuple[DataLoader, ImageSet]:
    """The same of a split that needs no ground truth, of an unlabelled folder too."""
    base = _image_set(p, db_name, split, saliency, skip, EvaluationTransform(p.val_size, mean, std))
    log.info('%d images of %s %s', len(base), base.root.name, split)
    return _in_turn(p, base, originals), base


def masks_loader(p: TrainSaliency, view: Callable[[Sample], Sample]) -> tuple[DataLoader, SeededSampler]:
    """Random views of images with precomputed masks, for a saliency network; errors as ``pretrain_loader``."""
    base = FolderDataset(p.db_root / user_path(p.images), p.db_root / user_path(p.masks), transform=view)
    log.info('Training on %d images of %s with masks of %s', len(base), base.images, base.masks)
    return _train_loader(p, base, SeededDataset(base))


def masks_evaluation_loader(p: TrainSaliency) -> DataLoader:
    """Images with precomputed masks as they are stored, to score a saliency network."""
    base = FolderDataset(p.db_root / user_path(p['val_images']), p.db_root / user_path(p['val_masks']))
    log.info('Evaluating on %d images of %s with masks of %s', len(base), base.images, base.masks)
    return _in_turn(p, base)
