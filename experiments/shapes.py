"""A data set drawn by code, in the folder layout of VOC, so that the whole method runs without a download.

    python experiments/shapes.py --output datasets/synthetic --train 850 --val 150 --size 128 --seed 0

The kinds of objects differ in outline and surface pattern, never in colour: what is to be found is shape and pattern.
"""
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.label_maps import VOID
from utils.config.cli import ArgumentParser, at_least
from utils.run.errors import UserError
from utils.run.files import save_image, save_label_map, write_text
from utils.run.script import run_script

Array = np.ndarray
Generator = np.random.Generator
VERSION = 2  # raise it when the same parameters draw other images
SCALE = 2  # objects are drawn this much larger and then reduced, for smooth edges


def regular(radii: list[float], start: float = -np.pi / 2) -> Array:
    """Polygon (N, 2) whose corners lie at equal angles and the given radii."""
    angles = start + 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None]


CROSS = np.array([(-0.38, -1), (0.38, -1), (0.38, -0.38), (1, -0.38), (1, 0.38), (0.38, 0.38),
                  (0.38, 1), (-0.38, 1), (-0.38, 0.38), (-1, 0.38), (-1, -0.38), (-0.38, -0.38)])
AROUND, OPEN = np.linspace(0, 2 * np.pi, 60, endpoint=False), np.linspace(0.14, 2 * np.pi - 0.14, 48)  # angles
PEAR = np.stack([np.sin(AROUND) * (0.58 - 0.26 * np.cos(AROUND)), -np.cos(AROUND)], 1)
FISH = np.concatenate([np.stack([0.72 * np.cos(OPEN) - 0.28, 0.62 * np.sin(OPEN)], 1),  # the tail joins on the right
                       [(1, -0.6), (0.82, 0), (1, 0.6)]])
HOUSE = np.array([(0, -1), (1, -0.25), (0.8, -0.25), (0.8, 0.85), (-0.8, 0.85), (-0.8, -0.25), (-1, -0.25)])


def scales(x: Array, y: Array) -> Array:
    column = np.floor(x / 0.2)
    across = (y + column % 2 * 0.2) % 0.4 - 0.2
    return np.abs(np.hypot(x - column * 0.2 - 0.2, across) - 0.2) < 0.05


def bricks(x: Array, y: Array) -> Array:
    row = np.floor(y / 0.3)
    return ((y / 0.3) % 1 < 0.26) | (((x + row % 2 * 0.28) / 0.56) % 1 < 0.14)


# class: outline (N, 2) within the square -1..1, and pattern, (x, y) -> where it is dark
KINDS: dict[str, tuple[Array, Callable[[Array, Array], Array]]] = {
    'star': (regular([1.0, 0.52] * 5), lambda x, y: np.cos(2 * np.pi * 2.2 * x) > 0),  # stripes
    'ball': (regular([0.88] * 60), lambda x, y: np.sin(2 * np.pi * 1.25 * x) * np.sin(2 * np.pi * 1.25 * y) > 0),
    'cross': (CROSS, lambda x, y: np.hypot((x + 0.19) % 0.38 - 0.19, (y + 0.19) % 0.38 - 0.19) < 0.12),  # dots
    'pear': (PEAR, lambda x, y: np.cos(2 * np.pi * 2.4 * np.hypot(x, y - 0.3)) > 0),  # rings
    'gear': (regular(([1.0] * 2 + [0.8] * 2) * 10),  # spokes
             lambda x, y: (np.cos(8 * np.arctan2(y, x)) > 0) & (np.hypot(x, y) > 0.22)),
    'fish': (FISH, scales), 'house': (HOUSE, bricks)}
CLASSES = ['background', *KINDS]


def _colour(rng: Generator, low: float, high: float) -> Array:
    """A random colour (3,), 0..1, of any hue with a brightness within low..high."""
    hsv = rng.uniform((0, 0.05, low), (360, 0.35, high)).astype(np.float32)
    return cv2.cvtColor(hsv[None, None], cv2.COLOR_HSV2RGB)[0, 0]


