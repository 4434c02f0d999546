"""Training loss, validation and prediction of the linear model."""
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.transforms import resize_mask
from data.voc import VOID
from models.segmentation import LinearSegmentationModel
from segmentation.metrics import confusion_matrix
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.log import progress
from utils.run.precision import Precision, to_float32


def segmentation_loss(logits: Tensor, semseg: Tensor) -> Tensor:
    """Mean cross-entropy of (B, classes, H, W) against (B, H, W); the ignore label (255) does not count."""
    return F.cross_entropy(logits, semseg, ignore_index=VOID)


def compute_losses(model: nn.Module, batch: dict[str, Any], precision: Precision) -> dict[str, Tensor]:
    """The 'loss' of one batch of the training split, with gradient.

    Args:
        model: LinearSegmentationModel, or what ``distributed.parallel`` made of it.
    """
    with precision.autocast():
        logits = model(precision.to_device(batch['image']))
    return {'loss': segmentation_loss(to_float32(logits), precision.to_device(batch['semseg']))}


@torch.inference_mode()
def validate(model: LinearSegmentationModel, loader: DataLoader, device: torch.device, num_classes: int) -> np.ndarray:
    """Confusion matrix at the network's input size; the ground truth is resized to it (nearest).

    Each process counts the images of its own loader; the counts are added up.
    """
    model.eval()
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for batch in progress(loader, 'validation'):
        predictions = model(to_device(batch['image'], device)).argmax(1).to(torch.uint8).cpu().numpy()
        for prediction, semseg in zip(predictions, batch['semseg'], strict=True):
            small = resize_mask(semseg, prediction.shape[1], prediction.shape[0])
            confusion += confusion_matrix(small, prediction, num_classes)
    return np.sum(distributed.gather_objects(confusion), axis=0)


class Output(NamedTuple):
    """An image of the loader, and what the network says of it at its own size S."""
    name: str  # the image's ID
    image: np.ndarray | None  # (H, W, 3) uint8, if it travelled with the batch
    semseg: np.ndarray  # (H, W) uint8
    labels: np.ndarray  # (S, S) uint8
    logits: np.ndarray | None  # (classes, S, S) float32, if they are to be refined


@torch.inference_mode()
def run_network(model: LinearSegmentationModel, loader: DataLoader, device: torch.device,
                keep_logits: bool) -> Iterator[Output]:
    """The network's outputs, image by image."""
    model.eval()
    for batch in progress(loader, 'prediction'):
        logits = model(to_device(batch['image'], device))
        labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
        for i, sample in enumerate(zip(batch['id'], batch['original'], batch['semseg'], strict=True)):
            yield Output(*sample, labels[i], logits[i].float().cpu().contiguous().numpy() if keep_logits else None)
