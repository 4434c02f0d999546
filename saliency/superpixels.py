"""SLIC superpixels and their graph, vectorised over the pixels."""
import numpy as np

COMPACTNESS = 15.0  # weight of the distance in space, in units of colour distance
ITERATIONS = 6


def slic(lab: np.ndarray, count: int = 250) -> np.ndarray:
    """Cut an image (H, W, 3), CIE-Lab, into about ``count`` compact patches of similar colour: (H, W) labels from 0.

    K-means in (colour, position), in which a pixel may join only the nine centres around its own cell of a regular
    grid (Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods", PAMI 2012).
    """
    height, width = lab.shape[:2]
    step = max(1.0, np.sqrt(height * width / count))
    rows, cols = max(1, round(height / step)), max(1, round(width / step))
    y, x = np.mgrid[:height, :width]
    row, col = (y * rows // height).ravel(), (x * cols // width).ravel()
    scale = COMPACTNESS / step
    points = np.column_stack([lab.reshape(-1, 3), y.ravel() * scale, x.ravel() * scale]).astype(np.float32)
    label = row * cols + col
    centres = cluster_means(points, label, rows * cols)
    candidates = [np.clip(row + dy, 0, rows - 1) * cols + np.clip(col + dx, 0, cols - 1)
                  for dy in (0, -1, 1) for dx in (0, -1, 1)]
    for _ in range(ITERATIONS):
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


def adjacency(labels: np.ndarray) -> np.ndarray:
    """(P, P) bool: which patches touch (8 neighbours); symmetric, the diagonal is False."""
    count = labels.max() + 1
    touch = np.zeros((count, count), bool)
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]),
                 (labels[1:, 1:], labels[:-1, :-1]), (labels[1:, :-1], labels[:-1, 1:])):
        touch[a, b] = True
    return (touch | touch.T) & ~np.eye(count, dtype=bool)


def on_border(labels: np.ndarray) -> np.ndarray:
    """(P,) bool: which patches touch the border of the image."""
    border = np.zeros(labels.max() + 1, bool)
    border[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    return border
