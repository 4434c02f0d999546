"""Images with their ground truth and saliency masks, in the VOC folder layout."""
from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.data import Dataset

from data.cache import SampleCache
from data.files import lies_instead
from data.images import Drawn, Photograph, fit_to_photograph, palette_conflict, read_labels, read_mask, read_photograph
from utils.run.errors import UserError, name_some

VOC_CLASSES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
               'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
               'tvmonitor')
VOID = 255
PALETTES = 32  # of the ground truth, spread over the list, that are compared
DEVKIT = ('JPEGImages', 'ImageSets')
ONE_A_LINE = 'an ID is the name of its image below images/ without .jpg, one a line'
Sample = dict[str, Any]
log = logging.getLogger(__name__)


def _read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises UserError for another encoding."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not in UTF-8 (byte {error.start}); save it in that encoding.') from error


def read_classes(root: Path) -> tuple[str, ...]:
    """Class names of a data set: ``classes`` of its dataset.yml, or VOC's 21 when it has none.

    Raises:
        UserError: dataset.yml is not in UTF-8, or has no list of distinct names.
    """
    path = root / 'dataset.yml'
    if not path.is_file():
        return VOC_CLASSES
    try:
        content = yaml.load(_read_text(path), yaml.BaseLoader)  # all text: 'no' and 'on' are names
    except yaml.YAMLError as error:
        raise UserError(f'{path} is not valid YAML ({str(error).splitlines()[0]}); fix it.') from error
    classes = content.get('classes') if isinstance(content, dict) else None
    if (not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes)
            or not 0 < len(set(classes)) == len(classes) < VOID):
        raise UserError(f'{path} must hold "classes: [background, ...]", a list of distinct names, background first.')
    return tuple(classes)


def check_names(names: Sequence[str], classes: Sequence[str], key: str) -> None:
    """Raises UserError when the names that the config gives under ``key`` are not all classes of the data set."""
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise UserError(f'{key} names {", ".join(unknown)}, which the data set does not have; its classes are '
                        f'{", ".join(classes)}.')


def scored_classes(classes: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that are left when only ``names`` and the background, class 0, are scored.

    Args:
        names: in any order, with or without the background; none of them keeps all classes.

    Returns:
        Their names, in the data set's order, and a table (256,) uint8 from stored id to id: 255 for all others.

    Raises:
        UserError: a name is no class of the data set.
    """
    check_names(names, classes, 'eval_classes')
    kept = [i for i, name in enumerate(classes) if i == 0 or name in names or not names]
    table = np.full(256, VOID, np.uint8)
    table[kept] = range(len(kept))
    return tuple(classes[i] for i in kept), table


def read_list(path: Path) -> list[str]:
    """The lines of a list of IDs that are neither empty nor a comment, as this system's file names. Errors as above."""
    text = os.fsdecode(_read_text(path).encode())  # in a locale that is not UTF-8 files have names of other letters
    lines = [line.strip() for line in text.split('\n') if not line.startswith('#')]
    return [line for line in lines if line]


def read_ids(root: Path, split: str) -> list[str]:
    """The image IDs of sets/<split>.txt: one a line, blanks within it kept; a line that begins with # is a comment.

    Raises:
        UserError: the folder or the list is missing; the list is empty, not in UTF-8, names an image twice or holds
            what is no path below images/.
    """
    if not root.is_dir():
        raise UserError(f'data set folder {root} does not exist; set db_root in the env config to the folder that '
                        f'holds {root.name}/.')
    check_layout(root)
    path = root / 'sets' / f'{split}.txt'
    if not path.is_file():
        raise UserError(f'list of image IDs {path} does not exist; choose a split that has one, or add it.')
    ids = read_list(path)
    if not ids:
        raise UserError(f'list of image IDs {path} is empty; add one ID a line.')
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f'list of image IDs {path} names {name_some(twice)} more than once, and each image counts '
                        'once; take the repetitions out.')
    for name in ids:
        if Path(name).is_absolute() or '..' in Path(name).parts:
            raise UserError(f'list of image IDs {path} holds "{name}", which is no image below images/; {ONE_A_LINE}.')
    return ids


def check_layout(root: Path) -> None:
    """Raises UserError for a folder that has the layout of the VOC devkit."""
    if not (root / 'images').exists() and any((root / name).is_dir() for name in DEVKIT):
        raise UserError(f'{root} has the layout of the VOC devkit ({" and ".join(DEVKIT)}); rename or link JPEGImages/ '
                        'as images/ and ImageSets/Segmentation/ as sets/.')


def random_share(ids: Sequence[str], share: float, seed: int) -> list[str]:
    """A fixed random share of image IDs, in their order.

    The IDs of smallest SHA-256 of 'seed/ID' are kept: the same ones on every machine, whatever the order of the
    list, and a smaller share is part of a larger one.

    Args:
        share: in (0, 1]; round(share * number of IDs) are kept.

    Raises:
        UserError: that is no image.
    """
    count = round(share * len(ids))
    if count == 0:
        raise UserError(f'label_share {share} of {len(ids)} images is less than one image; raise it.')
    kept = set(sorted(ids, key=lambda name: hashlib.sha256(os.fsencode(f'{seed}/{name}')).digest())[:count])
    return [name for name in ids if name in kept]


