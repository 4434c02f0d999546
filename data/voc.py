"""Images with their ground truth and object masks, in the VOC folder layout."""
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.files import keep_complete
from data.image_set import ImageSet, random_rank
from data.images import Drawn, palette_conflict, read_labels
from utils.run.errors import UserError, name_some
from utils.run.files import set_aside, write_text
from utils.run.log import progress
from utils.run.parallel import in_threads

VOC_CLASSES = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
               'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
               'tvmonitor')
VOID = 255  # the ignore label
PALETTES = 32  # of the ground truth, spread over the list, that are compared
DEVKIT = ('JPEGImages', 'ImageSets')
LABEL_NAMES = 'classes.yml'  # beside label maps that are no ground truth
UNFINISHED = 'unfinished'  # its entry 'maps' until all of them are written, then ``maps_digest``
ONE_A_LINE = 'an ID is the name of its image below images/ without .jpg, one a line'
log = logging.getLogger(__name__)


def read_texts(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, {} if it has none, where 'no' and 3 are text too. Raises UserError for a damaged one."""
    try:
        content = yaml.load(path.read_bytes(), yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f'{path} is not valid YAML in UTF-8 ({str(error).splitlines()[0]}); fix it.') from error
    return content if isinstance(content, dict) else {}


def read_names(path: Path, count: int | str | None = None) -> tuple[str, ...] | None:
    """The list ``classes`` of ``read_texts``, of ``count`` names or as many as ``labels`` says; None without a file."""
    if not path.is_file():
        return None
    content = read_texts(path)
    names, count = content.get('classes'), count or content.get('labels')
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names) \
            or not 0 < len(names) <= VOID or count not in (None, len(names), str(len(names))):
        raise UserError(f'{path} must hold "classes:" with {count or "a list of"} names, background first; fix it.')
    return tuple(names)


def write_names(path: Path, names: Sequence[str], **others: Any) -> None:
    """Write what ``read_names`` reads, and others; a file of other names, which may be a user's, is kept beside it."""
    text = yaml.safe_dump({'classes': list(names)})
    if path.is_file() and not path.read_bytes().endswith(text.encode()):
        log.info('The names in %s are written anew; those of before: %s', path, set_aside(path))
    write_text(path, yaml.safe_dump(others) + text)


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


def label_digest(path: Path, labels: np.ndarray) -> tuple[bytes, bool]:
    """Of the file of a label map, b'' if all of its labels are the ignore label; whether one is not the background."""
    labels = labels[labels != VOID]
    return hashlib.sha256(path.read_bytes()).digest() if labels.size else b'', bool(labels.any())


def maps_digest(folder: Path, ids: Sequence[str]) -> str:
    """Of all label maps of a folder."""
    return hashlib.sha256(b''.join(hashlib.sha256((folder / f'{name}.png').read_bytes()).digest()
                                   for name in ids)).hexdigest()


def keep_labelled(dataset: ImageSet, digests: Iterable[tuple[bytes, bool]], table: np.ndarray) -> None:
    """Keep the images with a ``label_digest``, and that of all. Raises UserError if none is of more than background.

    ``table`` (256,): the class of each label. Nor are label maps taken that ``pseudo_labels.py`` has not finished.
    """
    assert dataset.truth is not None
    path = dataset.truth / LABEL_NAMES
    maps = str(read_texts(path).get('maps', '')) if path.is_file() else ''
    if maps == UNFINISHED:
        raise UserError(f'the label maps in {dataset.truth} are unfinished; run pseudo_labels.py again.')
    found = {name: of_map for name, of_map in zip(dataset.ids, digests, strict=True) if of_map[0]}
    if not any(objects for _, objects in found.values()):
        raise UserError(f'none of the {len(dataset)} label maps in {dataset.truth} has a label but background; check '
                        'them.')
    if len(found) < len(dataset):
        log.info('%d label maps in %s have no label; left out', len(dataset) - len(found), dataset.truth)
    dataset.ids, names = list(found), '\n'.join(found).encode(errors='surrogateescape')
    classes = table[table != VOID]
    merged = b'' if (classes == range(len(classes))).all() else classes.tobytes()  # labels of one name
    dataset.digest = hashlib.sha256(b''.join(digest for digest, _ in found.values()) + names + merged).hexdigest()
    dataset.labelling = [maps, merged.hex()]


def read_truth(path: Path, num_classes: int, table: np.ndarray, named: Path) -> Drawn:
    """Class ids of a file, by ``table``. Raises UserError for one that is neither 255 nor one of those ``named``."""
    drawn = read_labels(path)
    wrong = np.setdiff1d(drawn.values, (*range(num_classes), VOID))
    if wrong.size:
        raise UserError(f'ground truth {path} holds class id {wrong[0]}, outside 0..{num_classes - 1} '
                        f'and 255 (ignore); fix the file or list the class in {named}.')
    return drawn._replace(values=table[drawn.values])


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
        self.classes, self._table = scored_classes(stored, eval_classes)
        if self.masks is not None and skip_without_saliency:
            listed = len(self.ids)
            self._keep('image or no saliency mask', self.images, self.masks, skip=True)
            self.left_out = listed - len(self.ids)
        self._keep('image', self.images)
        if semseg:
            self.truth = label_maps or root / ('SegmentationClassAug' if split == 'trainaug' else 'SegmentationClass')
            read = partial(read_truth, num_classes=len(stored), table=self._table,
                           named=label_maps / LABEL_NAMES if label_maps and names else root / 'dataset.yml')
            self.layers.insert(0, ('semseg', self.truth, read))
            self._keep('ground truth', self.truth, skip=label_maps is not None)
            if label_maps is not None:
                files = [label_maps / f'{name}.png' for name in self.ids]
                keep_labelled(self, in_threads(lambda path: label_digest(path, read(path).values),
                                               progress(files, 'looking at the label maps', len(files))), self._table)
                if names is None:
                    log.warning('%s has no %s: labels are taken for the classes of %s in their order', label_maps,
                                LABEL_NAMES, root)
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
