"""Training, validation and prediction of the linear model."""
from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.transforms import resize_mask
from data.voc import VOID, VOCSegmentation
from models.segmentation import LinearSegmentationModel
from segmentation.crf import Refine
from utils.errors import UserError
from utils.logger import progress
from utils.metrics import Mean, confusion_matrix
from utils.parallel import in_threads
from utils.pictures import panel, save_image, save_label_map
from utils.runtime import to_device

log = logging.getLogger(__name__)


def segmentation_loss(logits: Tensor, semseg: Tensor) -> Tensor:
    """Mean cross-entropy of (B, classes, H, W) against (B, H, W); void (255) is ignored."""
    return F.cross_entropy(logits, semseg, ignore_index=VOID)


def train_one_epoch(model: LinearSegmentationModel, loader: DataLoader, optimizer: torch.optim.Optimizer,
                    device: torch.device, epoch: int, freeze_batchnorm: str, log_every: int) -> float:
    """One pass over the training split; returns the mean loss.

    Raises:
        UserError: the loss is not finite.
    """
    model.set_train_mode(freeze_batchnorm)
    steps, total, recent = len(loader), Mean(), Mean()
    for step, batch in enumerate(progress(loader, f'epoch {epoch}', steps), 1):
        logits = model(to_device(batch['image'], device))
        loss = segmentation_loss(logits, batch['semseg'].to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total.update(loss=loss)
        recent.update(loss=loss)
        if step % log_every == 0 or step == steps:
            mean = recent.read()['loss']
            recent.reset()
            if not math.isfinite(mean):
                raise UserError(f'the loss is {mean} at epoch {epoch}, step {step}; lower optimizer_kwargs.lr.')
            log.info('epoch %d step %d/%d  loss %.4f', epoch, step, steps, mean)
    return total.read()['loss']


@torch.inference_mode()
def validate(model: LinearSegmentationModel, loader: DataLoader, device: torch.device, num_classes: int) -> np.ndarray:
    """Confusion matrix at the network's input size; the ground truth is resized to it (nearest)."""
    model.eval()
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for batch in progress(loader, 'validation'):
        predictions = model(to_device(batch['image'], device)).argmax(1).to(torch.uint8).cpu().numpy()
        for prediction, semseg in zip(predictions, batch['semseg'], strict=True):
            small = resize_mask(semseg, prediction.shape[1], prediction.shape[0])
            confusion += confusion_matrix(small, prediction, num_classes)
    return confusion


@dataclass
class NetworkOutput:
    """What the network says of one image, and the ground truth."""
    index: int  # in the data set
    name: str  # the image's ID
    semseg: np.ndarray  # (H, W) uint8
    labels: np.ndarray  # (S, S) uint8, argmax at the network's size
    logits: np.ndarray | None  # (classes, S, S) float32, if they are to be refined


@torch.inference_mode()
def run_network(model: LinearSegmentationModel, loader: DataLoader, device: torch.device,
                keep_logits: bool) -> Iterator[NetworkOutput]:
    """The network's outputs, image by image."""
    model.eval()
    index = 0
    for batch in progress(loader, 'prediction'):
        logits = model(to_device(batch['image'], device))
        labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
        for i, (name, semseg) in enumerate(zip(batch['id'], batch['semseg'], strict=True)):
            kept = logits[i].float().cpu().contiguous().numpy() if keep_logits else None
            yield NetworkOutput(index, name, semseg, labels[i], kept)
            index += 1


def predict(model: LinearSegmentationModel, loader: DataLoader, dataset: VOCSegmentation, device: torch.device,
            output_dir: Path, num_visualizations: int, refine: Refine | None = None,
            threads: int = 2) -> dict[str, np.ndarray]:
    """Predict every image at its own size, write the label maps, draw the first few.

    Argmax maps are resized (nearest) to the image and written to ``predictions/``, refined ones to
    ``predictions_crf/``; ``visualizations/`` holds image | ground truth | prediction (| after CRF).
    All that is after the network runs in threads beside it.

    Args:
        refine: makes a label map of an image and its logits, e.g. the CRF; called in the threads.
        threads: how many images are worked on at a time.

    Returns:
        confusion matrices against the original masks: 'network', and 'crf' with ``refine``.
    """
    num_classes = len(dataset.classes)
    folders = {'network': 'predictions'} | ({'crf': 'predictions_crf'} if refine is not None else {})

    def finish(output: NetworkOutput) -> dict[str, np.ndarray]:
        semseg = output.semseg
        maps = {'network': resize_mask(output.labels, semseg.shape[1], semseg.shape[0])}
        draw = output.index < num_visualizations
        image = dataset.load(output.index)['image'] if draw or refine is not None else semseg
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
    return confusions
