"""Object masks in COCO's formats: annotation files, and the results of a detector."""
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.run.errors import UserError, name_some
from utils.run.files import write_text

log = logging.getLogger(__name__)
TOLERANCE = 2  # of a simplified outline, pixels
OUTLINES, MASKS = ('skimage.measure', 'scikit-image'), ('pycocotools.mask', 'pycocotools')  # optional libraries
OURS = '], "categories": [{"supercategory": "", "id": 0, "name": ""}]}'  # the end of a file of ``write_coco``
Entry = dict[str, Any]
Instances = dict[str, list[Entry]]  # of each image, by its name without suffix


def library(module: str, package: str) -> Any:
    """OUTLINES or MASKS. Raises UserError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f'COCO files need {package}, which is not installed: pip install {package}') from error


def polygons(mask: np.ndarray) -> list[list[float]]:
    """The closed outlines of a mask (H, W) bool of three points or more, each x, y, x, y, ... in pixels."""
    measure = library(*OUTLINES)
    outlines = [measure.approximate_polygon(outline - 1, TOLERANCE)  # 1: the padding, within which all are closed
                for outline in measure.find_contours(np.pad(mask, 1).astype(np.uint8), 0.5)]
    return [np.maximum(outline[:, ::-1], 0).ravel().tolist() for outline in outlines if len(outline) >= 3]


def box_of(mask: np.ndarray) -> list[float]:
    """x, y, width, height in pixels of a mask (H, W) bool."""
    return [float(value) for value in cv2.boundingRect(mask.astype(np.uint8))]


def box_iou(box: Sequence[float], others: Sequence[Sequence[float]]) -> np.ndarray:
    """(N,) IoU of a box x, y, width, height with N others."""
    return library(*MASKS).iou(np.array([box], float), np.array(others, float), [0] * len(others))[0]


def annotation(mask: np.ndarray) -> Entry | None:
    """A mask (H, W) bool as an entry of 'annotations', without its ids; None if it has no outline."""
    outlines, (height, width) = polygons(mask), mask.shape
    return {'score': 1.0, 'category_id': 0, 'iscrowd': 0, 'area': int(mask.sum()), 'bbox': box_of(mask),
            'segmentation': outlines, 'width': width, 'height': height} if outlines else None


def outline_objects(objects: np.ndarray) -> tuple[int, int, list[Entry | None]]:
    """Object numbers (H, W), 0 outside: H, W and the ``annotation`` of each."""
    height, width = objects.shape
    return height, width, [annotation(objects == number) for number in np.unique(objects[objects > 0])]


def require_ours(path: Path) -> None:
    """Raises UserError for a file that ``write_coco`` has not written, and would overwrite."""
    end = b''
    if path.is_file():
        with path.open('rb') as file:  # which may be gigabytes
            file.seek(max(0, path.stat().st_size - len(OURS)))
            end = file.read()
    if path.exists() and end != OURS.encode():
        raise UserError(f'{path} is a folder or a file of something else; give the name of a new file.')


def write_coco(path: Path, images: Iterable[tuple[str, int, int, list[Entry | None]]]) -> list[str]:
    """Write masks of one category: names of images, each with its ``outline_objects``. They are read twice, not held.

    Gives the names of images with a mask that is not there, since it has no outline.
    """
    lacking = []

    def parts() -> Iterator[str]:
        yield '{"images": ['
        for image_id, (name, height, width, _) in enumerate(images):
            image = {'file_name': name, 'height': height, 'width': width, 'id': image_id}
            yield ', ' * (image_id > 0) + json.dumps(image)
        yield '], "annotations": ['
        count = 0
        for image_id, (name, _, _, entries) in enumerate(images):
            for entry in filter(None, entries):
                yield ', ' * (count > 0) + json.dumps(entry | {'id': count, 'image_id': image_id})
                count += 1
            if None in entries:
                lacking.append(name)
        yield OURS

    write_text(path, parts())
    return lacking


def read_mask(entry: Entry) -> tuple[Any, np.ndarray]:
    """The mask of an entry, polygons or run lengths: as pycocotools has it, and (height, width) bool.

    Raises UserError for anything else.
    """
    api, found = library(*MASKS), entry['segmentation']
    try:
        if isinstance(found, list):
            found = api.merge(api.frPyObjects(found, entry['height'], entry['width']))
        elif not isinstance(found['counts'], (str, bytes)):
            found = api.frPyObjects(found, *found['size'])
        mask = api.decode(found)
        if mask.sum() != api.area(found):
            raise ValueError('damaged run lengths')
    except Exception as error:  # pycocotools raises what it likes
        raise UserError(f'a mask of image {entry["image_id"]} is no polygon and no run lengths ({error}); make the '
                        'results again, with masks.') from error
    return found, mask.astype(bool)


def read_json(path: Path) -> Any:
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_text(encoding='utf-8'))
    raise UserError(f'{path} is missing or no JSON; give a COCO file.')


def read_instances(path: Path, categories: dict[int, str] | None = None,
                   annotations: Path | None = None) -> tuple[Instances, dict[int, str]]:
    """The objects of images, in the order of their ids, the best first, crowds last; and the names of the categories.

    ``path``: an annotation file (no score is 1), or a detector's results on the images of ``annotations``. Raises
    UserError for files of another kind, no object, an image named twice or not at all, other categories, bad scores.
    """
    content = named = read_json(path)
    source, names = path, categories or {}
    try:
        if isinstance(content, dict):
            names = {category['id']: category['name'] for category in content['categories']}
            content = [{'score': 1.0, 'bbox': (), **entry} for entry in content['annotations']]
        elif annotations is not None:
            source, named = annotations, read_json(annotations)
            names = {entry['id']: entry['name'] for entry in named.get('categories', ()) if entry['name']} or names
        images = {image['id']: image | {'stem': Path(image['file_name']).with_suffix('').as_posix()}
                  for image in sorted(named['images'], key=itemgetter('id'))}
        found: Instances = {image['stem']: [] for image in images.values()}
        if len(found) < len(named['images']):
            raise UserError(f'{source} names an image twice; give each an id and a name of its own.')
        best_first = sorted(content, key=lambda entry: (entry['image_id'], entry.get('iscrowd', 0), -entry['score']))
        if best_first != sorted(content, key=itemgetter('image_id')):
            log.info('The objects in %s are not sorted by score, crowds last, and are sorted now', path)
        for entry in best_first:
            image, number, score = images.get(entry['image_id']), entry['category_id'], entry['score']
            name = names.get(number)
            if image is None:
                raise UserError(f'{path} has objects of image {entry["image_id"]}, which {source} lacks; add it.')
            if not math.isfinite(score) or categories is not None and (number, name) not in categories.items():
                known = name_some([*(categories or names).items()], 3) or 'that a dataset.yml beside sets/ has to name'
                raise UserError(f'{path} has category {number} of score {score}, named {name!r}; give finite scores, '
                                f'and of the categories {known}.')
            found[image['stem']].append({'segmentation': entry['segmentation'], **entry, 'height': image['height'],
                                         'width': image['width']})
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f'{path} or {source} is not in COCO\'s format ({type(error).__name__} {error}); give an '
                        'annotation file, or a list of results and a file with their images.') from error
    if all(entry.get('iscrowd') for entries in found.values() for entry in entries):
        raise UserError(f'{path} has no object; give a file with some.')
    return found, names
