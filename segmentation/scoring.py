"""The final figure of a linear model, shared by linear_finetune.py and eval.py."""
from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from models.segmentation import LinearSegmentationModel
from segmentation.crf import dense_crf, require_crf
from segmentation.engine import predict
from utils.metrics import iou_of
from utils.results import iou_entry, log_iou, save_results

log = logging.getLogger(__name__)


def score(p: Any, model: LinearSegmentationModel, loader: DataLoader, device: torch.device, crf: bool) -> None:
    """Predict the split at the images' own sizes, print the figures and write results.json.

    With ``crf`` the printed figure is that after the CRF; the one before it is logged and kept too.

    Raises:
        UserError: the CRF is asked for and pydensecrf is not installed.
    """
    if crf:
        require_crf()
    refine = partial(dense_crf, **p.crf_kwargs) if crf else None
    output_dir = Path(p.output_dir)
    confusions = predict(model, loader, device, output_dir, p.num_visualizations, refine)
    classes = loader.dataset.classes  # type: ignore[attr-defined]
    results = {task: iou_of(confusion) for task, confusion in confusions.items()}
    if crf:
        log.info('Without the CRF: mIoU %.2f; with it:', 100 * results['linear'].mean())
    log_iou(results['linear_crf' if crf else 'linear'], classes)
    path = save_results({task: iou_entry(iou, classes) for task, iou in results.items()}, output_dir)
    log.info('Results: %s; label maps: %s; pictures: %s', path, output_dir / 'predictions',
             output_dir / 'visualizations')
