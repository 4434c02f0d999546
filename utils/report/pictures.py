"""Pictures of images: side by side, in grids, with masks, labels and captions."""
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from utils.run.files import PALETTE

CAPTION = 18  # height of a caption, pixels
PART = 200  # longer side of an image in a panel at most, pixels: four and their captions fit a screen


def panel(images: Sequence[np.ndarray], captions: Sequence[str]) -> Image.Image:
    """(H, W, 3) uint8 images or (H, W) uint8 class ids of one size side by side under captions, large ones smaller."""
    small = [thumbnail(image, PART) for image in images]
    row = montage([PALETTE[image] if image.ndim == 2 else image for image in small], len(small), gap=4)
    canvas = Image.new('RGB', (row.width, row.height + CAPTION), 'white')
    canvas.paste(row, (0, CAPTION))
    for number, caption in enumerate(captions):
        ImageDraw.Draw(canvas).text((number * (small[0].shape[1] + 4) + 2, 3), caption, fill='black')
    return canvas


def montage(images: Sequence[np.ndarray], columns: int, gap: int = 8) -> Image.Image:
    """(H, W, 3) uint8 images of any size in rows of ``columns``, on white."""
    height, width = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    canvas = Image.new('RGB', (columns * width - gap, -(-len(images) // columns) * height - gap), 'white')
    for index, image in enumerate(images):
        canvas.paste(Image.fromarray(image), (index % columns * width, index // columns * height))
    return canvas


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 half covered by the colours of its labels (H, W); label 0 covers nothing."""
    mixed = cv2.addWeighted(image, 0.5, PALETTE[labels], 0.5, 0)
    np.copyto(mixed, image, where=(labels == 0)[..., None])
    return mixed


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 with the outlines of a mask (H, W) in yellow."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, (255, 255, 0), 1)


def pca_colours(maps: np.ndarray) -> np.ndarray:
    """The three main directions of all vectors of maps (N, D, h, w) as red, green and blue: (N, h, w, 3) uint8.

    The 1st percentile of a direction is 0 and the 99th is 255, over all maps, so that one colour means one thing. With
    D < 3 the last channels are 0.
    """
    number, dim, height, width = maps.shape
    points = maps.transpose(0, 2, 3, 1).reshape(-1, dim).astype(np.float64)
    points -= points.mean(0)
    main = np.linalg.eigh(points.T @ points)[1][:, ::-1][:, :3]  # D x 3, unit columns
    main = main * np.where(main[abs(main).argmax(0), range(main.shape[1])] < 0, -1, 1)  # their sign means nothing
    values = points @ main
    low, high = np.percentile(values, (1, 99), axis=0)
    colours = np.zeros((len(points), 3), np.uint8)
    colours[:, :main.shape[1]] = 255 * ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return colours.reshape(number, height, width, 3)


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) or label map (H, W), uint8, made smaller so that its longer side is at most ``side``."""
    scale = side / max(image.shape[:2])
    size = [max(1, round(scale * length)) for length in image.shape[1::-1]]
    by = cv2.INTER_NEAREST if image.ndim == 2 else cv2.INTER_AREA
    return image if scale >= 1 else cv2.resize(image, size, interpolation=by)


def legend(classes: Sequence[str]) -> Image.Image:
    """A square in the colour of each class beside its name; of classes of one name the first alone."""
    names = list(dict.fromkeys(classes))
    ruler = ImageDraw.Draw(Image.new('L', (1, 1)))
    width = CAPTION + 10 + int(max(ruler.textlength(name) for name in names))
    canvas = Image.new('RGB', (min(4, len(names)) * width + 4, -(-len(names) // 4) * CAPTION + 4), 'white')
    draw = ImageDraw.Draw(canvas)
    for place, name in enumerate(names):
        x, y = place % 4 * width + 4, place // 4 * CAPTION + 4
        colour = tuple(PALETTE[classes.index(name)].tolist())
        draw.rectangle((x, y, x + CAPTION - 6, y + CAPTION - 6), colour, 'black')
        draw.text((x + CAPTION, y), name, fill='black')
    return canvas
