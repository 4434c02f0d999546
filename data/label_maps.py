"""Label maps: what their labels are called, and those that stand for the ground truth, of K-means or a network."""
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.files import keep_complete
from data.image_set import ImageSet
from data.images import Drawn, read_labels
from utils.run.errors import UserError
from utils.run.files import remove_stale, set_aside, write_text
from utils.run.log import progress
from utils.run.parallel import in_threads

log = logging.getLogger(__name__)
VOID = 255  # the ignore label
LABEL_NAMES = 'classes.yml'  # beside label maps that are no ground truth
UNFINISHED = 'unfinished'  # its entry 'maps' until all of them are written


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


@contextmanager
def whole_label_maps(folder: Path, ids: Sequence[str], names: Sequence[str]) -> Iterator[None]:
    """A block that writes the label maps ``ids`` of labels with ``names``: no earlier ones stay among them.

    Where the block ends early ``use_label_maps`` refuses those that are there. Raises UserError if one was not written.
    """
    named = partial(write_names, folder / LABEL_NAMES, names, labels=len(names))
    named(maps=UNFINISHED)  # first: of a kill from here on nothing is taken for whole, nor labels for classes
    remove_stale(folder, ())
    yield
    if lacking := [path for name in ids if not (path := folder / f'{name}.png').is_file()]:
        raise UserError(f'{lacking[0]} was written elsewhere; output_dir must be one folder that all machines share.')
    named()


def read_truth(path: Path, num_classes: int, table: np.ndarray, named: Path) -> Drawn:
    """Class ids of a file, by ``table``. Raises UserError for one that is neither 255 nor one of those ``named``."""
    drawn = read_labels(path)
    wrong = np.setdiff1d(drawn.values, (*range(num_classes), VOID))
    if wrong.size:
        raise UserError(f'ground truth {path} holds class id {wrong[0]}, outside 0..{num_classes - 1} '
                        f'and 255 (ignore); fix the file or list the class in {named}.')
    return drawn._replace(values=table[drawn.values])


def use_label_maps(dataset: ImageSet, folder: Path, num_labels: int, table: np.ndarray) -> None:
    """Let label maps stand for the ground truth of a data set, whose IDs without a label in them are left out.

    ``table`` (256,): the class of each label. Sets ``digest``. Raises UserError for unfinished label maps, and where
    none has a label but background, and what ``ImageSet.load`` raises for one of another shape than its image.
    """
    named = folder / LABEL_NAMES
    if named.is_file() and read_texts(named).get('maps') == UNFINISHED:
        raise UserError(f'the label maps in {folder} are unfinished; run the script that makes them again.')
    read = partial(read_truth, num_classes=num_labels, table=table, named=named)
    dataset.truth = folder
    dataset.layers.insert(0, ('semseg', folder, read))
    files = {name: [Path(f'{name}.png')] for name in dataset.ids}
    dataset.ids = keep_complete(folder, files, f'images in {dataset.images} have no label map in {folder}',
                                'make them with pseudo_labels.py')

    def look(index: int) -> tuple[bytes, bool]:
        labels, content = dataset.load(index)['semseg'], (folder / f'{dataset.ids[index]}.png').read_bytes()
        labels = labels[labels != VOID]
        return hashlib.sha256(content).digest() if labels.size else b'', bool(labels.any())

    looked_at = in_threads(look, progress(range(len(dataset)), 'looking at the label maps'))
    found = {name: of_map for name, of_map in zip(dataset.ids, looked_at, strict=True) if of_map[0]}
    plain = sum(not objects for _, objects in found.values())
    if plain == len(found):
        raise UserError(f'none of the {len(dataset)} label maps in {folder} has a label but background; check them.')
    if len(found) < len(dataset):
        log.info('%d label maps in %s have no label; left out', len(dataset) - len(found), folder)
    if plain:
        log.info('%d label maps in %s are background alone, and are learnt from', plain, folder)
    dataset.ids, names = list(found), '\n'.join(found).encode(errors='surrogateescape')
    classes = table[table != VOID]
    merged = b'' if (classes == range(len(classes))).all() else classes.tobytes()  # labels of one name
    dataset.digest = hashlib.sha256(b''.join(digest for digest, _ in found.values()) + names + merged).hexdigest()
