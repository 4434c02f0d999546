"""The final figure of a linear model, shared by linear_finetune.py and eval.py."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from data.voc import VOCSegmentation
from models.segmentation import LinearSegmentationModel
from segmentation.crf import dense_crf
from segmentation.engine import predict
from utils.metrics import iou_of
from utils.results import iou_entry, log_iou, save_results

log = logging.getLogger(__name__)


def score(model: LinearSegmentationModel, loader: DataLoader, dataset: VOCSegmentation, device: torch.device,
          output_dir: Path, num_visualizations: int, crf: Mapping[str, Any] | None) -> None:
    """Predict the split at the images' own sizes, print the figures and write results.json.

    Args:
        crf: keyword arguments of ``dense_crf``, or None for no CRF. With it the printed figure is that
            after the CRF; the one before it is logged and kept too.

    Raises:
        UserError: the CRF is asked for and pydensecrf is not installed.
    """
    refine = None if crf is None else partial(dense_crf, **crf)
    confusions = predict(model, loader, dataset, device, output_dir, num_visualizations, refine)
    results = {task: iou_of(confusion) for task, confusion in confusions.items()}
    if crf is not None:
        log.info('Without the CRF: mIoU %.2f; with it:', 100 * results['linear'].mean())
    log_iou(results['linear' if crf is None else 'linear_crf'], dataset.classes)
    path = save_results({task: iou_entry(iou, dataset.classes) for task, iou in results.items()}, output_dir)
    log.info('Results: %s; label maps: %s; pictures: %s', path, output_dir / 'predictions',
             output_dir / 'visualizations')
