"""Training loss, validation and prediction of the linear model."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.transforms import resize_mask
from data.voc import VOID, VOCSegmentation
from models.crf import Refine
from models.segmentation import LinearSegmentationModel
from segmentation.metrics import confusion_matrix
from utils.report.pictures import panel
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.files import save_image, save_label_map
from utils.run.log import progress
from utils.run.parallel import in_threads
from utils.run.precision import Precision, to_float32


def segmentation_loss(logits: Tensor, semseg: Tensor) -> Tensor:
    """Mean cross-entropy of (B, classes, H, W) against (B, H, W); void (255) is ignored."""
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


@dataclass
class NetworkOutput:
    """What the network says of one image, and the ground truth."""
    name: str  # the image's ID
    semseg: np.ndarray  # (H, W) uint8
    labels: np.ndarray  # (S, S) uint8, argmax at the network's size
    logits: np.ndarray | None  # (classes, S, S) float32, if they are to be refined


@torch.inference_mode()
def run_network(model: LinearSegmentationModel, loader: DataLoader, device: torch.device,
                keep_logits: bool) -> Iterator[NetworkOutput]:
    """The network's outputs, image by image."""
    model.eval()
    for batch in progress(loader, 'prediction'):
        logits = model(to_device(batch['image'], device))
        labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
        for i, (name, semseg) in enumerate(zip(batch['id'], batch['semseg'], strict=True)):
            kept = logits[i].float().cpu().contiguous().numpy() if keep_logits else None
            yield NetworkOutput(name, semseg, labels[i], kept)


def predict(model: LinearSegmentationModel, loader: DataLoader, dataset: VOCSegmentation, device: torch.device,
            output_dir: Path, num_visualizations: int, refine: Refine | None = None,
            threads: int = 2) -> dict[str, np.ndarray]:
    """Predict every image at its own size, write the label maps, draw the first few.

    Argmax maps are resized (nearest) to the image and written to ``predictions/``, refined ones to
    ``predictions_crf/``; ``visualizations/`` holds image | ground truth | prediction (| after CRF).
    All that is after the network runs in threads beside it. Several processes share the images.

    Args:
        refine: makes a label map of an image and its logits, e.g. the CRF; called in the threads.
        threads: how many images are worked on at a time.

    Returns:
        confusion matrices against the original masks: 'network', and 'crf' with ``refine``.
    """
    num_classes = len(dataset.classes)
    number = {name: index for index, name in enumerate(dataset.ids)}
    folders = {'network': 'predictions'} | ({'crf': 'predictions_crf'} if refine is not None else {})

    def finish(output: NetworkOutput) -> dict[str, np.ndarray]:
        semseg = output.semseg
        maps = {'network': resize_mask(output.labels, semseg.shape[1], semseg.shape[0])}
        index = number[output.name]
        draw = index < num_visualizations
        image = dataset.load(index)['image'] if draw or refine is not None else semseg
        if refine is not None and output.logits is not None:
            maps['crf'] = refine(image, output.logits)
        for task, prediction in maps.items():
            save_label_map(prediction, output_dir / folders[task] / f'{output.name}.png')
        if draw:
            captions = ['image', 'ground truth', 'prediction', 'after CRF'][:2 + len(maps)]
            save_image(panel([image, semseg, *maps.values()], captions),
                       output_dir / 'visualizations' / f'{output.name}.png')
        return {task: confusion_matrix(semseg, prediction, num_classes) for task, prediction in maps.items()}

    confusions = {task: np.zeros((num_classes, num_classes), np.int64) for task in folders}
    outputs = run_network(model, loader, device, refine is not None)
    for counts in in_threads(finish, outputs, threads, threads + (loader.batch_size or 1)):
        for task, confusion in counts.items():
            confusions[task] += confusion
    return {task: np.sum(distributed.gather_objects(confusion), axis=0) for task, confusion in confusions.items()}
