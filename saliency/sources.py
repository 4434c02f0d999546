"""Sources of masks: what goes into their networks, from a map to a mask, and how the masks are scored."""
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from torch.utils.data import DataLoader

from data.transforms import mask_iou, normalize, split_mask
from utils.run import distributed
from utils.run.log import progress

# (H, W, 3) uint8 RGB images of any sizes -> of each a (H, W) float32 map in 0..1, 1 on its salient objects, or (H, W)
# uint8, 0 outside and 1..n on its objects
MaskSource = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
SMALLEST = 0.01  # segment of a mask, as a share of the image
SURE = 0.999  # probability at which a map that is 0 or 1 enters the CRF
CERTAIN = float(np.log(SURE / (1 - SURE)))  # its logit
BETA2 = 0.3  # of the F-measure: precision counts more than recall (Achanta et al., CVPR 2009)
THRESHOLDS = 255  # 0/255 .. 254/255, of precision and recall


def resize_by_area(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) to (height, width): by area where it shrinks, else bilinear."""
    shrinks = values.shape[0] > size[0] and values.shape[1] > size[1]
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def network_input(image: np.ndarray, size: tuple[int, int], mean: Sequence[float], scale: Sequence[float],
                  divide_by_maximum: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3, height, width) float32: resized to ``size``, (height, width), and normalised.

    A value v in 0..1 becomes (v - mean) / scale, three numbers each. 1 is the maximum of the resized image, or 255.
    """
    resized = resize_by_area(image, size)
    whole = max(int(resized.max()), 1) if divide_by_maximum else 255
    return normalize(resized, mean, scale, whole).numpy()


def stretch(values: np.ndarray) -> np.ndarray:
    """Stretch to 0..1; equal values, in which nothing is salient, become 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high - low > 1e-12 else np.zeros_like(values)


def image_map(saliency: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Stretch a network's map (h, w) to 0..1 and resize it to its image: (H, W) float32."""
    return cv2.resize(stretch(saliency.astype(np.float32)), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def crf_logits(saliency: np.ndarray) -> np.ndarray:
    """For ``dense_crf``: (H, W) float probabilities of an object, or numbers 0..n of several -> (2 or n + 1, H, W)."""
    if saliency.dtype == np.uint8:
        inside = saliency == np.arange(saliency.max() + 1)[:, None, None]
        return np.where(inside, np.float32(CERTAIN), np.float32(0))
    object_probability = np.clip(saliency, 1 - SURE, SURE)
    logits = np.log(object_probability / (1 - object_probability))
    return np.stack([np.zeros_like(logits), logits]).astype(np.float32)


def binarise(saliency: np.ndarray) -> np.ndarray | None:
    """Threshold a map (H, W) in 0..1 at 0.5 and drop the connected segments (8 neighbours) below 1% of the image.

    (H, W) bool, or None when nothing is left: the image is to be left out (ICCV 2021, supplementary material).
    """
    segments, count = split_mask((saliency > 0.5).astype(np.uint8), SMALLEST)
    return segments > 0 if count else None


def map_scores(saliency: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU, mean absolute error, precision and recall at each threshold of one map: (2 + 2 THRESHOLDS,), to be averaged.

    The map is (H, W) in 0..1, and its mask that of ``saliency/predict.py``, empty for an image left out. In ``truth``,
    (H, W), objects are nonzero.
    """
    truth, mask = truth > 0, binarise(saliency)
    levels = np.minimum((saliency * THRESHOLDS).astype(int), THRESHOLDS - 1)
    chosen, hits = (np.bincount(values.ravel(), minlength=THRESHOLDS)[::-1].cumsum()[::-1]  # that reach a threshold
                    for values in (levels, levels[truth]))
    return np.concatenate([[mask_iou(np.zeros_like(truth) if mask is None else mask, truth),
                            np.abs(saliency - truth).mean()],
                           hits / np.maximum(chosen, 1), hits / max(int(truth.sum()), 1)])


def read_scores(mean: np.ndarray) -> dict[str, float]:
    """'mIoU', 'maxF' (of mean precision and recall at the best threshold) and 'MAE' in percent, as in results.json."""
    precision, recall = mean[2:].reshape(2, THRESHOLDS)
    f = (1 + BETA2) * precision * recall / np.maximum(BETA2 * precision + recall, 1e-12)
    return {'mIoU': 100 * float(mean[0]), 'maxF': 100 * float(f.max()), 'MAE': 100 * float(mean[1])}


def validate(source: MaskSource, loader: DataLoader) -> dict[str, float]:
    """Score a mask source against precomputed masks, at each image's own size; see ``read_scores``.

    A batch has lists of 'image', (H, W, 3) uint8, and 'sal', (H, W) in {0, 1}; several processes take them in turn.
    """
    scores = [map_scores(saliency, truth) for batch in progress(loader, 'validation')
              for saliency, truth in zip(source(batch['image']), batch['sal'], strict=True)]
    totals = distributed.gather_objects((len(scores), np.sum(scores, axis=0)), patient=True)
    return read_scores(sum(total for _, total in totals) / sum(count for count, _ in totals))
