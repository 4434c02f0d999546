"""From label maps to results: the one way through evaluation for linear models and for label maps on disk."""
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.image_set import ImageSet
from data.transforms import resize_mask
from models.crf import Refine, crf_in_workers
from models.segmentation import LinearSegmentationModel
from segmentation.engine import Output, run_network
from segmentation.metrics import confusion_matrix, iou_of
from utils.report.pictures import panel
from utils.report.results import iou_entry, log_iou, remove_stale, save_results
from utils.run import distributed
from utils.run.files import save_image, save_label_map
from utils.run.parallel import available_cores, in_threads

log = logging.getLogger(__name__)
FOLDERS = 'predictions', 'predictions_crf'  # label maps of the network, and refined ones
CAPTIONS = 'image', 'ground truth', 'prediction', 'after CRF'


class Scored(NamedTuple):
    """What the report of an evaluation shows; empty but in the main process.

    results: all that results.json holds now.
    confusions: {task: (classes, classes) true x predicted pixels}.
    pictures: (ID, image | ground truth | prediction (| after CRF)).
    """
    results: dict[str, Any] = {}
    confusions: dict[str, np.ndarray] = {}
    pictures: Sequence[tuple[str, Image.Image]] = ()


def predict(model: LinearSegmentationModel, loader: DataLoader, device: torch.device, output_dir: Path,
            num_classes: int, drawn: Collection[str], refine: Refine | None = None,
            threads: int = 2) -> tuple[list[np.ndarray], dict[str, Image.Image]]:
    """Predict every image at its own size, write the label maps and draw some.

    Argmax maps are resized (nearest) to the image and written to ``predictions/``, refined ones to
    ``predictions_crf/``, pictures to ``visualizations/``. All that is after the network runs in threads beside it.
    Several processes share the images.

    Args:
        loader: its batches bring the images as decoded, those of ``drawn``, with ``refine`` all.
        refine: makes a label map of an image and its logits, e.g. the CRF; called in the threads.

    Returns:
        confusion matrices against the original masks, of the network and of the refined maps; {ID: picture}.
    """
    def finish(output: Output) -> tuple[list[np.ndarray], dict[str, Image.Image]]:
        semseg, pictures = output.semseg, {}
        maps = [resize_mask(output.labels, semseg.shape[1], semseg.shape[0])]
        if refine is not None and output.image is not None and output.logits is not None:
            maps.append(refine(output.image, output.logits))
        for folder, labels in zip(FOLDERS, maps, strict=False):
            save_label_map(labels, output_dir / folder / f'{output.name}.png')
        if output.name in drawn and output.image is not None:
            picture = panel([output.image, semseg, *maps], CAPTIONS[:2 + len(maps)])
            save_image(picture, output_dir / 'visualizations' / f'{output.name}.png')
            pictures[output.name] = picture
        return [confusion_matrix(semseg, labels, num_classes) for labels in maps], pictures

    confusions = [np.zeros((num_classes, num_classes), np.int64) for _ in FOLDERS[:1 if refine is None else 2]]
    drawings: dict[str, Image.Image] = {}
    outputs = run_network(model, loader, device, refine is not None)
    for counts, pictures in in_threads(finish, outputs, threads, threads + (loader.batch_size or 1)):
        for confusion, of_image in zip(confusions, counts, strict=True):
            confusion += of_image
        drawings |= pictures
    gathered = distributed.gather_objects((confusions, drawings))
    return ([np.sum(parts, axis=0) for parts in zip(*(counts for counts, _ in gathered), strict=True)],
            {name: picture for _, pictures in gathered for name, picture in pictures.items()})


def score(model: LinearSegmentationModel, loader: DataLoader, dataset: ImageSet, device: torch.device,
          output_dir: Path, num_visualizations: int, crf: Mapping[str, Any] | None, crf_workers: int | None,
          task: str, made: Mapping[str, Any]) -> Scored:
    """Predict the split at the images' own sizes, print the results and write results.json.

    Results and label maps that an earlier CRF left in ``output_dir`` are replaced; without a CRF they are removed if
    they were made with something else.

    Args:
        loader: see ``predict``; ``dataset`` is its images.
        crf: keyword arguments of ``dense_crf``, or None for no CRF. With it the printed result is that
            after the CRF; the one before it is logged and kept too.
        crf_workers: processes of the CRF, 0 for none of its own, None for one a CPU core.
        task: name of the entry in results.json; that after the CRF is <task>_crf.
        made: its 'made_with'.

    Raises:
        UserError: the CRF is asked for and pydensecrf is not installed, or one of its processes was killed.
    """
    workers, drawn = available_cores() if crf_workers is None else crf_workers, dataset.ids[:num_visualizations]
    with nullcontext() if crf is None else crf_in_workers(crf, workers) as refine:
        threads = 2 if crf is None else max(2, 2 * workers)  # while one image is refined, the next waits
        confusions, pictures = predict(model, loader, device, output_dir, len(dataset.classes), drawn, refine, threads)
    if not distributed.is_main():
        return Scored()
    if crf is not None:
        log.info('Without the CRF: mIoU %.2f; with it:', 100 * iou_of(confusions[0]).mean())
    for folder, names in ((FOLDERS[0], dataset.ids), (FOLDERS[1], dataset.ids), ('visualizations', drawn)):
        remove_stale(output_dir / folder, names)
    refined = f'{task}_crf'
    named = dict(zip((task, refined), confusions, strict=False))
    results = keep_results(named, dataset.classes, output_dir, made, [refined])
    if refined not in results:
        shutil.rmtree(output_dir / FOLDERS[1], ignore_errors=True)
    log.info('Label maps: %s; pictures: %s', output_dir / FOLDERS[0], output_dir / 'visualizations')
    return Scored(results, named, [(name, pictures[name]) for name in drawn])


def keep_results(confusions: Mapping[str, np.ndarray], classes: Sequence[str], output_dir: Path,
                 made: Mapping[str, Any], companions: Sequence[str] = ()) -> dict[str, Any]:
    """Print the IoU of the last of the matrices, {task: matrix}, and save those of all; see ``save_results``."""
    present = next(iter(confusions.values())).sum(1) > 0
    entries = {task: iou_entry(iou_of(confusion), classes, present) for task, confusion in confusions.items()}
    log_iou(list(entries.values())[-1])
    return save_results({task: {**entry, 'made_with': dict(made)} for task, entry in entries.items()}, output_dir,
                        companions)
