"""Saliency without weights and labels: what is poorly connected to the border of an image is an object.

Zhu, Liang, Wei and Sun, "Saliency Optimization from Robust Background Detection", CVPR 2014, with a
centre prior, followed by GrabCut (Rother et al., SIGGRAPH 2004), which moves the outline onto the edges.
"""
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist

from saliency.sources import stretch
from utils.report.pictures import thumbnail

SIDE = 256             # longest side at which an image is analysed, pixels
SIGMA_COLOUR = 10.0    # the paper's sigma_clr, in units of CIE-Lab
SIGMA_SPACE = 0.25     # the paper's sigma_spa, as a share of the image
SIGMA_BORDER = 4.0     # the paper's sigma_bndCon, which is 1 there: here objects may touch the border
SIGMA_CENTRE = 0.3     # spread of the centre prior, as a share of the image
MU = 0.1               # the paper's mu: smoothness also between patches of different colour
SURE_OBJECT, LIKELY_OBJECT, SURE_BACKGROUND = 0.5, 0.25, 0.1  # where GrabCut starts from
GRABCUT_STEPS = 2
COMPACTNESS = 15.0     # of a superpixel: weight of the distance in space, in units of colour distance
SLIC_STEPS = 6


def background_saliency(lab: np.ndarray) -> np.ndarray:
    """Robust background detection: (H, W, 3) float32, CIE-Lab -> (H, W) in 0..1, constant on each superpixel."""
    height, width = lab.shape[:2]
    labels = slic(lab)                                                       # H x W, values 0..P-1
    touch, border = adjacency(labels)                                        # P x P, P
    y, x = np.indices((height, width)).reshape(2, -1)
    pixels = np.column_stack([lab.reshape(-1, 3), (y + 0.5) / height, (x + 0.5) / width])
    means = cluster_means(pixels, labels.ravel(), len(touch)).astype(np.float64)
    d_app, d_spa = (cdist(part, part) for part in (means[:, :3], means[:, 3:]))  # P x P
    w_bg = background_weight(d_app, touch, border)

    # What differs from the background around it is foreground (equation 6), more so near the centre.
    contrast = (d_app * np.exp(-d_spa ** 2 / (2 * SIGMA_SPACE ** 2))) @ w_bg
    centre = np.exp(-((means[:, 3:] - 0.5) ** 2).sum(axis=1) / (2 * SIGMA_CENTRE ** 2))
    w_fg = stretch(contrast) * centre

    # Minimise sum w_bg s^2 + sum w_fg (s - 1)^2 + sum w_ij (s_i - s_j)^2 (equation 9): a linear system.
    reach = touch.astype(np.float32)
    near = touch | np.outer(border, border) | (reach @ reach > 0)            # neighbours of neighbours too
    w = np.where(near, np.exp(-d_app ** 2 / (2 * SIGMA_COLOUR ** 2)) + MU, 0.0)
    np.fill_diagonal(w, 0.0)
    system = np.diag(w_bg + w_fg + w.sum(axis=1) + 1e-6) - w
    return stretch(np.linalg.solve(system, w_fg))[labels]


def background_weight(d_app: np.ndarray, touch: np.ndarray, border: np.ndarray) -> np.ndarray:
    """How surely a patch is background, (P,) in 0..1: the share of its region's outline on the border (equation 7).

    From (P, P) colour distances, which patches touch (P, P), and which touch the border of the image (P,).
    """
    nearest = np.where(touch, d_app, np.inf).min(axis=1)
    free = nearest[np.isfinite(nearest)].mean() if touch.any() else 0.0      # small steps must not add up
    step = np.maximum(d_app - free, 0) + 1e-5                                # 0 would mean 'no edge' to scipy
    linked = (touch | np.outer(border, border)) & ~np.eye(len(border), dtype=bool)  # the background may be in pieces
    d_geo = shortest_path(np.where(linked, step, 0.0), directed=False)
    same = np.exp(-d_geo ** 2 / (2 * SIGMA_COLOUR ** 2))                     # belongs to the same region
    connectivity = same[:, border].sum(axis=1) / np.sqrt(same.sum(axis=1))   # border length / sqrt(area)
    return 1 - np.exp(-connectivity ** 2 / (2 * SIGMA_BORDER ** 2))