def smooth_noise(rng: Generator, height: int, width: int, cells: int, channels: int = 1) -> Array:
    """A coarse grid of random values, enlarged: (H, W, channels), about -1..1."""
    grid = rng.uniform(-1, 1, (cells, cells, channels)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def _patchwork(rng: Generator, height: int, width: int, low: float, high: float) -> Array:
    """Colours of many hues that run into each other, (H, W, 3): by one hue alone images could be told apart."""
    grid = np.reshape([_colour(rng, low, high) for _ in range(9)], (3, 3, 3))
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _blend(canvas: Array, colour: Array, cover: Array) -> None:
    """Paint a colour, (3,) or (H, W, 3), over the canvas (H, W, 3) in place; cover: (H, W), 0..1."""
    canvas += (colour - canvas) * cover[..., None]


def _fill(polygon: Array, height: int, width: int) -> Array:
    """Cover (H, W), 0..1, of a polygon (N, 2) in pixels."""
    cover = np.zeros((height, width), np.uint8)
    cv2.fillPoly(cover, [np.round(polygon * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return cover.astype(np.float32) / 255


def _background(rng: Generator, height: int, width: int) -> Array:
    """Smooth noise, patches of fine grain, lines, blobs and small plain shapes: (H, W, 3), 0..1."""
    size = min(height, width)
    canvas = _patchwork(rng, height, width, 0.35, 0.7)
    canvas += 0.06 * smooth_noise(rng, height, width, 5, 3)
    canvas += 0.08 * smooth_noise(rng, height, width, 12)
    canvas += 0.08 * smooth_noise(rng, height, width, size // 4) * (smooth_noise(rng, height, width, 4) > 0.2)

    def spot() -> list[int]:
        return rng.uniform(0, (width, height)).astype(int).tolist()

    for _ in range(rng.integers(2, 6)):  # large faint blobs
        cover: Array = np.zeros((height, width), np.float32)
        axes = (size * rng.uniform(0.08, 0.3, 2)).astype(int).tolist()
        cv2.ellipse(cover, spot(), axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
        cover = cv2.GaussianBlur(cover, (0, 0), size * rng.uniform(0.005, 0.04))
        _blend(canvas, _colour(rng, 0.3, 0.8), cover * rng.uniform(0.3, 0.7))
    for _ in range(rng.integers(1, 6)):  # lines
        cover = np.zeros((height, width), np.float32)
        cv2.line(cover, spot(), spot(), 1.0, int(rng.integers(1, max(1, size // 50) + 1)), cv2.LINE_AA)
        _blend(canvas, _colour(rng, 0.2, 0.9), cover * rng.uniform(0.3, 0.8))
    for _ in range(rng.integers(0, 5)):  # small plain shapes, without a pattern
        corners = int(rng.choice([3, 4, 24]))
        shape = regular([size * rng.uniform(0.03, 0.07)] * corners, rng.uniform(0, 6)) + spot()
        _blend(canvas, _colour(rng, 0.25, 0.85), _fill(shape, height, width))
    return canvas


def _pose(rng: Generator, height: int, width: int, low: float, high: float) -> Array:
    """Homography (3, 3) from an object's own square -1..1 to pixels; its extent is low..high of the shorter side."""
    radius = min(height, width) * rng.uniform(low, high) / 2
    angle, stretch, shear = rng.uniform((-0.3, 0.92, -0.08), (0.3, 1.09, 0.08))
    flip = rng.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    form = np.array([[flip * stretch, shear, 0], [0, 1 / stretch, 0], [*rng.uniform(-0.1, 0.1, 2), 1]])
    x, y = (rng.uniform(0.9 * radius, side - 0.9 * radius) for side in (width, height))
    return np.array([[radius, 0, x], [0, radius, y], [0, 0, 1]]) @ turn @ form


def _object(rng: Generator, canvas: Array, kind: str, pose: Array) -> Array:
    """Draw an object and its shadow on the canvas (H, W, 3), 0..1, in place; gives its cover, (H, W), 0..1."""
    height, width = canvas.shape[:2]
    size, (outline, pattern) = min(height, width), KINDS[kind]
    outline = cv2.perspectiveTransform(outline[None].astype(np.float64), pose)[0]
    left, top = np.clip(np.floor(outline.min(0)).astype(int) - 2, 0, (width - 1, height - 1))
    right, bottom = np.clip(np.ceil(outline.max(0)).astype(int) + 2, (left + 1, top + 1), (width, height))
    box, small = (slice(top, bottom), slice(left, right)), (right - left, bottom - top)
    w, h = small[0] * SCALE, small[1] * SCALE  # all below is drawn in this box, enlarged
    outline = (outline - (left, top)) * SCALE
    enlarge = np.array([[SCALE, 0, -SCALE * left], [0, SCALE, -SCALE * top], [0, 0, 1.0]])
    back = np.linalg.inv(enlarge @ pose).astype(np.float32)
    columns, rows = np.arange(w, dtype=np.float32) + 0.5, np.arange(h, dtype=np.float32)[:, None] + 0.5
    x, y, depth = (a * columns + b * rows + c for a, b, c in back)
    x, y = x / depth, y / depth

    dark, light = _patchwork(rng, h, w, 0.1, 0.25), _patchwork(rng, h, w, 0.75, 0.95)
    surface = np.where(pattern(x, y)[..., None], dark, light)
    lamp = rng.uniform(-0.7, 0.7, 2).astype(np.float32)
    surface *= np.clip(1.12 - 0.22 * np.hypot(x - lamp[0], y - lamp[1]), 0.6, 1.15)[..., None]
    rim = np.zeros((h, w), np.float32)
    thickness = max(1, round(0.018 * SCALE * size))
    cv2.polylines(rim, [np.round(outline).astype(np.int32)], True, 1.0, thickness, cv2.LINE_AA)
    _blend(surface, _colour(rng, 0.05, 0.25), rim)

    cover = np.zeros((height, width), np.float32)
    cover[box] = cv2.resize(_fill(outline, h, w), small, interpolation=cv2.INTER_AREA).reshape(cover[box].shape)
    far = 0.03 * size
    shift = np.array([[1, 0, far * np.sign(-lamp[0])], [0, 1, far]], np.float64)
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, shift, (width, height)), (0, 0), far)
    _blend(canvas, np.zeros(3, np.float32), 0.45 * shadow)
    _blend(canvas[box], cv2.resize(surface, small, interpolation=cv2.INTER_AREA), cover[box])
    return cover


def draw(rng: Generator, size: int, kind: int) -> tuple[Array, Array]:
    """One image, (H, W, 3) uint8, and its exact label map, (H, W) uint8 with 0 = background.

    ``size`` is the longest side, ``kind`` the class (1..) of the main object; one image in twenty-five has a second.
    """
    short = round(size * rng.uniform(0.7, 1.0))
    height, width = (size, short) if rng.random() < 0.3 else (short, size)
    canvas = _background(rng, height, width)
    labels = np.zeros((height, width), np.uint8)
    objects = [(kind, _pose(rng, height, width, 0.75, 0.9))]
    if rng.random() < 0.04:  # a smaller one behind it, where it hides least
        poses = [_pose(rng, height, width, 0.4, 0.55) for _ in range(8)]
        far = max(poses, key=lambda pose: np.hypot(*(pose - objects[0][1])[:2, 2]))
        objects.insert(0, (int(rng.integers(1, len(CLASSES))), far))
    for number, pose in objects:
        labels[_object(rng, canvas, CLASSES[number], pose) > 0.5] = number
    canvas *= 1 + 0.2 * smooth_noise(rng, height, width, 2)  # light across the whole image
    canvas += rng.normal(0, 0.012, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), labels


def with_void(labels: Array) -> Array:
    """A label map (H, W) uint8 with the ignore label (255) along the borders, about 2 pixels wide."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    return np.where(cv2.dilate(labels, disc) != cv2.erode(labels, disc), VOID, labels).astype(np.uint8)


def rough_mask(rng: Generator, mask: Array) -> Array:
    """A mask (H, W) bool as an unsupervised method would give it: rough, with holes, leaks, missing parts, or empty."""
    height, width = mask.shape
    if rng.random() < 0.03 or not mask.any():
        return np.zeros_like(mask)
    soft: Array = mask.astype(np.float32)
    rows, columns = np.nonzero(mask)

    def spread(low: float, high: float, where: Array) -> Array:  # an ellipse around a random pixel of `where`
        y, x = where[rng.integers(len(where))]
        axes = np.maximum(1, np.sqrt(len(rows)) * rng.uniform(low, high, 2)).astype(int)  # of the object's side
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

    The masks of the supervised model are exact, those of the unsupervised as of ``rough_mask``; about half of
    the images have the ignore label at the borders of their objects; dataset.yml names the classes, which take turns,
    and under ``synthetic`` the parameters. An image depends on the seed, its split and its number only: a smaller set
    is part of a larger one. Raises UserError if ``root`` holds anything else.
    """
    root = root.resolve()
    recipe = {'version': VERSION, 'train': train, 'val': val, 'size': size, 'seed': seed}
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
    parser.add_argument('--train', type=at_least(1), default=850, help='training images')
    parser.add_argument('--val', type=at_least(1), default=150, help='validation images')
    parser.add_argument('--size', type=at_least(32), default=128, help='longest side of an image in pixels')
    parser.add_argument('--seed', type=at_least(0), default=0, help='another seed draws other images')
    args = parser.parse_args(argv)
    root = generate(args.output, args.train, args.val, args.size, args.seed)
    print(f'{args.train} train and {args.val} val images in {root}')


if __name__ == '__main__':
    run_script(main)
