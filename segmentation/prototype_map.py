"""A map of prototypes: near ones stand near each other, some as pictures outlined in the colour of their class."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from utils.run.files import PALETTE

METHODS = ('pca', 'tsne')
POINTS = 2000  # of t-SNE at most, which compares each with each
APART = 0.07  # of the width, between two pictures
PERPLEXITY = 30  # of t-SNE; less for few points


def project(prototypes: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """(N, D) -> (N, 2), N and D of 2 or more, and what the axes are."""
    if method == 'tsne':
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
        if len(chosen) == count:
            break
        if all(abs(scaled[i] - scaled[j]).max() >= APART for j in chosen):
            chosen.append(int(i))
    return chosen


def draw_map(places: np.ndarray, axes_labels: tuple[str, str], colours: np.ndarray, names: Sequence[str],
             pictures: Mapping[int, np.ndarray], kind: str = 'class') -> Figure:
    """Draw the map.

    Args:
        places: (N, 2).
        colours: (N,) entries of the VOC palette.
        names: (N,) classes.
        kind: what they are: 'class' or 'cluster'.
        pictures: {point: (h, w, 3) uint8}, drawn in place of the point.
    """
    figure = Figure(figsize=(10, 8.5), layout='constrained')
    axes = figure.subplots()
    for colour, name in sorted(set(zip(colours.tolist(), names, strict=True))):
        of_class = np.array([c == colour and n == name for c, n in zip(colours, names, strict=True)])
        axes.scatter(places[of_class, 0], places[of_class, 1], s=14, color=PALETTE[colour] / 255, edgecolors='#808080',
                     linewidths=0.3, label=f'{name} ({of_class.sum()})')
    for index, picture in pictures.items():
        frame = {'edgecolor': PALETTE[colours[index]] / 255, 'linewidth': 3, 'boxstyle': 'square,pad=0.05'}
        axes.add_artist(AnnotationBbox(OffsetImage(picture, zoom=40 / max(picture.shape[:2])), tuple(places[index]),
                                       bboxprops=frame, pad=0.1))
    axes.margins(0.06)
    axes.set_xlabel(axes_labels[0])
    axes.set_ylabel(axes_labels[1])
    axes.set_title(f'{len(places)} objects; pictures have the colour of their {kind}')
    figure.legend(loc='outside right upper', fontsize='small', title=f'{kind} (objects)', markerscale=2.5)
    return figure
