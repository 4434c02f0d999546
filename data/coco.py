"""Object masks in COCO's formats: annotation files, and the results of a detector."""
import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from utils.run.errors import UserError, name_some
from utils.run.files import write_text

log = logging.getLogger(__name__)
TOLERANCE = 2  # of a simplified outline, pixels
Entry = dict[str, Any]
Instances = dict[str, list[Entry]]  # of each image, by its name without suffix


def _outlines() -> ModuleType:
    try:
        from skimage import measure
    except ImportError as error:
        raise UserError('COCO outlines need scikit-image, which is not installed: pip install scikit-image') from error
    return measure


def polygons(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask (H, W) bool, each x, y, x, y, ... in pixels, closed; of less than three points none.

    Marching squares at 0.5, simplified by Douglas and Peucker. Raises UserError if scikit-image is not installed.
    """
    measure, found = _outlines(), []
    for contour in measure.find_contours(np.pad(mask, 1).astype(np.uint8), 0.5):
        outline = contour - 1  # of the padding
        if (outline[0] != outline[-1]).any():
            outline = np.concatenate([outline, outline[:1]])
        outline = measure.approximate_polygon(outline, TOLERANCE)
        if len(outline) >= 3:
            found.append(np.maximum(outline[:, ::-1], 0).ravel().tolist())
    return found


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels of a mask (H, W) bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)


def annotation(mask: np.ndarray, number: int, image_id: int, score: float = 1.0) -> Entry | None:
    """A mask (H, W) bool as an entry of 'annotations'; None if it has no outline. Box [x, y, w, h] in pixels."""
    outlines = polygons(mask)
    if not outlines:
        return None
    return {'score': score, 'id': number, 'image_id': image_id, 'category_id': 0, 'iscrowd': 0, 'area': int(mask.sum()),
            'bbox': [*box_of(mask)], 'segmentation': outlines, 'width': mask.shape[1],
            'height': mask.shape[0]}


class CocoFile:
    """Collects the masks of images, one category, and writes them as a COCO annotation file.

    Raises UserError if ``path`` is a folder, or scikit-image is not installed.
    """

    def __init__(self, path: Path) -> None:
        _outlines()
        if path.is_dir():
            raise UserError(f'{path} is a folder; give the name of a file, e.g. {path / "masks.json"}.')
        self.path = path
        self.images: list[Entry] = []
        self.annotations: list[Entry] = []

    def add(self, name: str, objects: np.ndarray) -> bool:
        """An image with the masks of its objects, (H, W) integers, 0 outside; whether all of them have an outline."""
        image_id, whole = len(self.images), True
        self.images.append({'file_name': name, 'height': objects.shape[0], 'width': objects.shape[1], 'id': image_id})
        for number in np.unique(objects[objects > 0]):
            entry = annotation(objects == number, len(self.annotations), image_id)
            whole = whole and entry is not None
            self.annotations += [] if entry is None else [entry]
        return whole

    def write(self) -> None:
        write_text(self.path, json.dumps({'images': self.images, 'annotations': self.annotations, 'categories': [
            {'supercategory': '', 'id': 0, 'name': ''}]}))


def mask_api() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError('COCO masks need pycocotools, which is not installed: pip install pycocotools') from error
    return mask


def decode(entry: Entry) -> np.ndarray:
    """The mask of an entry, polygons or run lengths, with its image's height and width -> (height, width) bool."""
    api, segmentation, height, width = mask_api(), entry['segmentation'], entry['height'], entry['width']
    try:
        if not isinstance(segmentation, dict) or not isinstance(segmentation['counts'], (str, bytes)):
            segmentation = api.frPyObjects(segmentation, height, width)
        return api.decode(api.merge(segmentation) if isinstance(segmentation, list) else segmentation).astype(bool)
    except Exception as error:  # pycocotools raises what it likes
        raise UserError(f'a mask of image {entry["image_id"]} is no polygon and no run lengths ({error}); make the '
                        'results again, with masks.') from error


def read_coco(path: Path) -> Any:
    """The content of a JSON file. Raises UserError for one that is missing or damaged."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding='utf-8'))
    raise UserError(f'{path} is missing or no JSON; give a COCO file.')


def read_instances(path: Path, categories: dict[int, str] | None = None,
                   annotations: Path | None = None) -> tuple[Instances, dict[int, str]]:
    """The objects of images, in the order of their ids, the best first, crowds last; and the names of the categories.

    ``path``: an annotation file (no score is 1), or a detector's results on the images of ``annotations``. Raises
    UserError for files of another kind, no object, an image named twice or not at all, other categories, bad scores.
    """
    content = named = read_coco(path)
    source, names = path, categories or {}
    try:
        if isinstance(content, dict):
            names = {category['id']: category['name'] for category in content['categories']}
            content = [{'score': 1.0, 'bbox': entry['bbox'], **entry} for entry in content['annotations']]
        elif annotations is not None:
            source, named = annotations, read_coco(annotations)
            names = {category['id']: category['name'] for category in named.get('categories', ())
                     if category['name']} or names
        images = {image['id']: image for image in sorted(named['images'], key=lambda image: image['id'])}
        found: Instances = {Path(image['file_name']).with_suffix('').as_posix(): [] for image in images.values()}
        if len(found) < len(named['images']):
            raise UserError(f'{source} names an image twice; give each an id and a name of its own.')
        best_first = sorted(content, key=lambda entry: (entry['image_id'], entry.get('iscrowd', 0), -entry['score']))
        if [*map(id, best_first)] != [*map(id, sorted(content, key=lambda entry: entry['image_id']))]:
            log.info('The objects in %s are not sorted by score, crowds last, and are sorted now', path)
        for entry in best_first:
            if entry['image_id'] not in images:
                raise UserError(f'{path} has objects of image {entry["image_id"]}, which {source} lacks; add it.')
            number, name = entry['category_id'], names.get(entry['category_id'])
            if categories and (number, name) not in categories.items() or not math.isfinite(entry['score']):
                raise UserError(f'{path} has category {number} of score {entry["score"]}, named {name!r}; give finite '
                                f'scores, and of the categories {name_some([*(categories or names).items()], 3)}.')
            image = images[entry['image_id']]
            found[Path(image['file_name']).with_suffix('').as_posix()].append({
                'segmentation': entry['segmentation'], **entry, 'height': image['height'], 'width': image['width']})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} or {source} is not in COCO\'s format ({type(error).__name__} {error}); give an '
                        'annotation file, or a list of results and a file with their images.') from error
    if all(entry.get('iscrowd') for entries in found.values() for entry in entries):
        raise UserError(f'{path} has no object; give a file with some.')
    return found, names
