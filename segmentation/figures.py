"""Pictures of objects: crops in rows, and a map of prototypes in two dimensions."""
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from data.transforms import resize_mask
from utils.report.pictures import montage, outline, panel
from utils.run.files import PALETTE

SIDE = 128  # of a crop, pixels
MARGIN = 0.1  # of a crop around its object, as a share of its sides
METHODS = ('pca', 'tsne')
POINTS = 2000  # of t-SNE at most, which compares each with each
APART = 0.07  # of the width, between two pictures
PERPLEXITY = 30  # of t-SNE; less for few points


def evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` of the indices, spread over all of them."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)]


def fit(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (SIDE, SIDE, 3): the whole image in the middle of a white square."""
    height, width = (max(1, round(length * SIDE / max(image.shape[:2]))) for length in image.shape[:2])
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    y, x = (SIDE - height) // 2, (SIDE - width) // 2
    square[y:y + height, x:x + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return square


def crop_object(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The (H, W, 3) image around a (H, W) mask that is not empty, with the mask's outline."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    dx, dy = round(MARGIN * width) + 1, round(MARGIN * height) + 1
    window = slice(max(0, y - dy), y + height + dy), slice(max(0, x - dx), x + width + dx)
    crop, inner = np.ascontiguousarray(image[window]), mask[window].astype(np.uint8)
    size = [max(1, round(length * SIDE / max(inner.shape))) for length in inner.shape[::-1]]  # for a thin line
    return outline(cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR), resize_mask(inner, *size))


def draw_rows(rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> Image.Image:
    """Rows of pictures (H, W, 3) uint8 in squares, each under its caption."""
    return montage([np.array(panel([fit(picture) for picture, _ in row], [caption for _, caption in row]))
                    for row in rows], 1)


def project(prototypes: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """(N, D) -> (N, 2), N and D of 2 or more, and what the axes are."""
    if method == 'tsne':
        from sklearn.manifold import TSNE  # takes a while, and few need it
        perplexity = min(PERPLEXITY, (len(prototypes) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init='pca', random_state=seed).fit_transform(prototypes)
        return places, ('t-SNE, 1st coordinate (no unit)', 't-SNE, 2nd coordinate (no unit)')
    pca = PCA(2, random_state=seed)
    places = pca.fit_transform(prototypes)
    first, second = (f'{share:.0%} of the variance' for share in pca.explained_variance_ratio_)
    return places, (f'1st principal direction ({first})', f'2nd principal direction ({second})')


def spread(places: np.ndarray, count: int, seed: int) -> list[int]:
    """Up to ``count`` of the (N, 2) places, drawn at random, that are far enough apart for pictures."""
    scaled = (places - places.min(0)) / np.maximum(np.ptp(places, axis=0), 1e-12)
    chosen: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(scaled)):
        if len(chosen) < count and (abs(scaled[i] - scaled[chosen]).max(1) >= APART).all():
            chosen.append(int(i))
    return chosen


def draw_map(places: np.ndarray, axes_labels: tuple[str, str], colours: np.ndarray, names: Sequence[str],
             pictures: Mapping[int, np.ndarray], kind: str) -> Any:
    """A figure of objects at (N, 2) places; ``pictures``, {point: (h, w, 3) uint8}, are drawn in place of points.

    ``colours`` (N,) are entries of the VOC palette and ``names`` (N,) those of the class or cluster, as ``kind`` says.
    """
    from matplotlib.figure import Figure  # a second, and retrieval.py draws no map
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    figure = Figure(figsize=(10, 8.5), layout='constrained')
    axes = figure.subplots()
    for colour, name in sorted(set(zip(colours.tolist(), names, strict=True))):
        points = places[(colours == colour) & (np.array(names) == name)]
        axes.scatter(points[:, 0], points[:, 1], s=14, color=PALETTE[colour] / 255, edgecolors='#808080',
                     linewidths=0.3, label=f'{name} ({len(points)})')
    for index, picture in pictures.items():
        frame = {'edgecolor': PALETTE[colours[index]] / 255, 'linewidth': 3, 'boxstyle': 'square,pad=0.05'}
        axes.add_artist(AnnotationBbox(OffsetImage(picture, zoom=40 / max(picture.shape[:2])), tuple(places[index]),
                                       bboxprops=frame, pad=0.1))
    axes.margins(0.06)
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1],
             title=f'{len(places)} objects; pictures have the colour of their {kind}')
    figure.legend(loc='outside right upper', fontsize='small', title=f'{kind} (objects)', markerscale=2.5)
    return figure
