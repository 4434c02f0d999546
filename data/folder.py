"""An unlabelled image folder as a data set: no ground truth, no lists."""
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.files import drop_duplicates, find_files, find_images, keep_complete
from data.image_set import ImageSet, random_rank
from data.images import ImageFileError
from data.label_maps import LABEL_NAMES, VOID, read_names, use_label_maps
from data.voc import check_layout
from utils.run.errors import UserError, name_some
from utils.run.log import progress
from utils.run.parallel import in_threads

log = logging.getLogger(__name__)
SPLITS = ('all', 'train', 'val')
VAL_SHARE = 0.1
DAMAGED_SHARE, DAMAGED_FILES = 0.1, 10  # of a split may be damaged before it is an error: whichever is more


def is_folder(root: Path) -> bool:
    """Whether a data set is an unlabelled image folder: it has neither lists of IDs nor ground truth."""
    return root.is_dir() and not (root / 'sets').exists() and not (root / 'SegmentationClass').exists()


def choose_split(names: Sequence[Path], split: str, seed: int) -> list[Path]:
    """The images of a split: 'all', or a random tenth (at least one), 'val', and the others, 'train'.

    A few new images move few of the others. Raises UserError for another split, or one without an image.
    """
    if split not in SPLITS:
        raise UserError(f'an unlabelled image folder has no split {split}; choose {", ".join(SPLITS)}, or add sets/.')
    drawn = sorted(names, key=lambda name: random_rank(f'{seed} {name.as_posix()}'))
    val = set(drawn[:max(1, round(VAL_SHARE * len(names)))])
    chosen = [name for name in names if split == 'all' or (name in val) == (split == 'val')]
    if not chosen:
        raise UserError(f'{len(names)} images are too few for split {split}; choose split all.')
    return chosen


class FolderDataset(ImageSet):
    """Photographs in a folder at any depth, with masks (PNG) in another at the same place if these are to be read.

    Every file is decoded once at the start: damaged ones are named in the log and left out, as are images without a
    mask. ``split`` and ``seed`` are those of ``choose_split``. Raises UserError if a folder is missing, no image has a
    mask, all masks are empty or full, or more than a tenth of the files (and more than 10) are damaged or are masks of
    another shape than their image's. With ``label_maps``, which name their classes, as ``VOCSegmentation`` with them.
    """

    drawn_on_stored = False

    def __init__(self, images: Path, masks: Path | None = None, split: str = 'all', seed: int = 0,
                 label_maps: Path | None = None) -> None:
        super().__init__(images, split, masks)
        if not images.is_dir():
            check_layout(images.parent)
            raise UserError(f'folder {images} does not exist; put the images there, or correct the path.')
        names, duplicates = drop_duplicates(find_images(images))
        if duplicates:
            log.info('%d images left out, whose names differ from those of others in the suffix alone: %s',
                     len(duplicates), name_some(sorted(map(str, duplicates))))
        chosen = choose_split(names, split, seed)
        self.files = {name.with_suffix('').as_posix(): name for name in chosen}  # by ID
        self.ids = list(self.files) if masks is None else self._with_mask(masks, names)
        labels = None if label_maps is None else read_names(label_maps / LABEL_NAMES)
        if label_maps is not None and labels is None:
            raise UserError(f'{label_maps / LABEL_NAMES} is missing, which names the labels of an unlabelled image '
                            'folder; make the label maps with pseudo_labels.py.')
        self.ids = self._sound()
        if label_maps is not None and labels is not None:
            self.classes = tuple(dict.fromkeys(labels))  # labels of one name are one class
            table = np.full(256, VOID, np.uint8)
            table[:len(labels)] = [*map(self.classes.index, labels)]
            use_label_maps(self, label_maps, len(labels), table)
        self.left_out = len(chosen) - len(self)

    def image_path(self, index: int) -> Path:
        return self.images / self.files[self.ids[index]]

    def _with_mask(self, masks: Path, every: Sequence[Path]) -> list[str]:
        if not masks.is_dir():
            raise UserError(f'folder {masks} does not exist; make the masks with saliency/predict.py --images '
                            f'{self.images} --output {masks} --method unsupervised.')
        expected = {name.with_suffix('.png') for name in every}
        if strays := {path for path in find_files(masks) if path.suffix == '.png'} - expected:
            log.info('%d masks in %s are of no image: %s', len(strays), masks, name_some(sorted(map(str, strays))))
        return keep_complete(masks, {name: [Path(f'{name}.png')] for name in self.files},
                             f'images in {self.images} have no mask in {masks}',
                             'a mask needs the relative path of its image with .png')

    def _sound(self) -> list[str]:
        """The IDs of images that can be read, with masks of their shape."""
        count = len(self)
        problems_of = in_threads(self._problem, progress(range(count), 'looking at the images'))
        found = dict(zip(self.ids, problems_of, strict=True))
        flat = sum(problem is None for problem in found.values())
        if flat and '' not in found.values():
            raise UserError(f'all {flat} masks in {self.masks} are empty or full: nothing can be learnt; check them.')
        if flat:
            log.info('%d of %d masks in %s are empty or full', flat, count, self.masks)
        problems = {name: problem for name, problem in found.items() if problem}
        if problems:
            listed = name_some([f'{self.files[name]} ({problem})' for name, problem in problems.items()], 3)
            text = f'{len(problems)} of {count} images in {self.images} cannot be used'
            if len(problems) == count or len(problems) > max(DAMAGED_FILES, DAMAGED_SHARE * count):
                raise UserError(f'{text}: {listed}; replace the files or take them out, and make the masks again.')
            log.info('%s and are left out: %s', text, listed)
        return [name for name in self.ids if name not in problems]

    def _problem(self, index: int) -> str | None:
        """Why an image cannot be used; '' if it can, None if its mask is empty or full."""
        try:
            sample = self.load(index)
        except ImageFileError as error:
            return error.reason
        mask = sample.get('sal')
        return '' if mask is None or (mask.any() and not mask.all()) else None