class VOCSegmentation(Dataset):
    """Photographs with masks: ``root/{images,SegmentationClass,SegmentationClassAug,saliency_*,sets}``.

    Args:
        root: the data set's folder.
        split: list of IDs, sets/<split>.txt.
        semseg: also read the ground truth (SegmentationClassAug for trainaug, else SegmentationClass).
        saliency: also read masks from saliency_<saliency>/.
        skip_without_saliency: leave out IDs without image or mask and count them in ``left_out``;
            otherwise they are an error.
        transform: applied to each sample.
        share, seed: keep this share of the IDs, see ``random_share``; the others need no files.
        eval_classes: the classes of the ground truth besides background, others are void, see ``scored_classes``.

    A sample is a dict: 'image' (H, W, 3) uint8, as it is seen; 'semseg' (H, W) uint8 with class ids, 255 = void;
    'sal' (H, W) uint8 in {0, 1}; 'id'. Ground truth and masks come on the image's pixels, see ``data.images``:
    where neither their size nor a note tells, they were drawn on the image as it is stored, not turned by its EXIF.

    Raises:
        UserError: a folder, list, image or mask is missing (the first few are named, the rest counted).
    """

    def __init__(self, root: Path, split: str, semseg: bool = False, saliency: str | None = None,
                 skip_without_saliency: bool = False, transform: Callable[[Sample], Sample] | None = None,
                 share: float = 1, seed: int = 0, eval_classes: Sequence[str] = ()) -> None:
        self.root, self.split, self.transform = root, split, transform
        self.ids = random_share(read_ids(root, split), share, seed)
        self.stored_classes = read_classes(root)
        self.classes, self._table = scored_classes(self.stored_classes, eval_classes)
        self.semseg_folder = 'SegmentationClassAug' if split == 'trainaug' else 'SegmentationClass'
        self.saliency_folder = f'saliency_{saliency}'
        self.semseg, self.saliency = semseg, saliency is not None
        self.left_out = 0
        self.cache: SampleCache | None = None  # of ``load``
        if self.saliency and skip_without_saliency:
            missing = self._missing(self.saliency_folder, '.png') | self._missing('images', '.jpg')
            self.left_out = len(missing)
            if self.left_out == len(self.ids):
                raise UserError(f'none of the {len(self.ids)} IDs of {split} has an image in {root / "images"} and '
                                f'a mask in {root / self.saliency_folder}: there is no {self._listed(missing)}; check '
                                f'both folders, and the list: {ONE_A_LINE}.')
            if missing:
                log.info('%d of %d IDs of %s %s are left out: there is no %s', len(missing), len(self.ids), root.name,
                         split, self._listed(missing))
            self.ids = [name for name in self.ids if name not in missing]
        self._require('images', '.jpg', 'image')
        if semseg:
            self._require(self.semseg_folder, '.png', 'ground truth')
            step = max(1, len(self.ids) // PALETTES)
            conflict = palette_conflict([root / self.semseg_folder / f'{name}.png' for name in self.ids[::step]])
            if conflict:
                log.warning('the palettes of the ground truth in %s differ: %s; if the same ids do not mean the same '
                            'classes, save the files anew with one palette', root / self.semseg_folder, conflict)
        if self.saliency:
            self._require(self.saliency_folder, '.png', 'saliency mask')

    def _missing(self, folder: str, suffix: str) -> dict[str, Path]:
        """The IDs without a file in a folder, each with the path that was looked for below the root."""
        if not (self.root / folder).is_dir():
            raise UserError(f'folder {self.root / folder} does not exist; the data set layout needs it.')
        paths = {name: Path(folder, name + suffix) for name in self.ids}
        places = {path.parent: self.root / path.parent for path in paths.values()}
        present = {parent: {path.name for path in place.iterdir()} if place.is_dir() else set()
                   for parent, place in places.items()}
        return {name: path for name, path in paths.items() if path.name not in present[path.parent]}

    def _listed(self, missing: dict[str, Path]) -> str:
        """The first few missing files, each with what lies there instead, and how many are left."""
        return name_some([f'{path}{lies_instead(self.root / path) if i < 5 else ""}'
                          for i, path in enumerate(missing.values())])

    def _require(self, folder: str, suffix: str, what: str) -> None:
        missing = self._missing(folder, suffix)
        if missing:
            raise UserError(f'{len(missing)} of {len(self.ids)} IDs of {self.split} have no {what} in '
                            f'{self.root / folder}: there is no {self._listed(missing)}; add or rename the files, or '
                            f'correct the list: {ONE_A_LINE}.')

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        sample = self.load(index)
        return sample if self.transform is None else self.transform(sample)

    def image_path(self, index: int) -> Path:
        return self.root / 'images' / f'{self.ids[index]}.jpg'

    def load(self, index: int) -> Sample:
        """Read one sample, without the transform. Raises UserError for a corrupt file or a class id out of range."""
        if self.cache is not None:
            return self.cache[index]
        name, photograph = self.ids[index], read_photograph(self.image_path(index))
        sample: Sample = {'id': name, 'image': photograph.pixels}
        if self.semseg:
            path = self.root / self.semseg_folder / f'{name}.png'
            sample['semseg'] = self._table[self._fit(self._read_semseg(path), photograph, path)]
        if self.saliency:
            path = self.root / self.saliency_folder / f'{name}.png'
            sample['sal'] = self._fit(read_mask(path), photograph, path)
        return sample

    def _read_semseg(self, path: Path) -> Drawn:
        drawn = read_labels(path)
        wrong = np.setdiff1d(drawn.values, (*range(len(self.stored_classes)), VOID))
        if wrong.size:
            raise UserError(f'ground truth {path} holds class id {wrong[0]}, outside 0..{len(self.stored_classes) - 1} '
                            'and 255 (void); fix the file or list the class in dataset.yml.')
        return drawn._replace(values=drawn.values.astype(np.uint8))

    @staticmethod
    def _fit(drawn: Drawn, photograph: Photograph, path: Path) -> np.ndarray:
        return fit_to_photograph(drawn, photograph, path, stored=True)