def slic(lab: np.ndarray, count: int = 250) -> np.ndarray:
    """Cut an image (H, W, 3), CIE-Lab, into about ``count`` compact patches of similar colour: (H, W) labels from 0.

    K-means in (colour, position), in which a pixel may join only the nine centres around its own cell of a regular
    grid (Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods", PAMI 2012).
    """
    height, width = lab.shape[:2]
    step = max(1.0, np.sqrt(height * width / count))
    rows, cols = max(1, round(height / step)), max(1, round(width / step))
    y, x = np.indices((height, width)).reshape(2, -1)
    row, col = y * rows // height, x * cols // width
    scale = COMPACTNESS / step
    points = np.column_stack([lab.reshape(-1, 3), y * scale, x * scale]).astype(np.float32)
    label = row * cols + col
    centres = cluster_means(points, label, rows * cols)
    candidates = [np.clip(row + dy, 0, rows - 1) * cols + np.clip(col + dx, 0, cols - 1)
                  for dy in (0, -1, 1) for dx in (0, -1, 1)]
    for _ in range(SLIC_STEPS):
        best = np.full(len(points), np.inf, np.float32)
        for candidate in candidates:
            difference = points - centres.take(candidate, axis=0)
            distance = np.einsum('ij,ij->i', difference, difference)
            label = np.where(distance < best, candidate, label)
            best = np.minimum(distance, best)
        centres = cluster_means(points, label, rows * cols, otherwise=centres)
    return np.unique(label, return_inverse=True)[1].reshape(height, width)


def cluster_means(values: np.ndarray, label: np.ndarray, count: int, otherwise: np.ndarray | None = None) -> np.ndarray:
    """Mean of ``values`` (N, C) over each label 0..count-1: (count, C); ``otherwise`` where a label is unused."""
    size = np.bincount(label, minlength=count)
    sums = np.column_stack([np.bincount(label, weights=column, minlength=count) for column in values.T])
    means = (sums / np.maximum(size, 1)[:, None]).astype(np.float32)
    return means if otherwise is None else np.where(size[:, None] > 0, means, otherwise)


def adjacency(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which patches touch (8 neighbours), (P, P) bool, none itself; and which touch the border of the image, (P,)."""
    outside = labels.max() + 1                                               # a patch around the image
    framed = np.pad(labels, 1, constant_values=outside)
    touch = np.zeros((outside + 1, outside + 1), bool)
    for a, b in ((framed[1:], framed[:-1]), (framed[:, 1:], framed[:, :-1]),
                 (framed[1:, 1:], framed[:-1, :-1]), (framed[1:, :-1], framed[:-1, 1:])):
        touch[a, b] = True
    touch = (touch | touch.T) & ~np.eye(outside + 1, dtype=bool)
    return touch[:outside, :outside], touch[:outside, outside]


def grabcut(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Cut out the object that a saliency map (H, W) in 0..1 points at: (H, W) bool."""
    likely = saliency > LIKELY_OBJECT
    if likely.all() or not likely.any():
        return likely  # GrabCut needs some of both
    state = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[saliency > SURE_OBJECT] = cv2.GC_FGD
    state[saliency < SURE_BACKGROUND] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # its colour models start at random: the same image must give the same mask
    cv2.grabCut(image[..., ::-1].copy(), state, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_STEPS,
                cv2.GC_INIT_WITH_MASK)  # no box is read: the state says where to start
    return np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD))


def unsupervised_saliency(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A mask source, see ``saliency.sources``: (H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1."""
    maps = []
    for image in images:
        small = thumbnail(image, SIDE)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        mask = grabcut(small, background_saliency(lab)).astype(np.float32)
        maps.append(cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
    return maps
