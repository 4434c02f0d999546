"""Segment retrieval: each object takes the class of its nearest neighbour in a labelled memory.

    python segmentation/retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml

With --memory it takes the memory.npz that an earlier run left in its output directory.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

import numpy as np
from torch.utils.data import DataLoader

from data.build import evaluation_loader
from data.voc import VOCSegmentation, check_names
from models.build import build_prototype_model
from segmentation.embedding import EmbeddedSplit, embed_split
from segmentation.memory_bank import MemoryBank, fill_memory, load_memory, retrieval_confusion
from segmentation.neighbours import evenly, neighbour_sheet
from utils import distributed
from utils.arguments import ArgumentParser
from utils.config import add_config_arguments, as_dict, load_config, resolve_path
from utils.errors import UserError, run_script
from utils.launch import add_process_arguments, start_processes
from utils.metrics import iou_of
from utils.pictures import save_image
from utils.results import iou_entry, log_iou, save_results
from utils.run_report import write_run_report
from utils.runtime import place, prepare
from utils.schema import Retrieval

log = logging.getLogger(__name__)
SHOWN = 5  # neighbours in a row of neighbours.png, or more if more vote


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_config_arguments(parser, Retrieval)
    add_process_arguments(parser)
    parser.add_argument('--memory', metavar='PATH', help='memory.npz of an earlier run, used instead of memory_split')
    args = parser.parse_args(argv)
    if args.memory is not None:
        args.overrides.append(f'memory={json.dumps(args.memory)}')
    return args


def kept_classes(classes: Sequence[str], ignored: Sequence[str]) -> list[int]:
    """Ids of the classes that are not ignored. Raises UserError for a name that is no class."""
    check_names(ignored, classes, 'ignore_classes')
    return [i for i, name in enumerate(classes) if name not in ignored]


def write_sheet(p: Any, val: EmbeddedSplit, val_set: VOCSegmentation, predicted: np.ndarray, bank: MemoryBank) -> None:
    """Draw ``neighbours.png`` if there is anything to draw and the memory's images are here."""
    shown = evenly(np.flatnonzero(val.prototypes.any(1) & val.inside.any(1)), p.num_visualizations)
    memory_images = Path(p.db_root) / bank.db_name / 'images'
    if not len(shown) or not memory_images.is_dir():
        log.info('No neighbours.png: %s', f'no folder {memory_images}' if len(shown) else 'no object to draw')
        return
    sheet = neighbour_sheet(val, shown, predicted, [val_set.image_path(i) for i in range(len(val_set))], bank,
                            memory_images, max(SHOWN, p.num_neighbours))
    save_image(sheet, Path(p.output_dir) / 'neighbours.png')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, Retrieval, args.overrides)
    if start_processes(args.nproc, p.device, __file__, argv):
        return
    device = prepare(p)

    from_network = p.saliency == 'network'
    masks = None if from_network else p.saliency
    val_loader, val_set = evaluation_loader(p, p.val_db_name, p.val_split, masks)
    classes = val_set.classes
    kept = kept_classes(classes, p.ignore_classes)
    if p.memory is not None:  # what does not fit is found before the network runs
        bank = load_memory(resolve_path(p.memory, p.root_dir), classes, p.ignore_classes)
    else:
        memory_loader, memory_set = evaluation_loader(p, p.memory_db_name, p.memory_split, masks, skip=True)
        if memory_set.classes != classes:
            raise UserError(f'{p.memory_db_name} and {p.val_db_name} have different classes; retrieve within one '
                            'list.')
    model = build_prototype_model(p)
    if p.memory is not None:
        bank.check_dimension(p.model_kwargs.ndim if p.features == 'embedding' else model.backbone.out_channels)
    place(model, device)

    def embed(loader: DataLoader, keep_masks: bool = False) -> EmbeddedSplit:
        split = embed_split(model, loader, device, len(classes), p.features, from_network, keep_masks,
                            p.min_component if p.components else None)
        ignored = [i for i in range(len(classes)) if i not in kept]
        split.inside[:, ignored] = split.outside[:, ignored] = 0  # void
        return split

    if p.memory is None:
        made_by = f'{p.features} of {p.pretraining} on {p.memory_db_name} {p.memory_split}, masks: {p.saliency}'
        bank = fill_memory(embed(memory_loader), memory_set.ids, classes, p.ignore_classes, p.memory_db_name, made_by)
        if distributed.is_main():
            bank.save(Path(p.output_dir) / 'memory.npz')
    log.info('The memory holds %d objects of dimension %d (%s)', len(bank), bank.prototypes.shape[1], bank.made_by)
    val = embed(val_loader, keep_masks=True)
    if not distributed.is_main():
        return
    predicted = bank.nearest(val.prototypes, p.num_neighbours)
    confusion = retrieval_confusion(val, predicted)
    iou = iou_of(confusion)
    scored = [i for i in kept if i > 0] if p.ignore_classes else kept
    names = [classes[i] for i in scored]
    log_iou(iou[scored], names)
    write_sheet(p, val, val_set, predicted, bank)
    path = save_results({'retrieval': {**iou_entry(iou[scored], names), 'memory': len(bank),
                                       'num_neighbours': p.num_neighbours}}, Path(p.output_dir))
    log.info('Results: %s', path)
    write_run_report(as_dict(p), 'Retrieval', classes, {'retrieval': confusion})


if __name__ == '__main__':
    run_script(main)
