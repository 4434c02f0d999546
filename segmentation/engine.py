"""The linear model in training and in evaluation: its loss, validation, label maps, their results, and its weights."""
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.image_set import ImageSet
from data.label_maps import VOID, read_names, read_texts, whole_label_maps, write_names
from data.transforms import resize_mask
from models.crf import Refine, crf_in_workers
from models.segmentation import LinearSegmentationModel
from segmentation.clustering import is_matched, match_clusters, merge_clusters, merge_labels, require_known
from segmentation.metrics import confusion_matrix, iou_of
from utils.config.reader import damaged, read_config
from utils.report.pictures import panel
from utils.report.results import iou_entry, log_iou, read_results, save_results
from utils.report.run import PREDICTIONS, write_run_report
from utils.run import distributed
from utils.run.devices import Precision, to_device, to_float32
from utils.run.errors import UserError, name_some
from utils.run.files import remove_stale, save_image, save_label_map
from utils.run.log import progress
from utils.run.parallel import available_cores, in_threads

log = logging.getLogger(__name__)
MAPS, PICTURES = ('predictions', 'predictions_crf'), 'visualizations'  # label maps of the network, and refined ones
TASKS = 'linear', 'finetuned', (DISTILLED := 'distilled')  # of a model; the last: on label maps
AGREEMENT = 'agreement'  # of a distilled model with label maps: the scores where there is no ground truth
TRAINED_ON = 'label_maps', 'label_maps_digest', 'select'  # of a distilled model
BEST = 'best_model.pth.tar'  # a plain state dict; <stem>.classes.yml beside it says what it was trained for


def compute_losses(model: nn.Module, batch: dict[str, Any], precision: Precision,
                   hardest: float | None = None) -> dict[str, Tensor]:
    """The 'loss' of one batch: mean cross-entropy without ignored pixels, or ``ohem_loss`` of the ``hardest`` share."""
    with precision.autocast():
        logits = to_float32(model(precision.to_device(batch['image'])))  # B x classes x H x W
    labels = precision.to_device(batch['semseg'])
    if hardest is None:
        return {'loss': F.cross_entropy(logits, labels, ignore_index=VOID)}
    if (batch['semseg'] == VOID).all():
        log.warning('no pixel of the images %s has a label: their loss is 0', name_some(batch['id']))
    return {'loss': ohem_loss(logits, labels, hardest)}


