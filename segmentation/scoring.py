"""The final figure of a linear model, shared by linear_finetune.py and eval.py."""
from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.voc import VOCSegmentation
from models.crf import crf_in_workers
from models.segmentation import LinearSegmentationModel
from segmentation.engine import predict
from segmentation.metrics import iou_of
from utils.report.results import iou_entry, log_iou, read_results, remove_stale, save_results
from utils.run import distributed
from utils.run.parallel import available_cores

log = logging.getLogger(__name__)


def score(model: LinearSegmentationModel, loader: DataLoader, dataset: VOCSegmentation, device: torch.device,
          output_dir: Path, num_visualizations: int, crf: Mapping[str, Any] | None, crf_workers: int | None,
          task: str, made: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Predict the split at the images' own sizes, print the figures and write results.json.

    Results and label maps that an earlier CRF left in ``output_dir`` are replaced; without a CRF they are removed if
    they were made with something else.

    Args:
        crf: keyword arguments of ``dense_crf``, or None for no CRF. With it the printed figure is that
            after the CRF; the one before it is logged and kept too.
        crf_workers: processes of the CRF, 0 for none of its own, None for one a CPU core.
        task: name of the entry in results.json; that after the CRF is <task>_crf.
        made: its 'made_with'.

    Returns:
        {name of the entry: (classes, classes) confusion matrix}.

    Raises:
        UserError: the CRF is asked for and pydensecrf is not installed, or one of its processes was killed.
    """
    workers = available_cores() if crf_workers is None else crf_workers
    with nullcontext() if crf is None else crf_in_workers(crf, workers) as refine:
        threads = 2 if crf is None else max(2, 2 * workers)  # while one image is refined, the next waits
        confusions = predict(model, loader, dataset, device, output_dir, num_visualizations, refine, threads)
    names = {'network': task, 'crf': f'{task}_crf'}
    named = {names[step]: confusion for step, confusion in confusions.items()}
    results = {step: iou_of(confusion) for step, confusion in confusions.items()}
    if crf is not None:
        log.info('Without the CRF: mIoU %.2f; with it:', 100 * results['network'].mean())
    if not distributed.is_main():
        return named
    present = confusions['network'].sum(1) > 0
    log_iou(results['network' if crf is None else 'crf'], dataset.classes, present)
    for folder, names_kept in (('predictions', dataset.ids), ('predictions_crf', dataset.ids),
                               ('visualizations', dataset.ids[:num_visualizations])):
        remove_stale(output_dir / folder, names_kept)
    refined = read_results(output_dir).get(names['crf'], {})  # by an earlier CRF
    stale = crf is None and refined.get('made_with') != made
    if stale:
        shutil.rmtree(output_dir / 'predictions_crf', ignore_errors=True)
    path = save_results({names[step]: {**iou_entry(iou, dataset.classes, present), 'made_with': dict(made)}
                         for step, iou in results.items()}, output_dir, drop=[names['crf']] if stale else [])
    log.info('Results: %s; label maps: %s; pictures: %s', path, output_dir / 'predictions',
             output_dir / 'visualizations')
    return named
