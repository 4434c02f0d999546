"""Images with their ground truth and object masks, in the VOC folder layout."""
import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.files import keep_complete
from data.image_set import ImageSet, random_rank
from data.images import palette_conflict
from data.label_maps import LABEL_NAMES, VOID, read_names, read_truth, use_label_maps
from utils.run.errors import UserError, name_some

VOC_CLASSES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
               'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
               'tvmonitor')
PALETTES = 32  # of the ground truth, spread over the list, that are compared
DEVKIT = ('JPEGImages', 'ImageSets')
ONE_A_LINE = 'an ID is the name of its image below images/ without .jpg, one a line'
log = logging.getLogger(__name__)


def read_classes(root: Path) -> tuple[str, ...]:
    """``classes`` of a data set's dataset.yml, or VOC's 21 when it has none. Raises UserError for another content."""
    classes = read_names(root / 'dataset.yml') or VOC_CLASSES
    if not len(set(classes)) == len(classes) < VOID:
        raise UserError(f'{root / "dataset.yml"} names a class twice, or {VOID} and more; give distinct names.')
    return classes


def check_names(names: Sequence[str], classes: Sequence[str], key: str) -> None:
    """Raises UserError unless the names that the config gives under ``key`` are classes of the data set."""
    if unknown := sorted(set(names) - set(classes)):
        raise UserError(f'{key} names {", ".join(unknown)}, which the data set does not have; its classes are '
                        f'{", ".join(classes)}.')


def scored_classes(classes: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The background, class 0, and the classes of ``names`` (none: all), and a lookup table (256,) uint8 to their ids.

    There all others are 255. Raises UserError for an unknown name.
    """
    check_names(names, classes, 'eval_classes')
    kept = [i for i, name in enumerate(classes) if i == 0 or name in names or not names]
    table = np.full(256, VOID, np.uint8)
    table[kept] = range(len(kept))
    return tuple(classes[i] for i in kept), table


def read_list(path: Path) -> list[str]:
    """The lines of a list of IDs that are neither empty nor a comment. Raises UserError for another encoding."""
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not in UTF-8 (byte {error.start}); save it in that encoding.') from error
    text = os.fsdecode(text.encode())  # in a locale that is not UTF-8 files have names of other letters
    lines = [line.strip() for line in text.split('\n') if not line.startswith('#')]
    return [line for line in lines if line]


def read_ids(root: Path, split: str) -> list[str]:
    """The image IDs of sets/<split>.txt: one a line, blanks within it kept; a line that begins with # is a comment.

    Raises UserError for a list that is missing, empty, names an image twice or holds what is no path below images/.
    """
    if not root.is_dir():
        raise UserError(f'data set folder {root} does not exist; set db_root in the env config to the folder that '
                        f'holds {root.name}/.')
    check_layout(root)
    path = root / 'sets' / f'{split}.txt'
    what = f'list of image IDs {path}'
    if not path.is_file():
        raise UserError(f'{what} does not exist; choose a split that has one, or add it.')
    ids = read_list(path)
    if not ids:
        raise UserError(f'{what} is empty; add one ID a line.')
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise UserError(f'{what} names {name_some(twice)} more than once; take the repetitions out.')
    if outside := [name for name in ids if Path(name).is_absolute() or '..' in Path(name).parts]:
        raise UserError(f'{what} holds "{outside[0]}", which is no image below images/; {ONE_A_LINE}.')
    return ids


def check_layout(root: Path) -> None:
    """Raises UserError for a folder that has the layout of the VOC devkit."""
    if not (root / 'images').exists() and any((root / name).is_dir() for name in DEVKIT):
        raise UserError(f'{root} has the layout of the VOC devkit ({" and ".join(DEVKIT)}); rename or link JPEGImages/ '
                        'as images/ and ImageSets/Segmentation/ as sets/.')


def random_share(ids: Sequence[str], share: float, seed: int) -> list[str]:
    """round(share * number of IDs) random image IDs, in their order; share in (0, 1]. Raises UserError for none.

    The same ones on every machine, whatever the order of the list, and a smaller share is part of a larger one.
    """
    count = round(share * len(ids))
    if count == 0:
        raise UserError(f'label_share {share} of {len(ids)} images is less than one image; raise it.')
    kept = set(sorted(ids, key=lambda name: random_rank(f'{seed}/{name}'))[:count])
    return [name for name in ids if name in kept]


class VOCSegmentation(ImageSet):
    """Photographs with masks: ``root/{images,SegmentationClass,SegmentationClassAug,saliency_*,sets}``.

    With ``semseg`` a sample has its ground truth (of SegmentationClassAug for trainaug), 'semseg', (H, W) uint8 class
    ids of ``scored_classes``, 255 = ignore; with ``saliency`` masks, of saliency_<saliency>/. A missing file is a
    UserError, but ``skip_without_saliency`` leaves out IDs without image or mask. Only IDs of ``random_share`` need
    files. ``label_maps`` are another ground truth, named by its classes.yml; IDs without a label there are left out.
    """

    def __init__(self, root: Path, split: str, semseg: bool = False, saliency: str | None = None,
                 skip_without_saliency: bool = False, share: float = 1, seed: int = 0,
                 eval_classes: Sequence[str] = (), label_maps: Path | None = None) -> None:
        super().__init__(root / 'images', split, None if saliency is None else root / f'saliency_{saliency}')
        self.ids = random_share(read_ids(root, split), share, seed)
        names = None if label_maps is None else read_names(label_maps / LABEL_NAMES)
        stored = names or read_classes(root)
        self.classes, table = scored_classes(stored, eval_classes)
        if self.masks is not None and skip_without_saliency:
            listed = len(self.ids)
            self._keep('image or no saliency mask', self.images, self.masks, skip=True)
            self.left_out = listed - len(self.ids)
        self._keep('image', self.images)
        if label_maps is not None:
            if names is None:
                log.warning('%s has no %s: labels are taken for the classes of %s in their order', label_maps,
                            LABEL_NAMES, root)
            use_label_maps(self, label_maps, len(stored), table)
        elif semseg:
            self.truth = root / ('SegmentationClassAug' if split == 'trainaug' else 'SegmentationClass')
            self.layers.insert(0, ('semseg', self.truth, partial(
                read_truth, num_classes=len(stored), table=table, named=root / 'dataset.yml')))
            self._keep('ground truth', self.truth)
            step = max(1, len(self.ids) // PALETTES)
            if conflict := palette_conflict([self.truth / f'{name}.png' for name in self.ids[::step]]):
                log.warning('the palettes of the ground truth in %s differ: %s; if the same ids do not mean the same '
                            'classes, save the files anew with one palette', self.truth, conflict)
        if self.masks is not None:
            self._keep('saliency mask', self.masks)

    def _keep(self, what: str, *folders: Path, skip: bool = False) -> None:
        """Keep the IDs that have their files in these folders."""
        files = {name: [Path(folder.name if folder.parent == self.root else folder,
                             f'{name}{".jpg" if folder == self.images else ".png"}') for folder in folders]
                 for name in self.ids}
        self.ids = keep_complete(self.root, files, f'IDs of {self.split} have no {what} in {folders[-1]}',
                                 f'add or rename the files, or correct the list: {ONE_A_LINE}', skip)