def ohem_loss(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Mean cross-entropy of the hardest pixels: logits (B, C, H, W), labels (B, H, W), 255 is ignored.

    These are ``share`` of all pixels, or all labelled ones where they are fewer; 0 of none (Shrivastava et al., CVPR
    2016; as MaskDistill has it, arXiv 2206.06363, section 4.1).
    """
    losses = F.cross_entropy(logits, labels, ignore_index=VOID, reduction='none').flatten()
    largest = losses.topk(max(1, int(share * losses.numel()))).values  # ignored pixels have 0 and come last
    count = (labels != VOID).sum().clamp(max=len(largest))
    return largest.sum() / count.clamp(min=1)


class Output(NamedTuple):
    """An image of the loader, and what the network says of it at its own size S."""
    name: str  # the image's ID
    image: Any  # (H, W, 3) uint8; None if it did not travel with the batch
    semseg: np.ndarray  # (H, W) uint8
    labels: np.ndarray  # (S, S) uint8
    logits: Any  # (classes, S, S) float32; None if they are not kept


@torch.inference_mode()
def run_network(model: LinearSegmentationModel, loader: DataLoader, device: torch.device,
                keep_logits: bool = False) -> Iterator[Output]:
    """The network's outputs, image by image."""
    model.eval()
    for batch in progress(loader, 'evaluation'):
        logits = model(to_device(batch['image'], device))
        labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
        kept = logits.cpu().contiguous().numpy() if keep_logits else [None] * len(labels)
        yield from map(Output, batch['id'], batch['original'], batch['semseg'], labels, kept)


def validate(model: LinearSegmentationModel, loader: DataLoader, device: torch.device, classes: Sequence[str],
             names: Sequence[str]) -> np.ndarray:
    """Confusion matrix of all processes at the network's input size, of labels with ``names``, see ``merge_labels``."""
    counts = (confusion_matrix(resize_mask(output.semseg, *output.labels.shape[::-1]), output.labels, len(classes),
                               len(names)) for output in run_network(model, loader, device))
    # 0 of a process without images
    return merge_labels(np.asarray(sum(distributed.gather_objects(sum(counts), patient=True))), names, classes)


def score(model: LinearSegmentationModel, loader: DataLoader, dataset: ImageSet, names: Sequence[str],
          device: torch.device, config: Mapping[str, Any], title: str, task: str, made: Mapping[str, Any],
          crf: bool) -> None:
    """Predict the split, print the results, and write them with label maps, pictures and report.

    Argmax maps are resized (nearest) to the image, in threads beside the network. Batches bring the images that are
    drawn as decoded; with ``crf``, by the keys of ``config``, all. ``names``, ``made`` and ``task``, with a CRF also
    <task>_crf: see ``report_scores``. Without a CRF what an earlier one of something else left goes.
    Raises UserError if pydensecrf is not installed, or if a process of the CRF was killed.
    """
    workers, output_dir = config['crf_workers'], Path(config['output_dir'])
    workers = available_cores() if workers is None else workers
    threads = max(2, 2 * workers) if crf else 2  # while one image is refined, the next waits
    ids, drawn, classes = dataset.ids, dataset.ids[:config['num_visualizations']], dataset.classes

    def finish(refine: Refine | None, output: Output) -> np.ndarray:
        maps = [resize_mask(output.labels, *output.semseg.shape[::-1])]
        if refine is not None:
            maps.append(refine(output.image, output.logits))
        for folder, labels in zip(MAPS, maps, strict=False):
            save_label_map(labels, output_dir / folder / f'{output.name}.png')
        if output.name in drawn:
            captions = 'image', 'label map' if task == AGREEMENT else 'ground truth', 'prediction', 'after CRF'
            picture = panel([output.image, output.semseg, *maps], captions[:2 + len(maps)])
            save_image(picture, output_dir / PICTURES / f'{output.name}.png')
        return np.stack([confusion_matrix(output.semseg, labels, len(classes), len(names)) for labels in maps])

    require_known(names, classes)
    with ExitStack() as stack:
        with distributed.main_first():
            for folder in MAPS[:1 + crf] if distributed.is_main() else ():
                stack.enter_context(whole_label_maps(output_dir / folder, ids, names))
        refine = stack.enter_context(crf_in_workers(config['crf_kwargs'], workers)) if crf else None
        outputs = run_network(model, loader, device, crf)
        counts = in_threads(partial(finish, refine), outputs, threads, threads + (loader.batch_size or 1))
        # (1 or 2, classes, labels), of the network and of the refined maps; 0 of a process without images
        matrices = np.asarray(sum(distributed.gather_objects(sum(counts), patient=True)))
    if not distributed.is_main():
        return
    if crf:
        log.info('Without the CRF: mIoU %.2f; with it:', 100 * iou_of(merge_labels(matrices[0], names, classes)).mean())
    remove_stale(output_dir / PICTURES, drawn)
    log.info('Label maps: %s; pictures: %s', output_dir / MAPS[0], output_dir / PICTURES)
    confusions = dict(zip((task, f'{task}_crf'), matrices, strict=False))
    refined = read_results(output_dir).get(f'{task}_crf', {}).get('made_with', {})  # what the maps there are of
    results = report_scores(config, title, confusions, names, classes, made,
                            [(name, output_dir / PICTURES / f'{name}.png') for name in drawn])
    others = [name for name in ('fingerprint', 'data', 'size') if refined.get(name) != made[name]]
    if f'{task}_crf' not in results and others:
        shutil.rmtree(output_dir / MAPS[1], ignore_errors=True)


def report_scores(config: Mapping[str, Any], title: str, confusions: Mapping[str, np.ndarray], names: Sequence[str],
                  classes: Sequence[str], made: Mapping[str, Any],
                  pictures: Sequence[tuple[str, Path]] = ()) -> dict[str, Any]:
    """Print the IoU of the last of {task: (classes, labels) pixels}, save all, write the report; gives all results.

    ``names`` are those of the labels, see ``merge_labels``, ``made`` the entries' 'made_with'. What was DISTILLED also
    has <task>_matched, after an assignment of greatest IoU, as K-means has. An earlier <task>_crf of others goes.
    """
    if is_matched(names, classes):
        log.info('The labels are clusters: each takes the class of the assignment of greatest IoU')
        made = {**made, 'matched': True}
    merged = {f'{task}_matched': merge_clusters(confusion, match_clusters(confusion))
              for task, confusion in confusions.items() if task.startswith(DISTILLED)}
    if merged:
        made = {**made, 'labels': list(names)}
    merged |= {task: merge_labels(confusion, names, classes) for task, confusion in confusions.items()}
    entries = {task: iou_entry(iou_of(matrix), classes, matrix.sum(1) > 0) for task, matrix in merged.items()}
    for task in merged if DISTILLED in confusions else ():
        log.info('%s: mIoU %.2f', task, entries[task]['mIoU'])
    log_iou(list(entries.values())[-1])
    refined = [f'{task}_crf{end}' for task in confusions for end in ('', '_matched')]
    results = save_results({task: {**entry, 'made_with': dict(made)} for task, entry in entries.items()},
                           Path(config['output_dir']), refined)
    write_run_report(config, title, results, classes, merged, {PREDICTIONS: pictures})
    return results


def stem(weights: Path) -> str:
    """'best_model' of best_model.pth.tar."""
    return Path(weights.name.removesuffix('.tar')).stem


def _classes_file(weights: Path) -> Path:
    return weights.with_name(f'{stem(weights)}.classes.yml')


def write_trained(weights: Path, task: str, classes: Sequence[str]) -> None:
    """Write <stem>.classes.yml beside the weights."""
    write_names(_classes_file(weights), classes, task=task)


def read_trained(weights: Path, scored: Sequence[str] | None = None) -> tuple[str, tuple[str, ...] | None]:
    """The name of a model's results, one of TASKS, and its classes: what <stem>.classes.yml says.

    Without that file, of an earlier version, the task is that of config.yml beside it and the classes are None. Raises
    UserError if one is damaged, or the classes are not those that are to be ``scored``, unless it was DISTILLED.
    """
    path = _classes_file(weights)
    if weights.name == 'checkpoint.pth.tar' and not path.exists():  # of the training whose best model stands beside it
        path = _classes_file(weights.with_name(BEST))
    if not path.exists():
        run = read_config(weights.parent) or {}
        return 'finetuned' if run.get('network_lr_factor') else 'linear', None
    task, classes = read_texts(path).get('task'), read_names(path) or ()
    if task not in TASKS:
        raise damaged(path, 'it holds no task')
    if scored is not None and task != DISTILLED and classes != tuple(scored):
        raise UserError(f'{weights} was trained for the classes {name_some(classes, 21)}, and the data set has '
                        f'{name_some(scored, 21)}; take the data set and eval_classes of its training.')
    return task, classes


def check_free(output_dir: Path, task: str, weights: Path, digest: str) -> None:
    """Raise UserError if results of these weights would join another best model or replace results of others."""
    best, other = output_dir / BEST, 'choose another one with --set output_dir=...'
    if best.is_file():
        if not best.samefile(weights):
            raise UserError(f'output_dir {output_dir} is that of a training run, for results of its own {BEST} and not '
                            f'of {weights}; {other}, or leave it out.')
        return
    results = read_results(output_dir)
    for name in {task, f'{task}_crf'} & results.keys():
        made = results[name].get('made_with', {})
        if made.get('fingerprint') != digest:
            theirs = made.get('weights', 'of an earlier version, which does not name them')
            raise UserError(f'output_dir {output_dir} holds results of other weights ({theirs}), which those of '
                            f'{weights} would replace; {other}.')
