"""A data set drawn by code, in the folder layout of VOC, so that the whole method runs without a download.

    python experiments/shapes.py --output datasets/synthetic --train 850 --val 150 --size 128 --seed 0
"""
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.voc import VOID
from experiments.drawing import CLASSES, KINDS, draw, smooth_noise
from utils.config.cli import ArgumentParser
from utils.run.errors import UserError
from utils.run.files import save_image, save_label_map, write_text
from utils.run.script import run_script

VERSION = 2  # raise it when the same parameters draw other images


def with_void(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """A label map (H, W) uint8 with the ignore label (255) along the borders, about 2 * width pixels wide."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return np.where(cv2.dilate(labels, disc) != cv2.erode(labels, disc), VOID, labels).astype(np.uint8)


def rough_mask(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool as an unsupervised method would give it: rough, with holes, leaks, missing parts, or empty."""
    height, width = mask.shape
    if rng.random() < 0.03 or not mask.any():
        return np.zeros_like(mask)
    soft: np.ndarray = mask.astype(np.float32)
    rows, columns = np.nonzero(mask)
    extent = np.sqrt(len(rows))  # about the side of the object

    def spread(low: float, high: float, where: np.ndarray) -> np.ndarray:  # an ellipse around a random pixel of `where`
        y, x = where[rng.integers(len(where))]
        axes = np.maximum(1, extent * rng.uniform(low, high, 2)).astype(int)
        canvas = np.zeros(mask.shape, np.float32)
        return cv2.ellipse(canvas, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, 1.0, -1)

    if rng.random() < 0.3:  # a part is missing: all beyond a line
        angle = rng.uniform(0, 2 * np.pi)
        along = np.cos(angle) * columns + np.sin(angle) * rows
        gone = along > np.quantile(along, rng.uniform(0.65, 0.9))
        soft[rows[gone], columns[gone]] = 0
    inside, border = np.argwhere(mask), np.argwhere(mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0))
    for _ in range(rng.integers(0, 3)):
        soft *= 1 - spread(0.05, 0.14, inside)
    for _ in range(rng.integers(0, 3)):
        soft = np.maximum(soft, spread(0.08, 0.25, border if len(border) else inside))
    soft = cv2.GaussianBlur(soft, (0, 0), min(height, width) * rng.uniform(0.01, 0.03))
    return soft + 0.3 * smooth_noise(rng, height, width, int(rng.integers(6, 14)))[..., 0] > 0.5


def generate(root: Path, train: int, val: int, size: int = 128, seed: int = 0) -> Path:
    """Draw a whole data set into the folder ``root``, or keep the one there if it was drawn alike.

    Files: images/ID.jpg, SegmentationClass/ID.png (palette, the ignore label at some borders),
    SegmentationClassAug/ID.png (grey, train only), saliency_supervised_model/ID.png (the exact objects),
    saliency_unsupervised_model/ID.png (see ``rough_mask``), sets/{train,trainaug,val}.txt (trainaug equals train) and
    dataset.yml (class names, and the parameters under ``synthetic``).

    The classes take turns, so that each has its equal share of the ``train`` and ``val`` images, whose longest side has
    ``size`` pixels. An image depends on the seed, its split and its number only: a smaller set is part of a larger one.
    Raises UserError if a parameter is out of range, or ``root`` holds anything else.
    """
    root = Path(root).resolve()
    recipe = {'version': VERSION, 'train': train, 'val': val, 'size': size, 'seed': seed}
    for name, least in (('train', 1), ('val', 1), ('size', 32), ('seed', 0)):
        if recipe[name] < least:
            raise UserError(f'{name} is {recipe[name]}: give a whole number of at least {least}.')
    if is_kept(root, recipe):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as scratch:
            part = Path(scratch) / root.name
            write(part, recipe)
            if not is_kept(root, recipe):  # another process may have been faster
                part.rename(root)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f'cannot make the folder {root} ({error.strerror}): choose another one.') from None
    return root


def is_kept(root: Path, recipe: dict[str, int]) -> bool:
    """Whether ``root`` holds the data set of this recipe; False if it is absent or empty, else a UserError."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found: Any = yaml.safe_load((root / 'dataset.yml').read_text())['synthetic']
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        found = 'something else (no data set drawn by experiments/shapes.py)'
    if found != recipe:
        raise UserError(f'{root} holds {found}, not {recipe}: choose another folder or delete it.')
    return True


def write(root: Path, recipe: dict[str, int]) -> None:
    for number, split in enumerate(('train', 'val')):
        ids = [f'{split}_{index:06d}' for index in range(recipe[split])]
        for index, name in enumerate(ids):
            rng = np.random.default_rng([recipe['seed'], number, index])
            image, labels = draw(rng, recipe['size'], 1 + index % len(KINDS))
            truth = with_void(labels) if rng.random() < 0.5 else labels
            save_image(Image.fromarray(image), root / 'images' / f'{name}.jpg', quality=92)
            save_label_map(truth, root / 'SegmentationClass' / f'{name}.png')
            grey = {'SegmentationClassAug': truth} if split == 'train' else {}
            for model, mask in (('supervised', labels > 0), ('unsupervised', rough_mask(rng, labels > 0))):
                grey[f'saliency_{model}_model'] = mask * np.uint8(255)
            for folder, values in grey.items():
                save_image(Image.fromarray(values), root / folder / f'{name}.png')
        for file in ('train', 'trainaug') if split == 'train' else ('val',):
            write_text(root / 'sets' / f'{file}.txt', '\n'.join(ids) + '\n')
    write_text(root / 'dataset.yml', yaml.safe_dump({'classes': CLASSES, 'synthetic': recipe}, sort_keys=False))


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--output', type=Path, required=True, help='the folder to make')
    parser.add_argument('--train', type=int, default=850, help='training images')
    parser.add_argument('--val', type=int, default=150, help='validation images')
    parser.add_argument('--size', type=int, default=128, help='longest side of an image in pixels')
    parser.add_argument('--seed', type=int, default=0, help='another seed draws other images')
    args = parser.parse_args(argv)
    root = generate(args.output, args.train, args.val, args.size, args.seed)
    print(f'{args.train} train and {args.val} val images in {root}')


if __name__ == '__main__':
    run_script(main)
