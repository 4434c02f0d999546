"""Pictures drawn by code: seven kinds of objects on cluttered ground, for ``experiments/shapes.py``.

The kinds differ in outline and surface pattern, never in colour: colours, pose and light are drawn from the same
distributions for all of them. What is to be found without labels is therefore shape and pattern.
"""
from collections.abc import Callable

import cv2
import numpy as np

Array = np.ndarray
Generator = np.random.Generator
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
    """Colours of many hues that run into each other, (H, W, 3): one hue would tell images apart so well that learning
    would stop at colour."""
    grid = np.reshape([_colour(rng, low, high) for _ in range(9)], (3, 3, 3))
    return np.clip(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1).reshape(height, width, 3)


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
    grain = smooth_noise(rng, height, width, size // 4)
    canvas += 0.08 * grain * (smooth_noise(rng, height, width, 4) > 0.2)

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

    ``size`` is the longest side in pixels, ``kind`` the class (1..) of the main object. One image in twenty-five has a
    second object, of any class.
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
