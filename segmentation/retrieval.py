"""Segment retrieval: each object takes the class of its nearest neighbour in a labelled memory.

    python segmentation/retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml

Votes and scores count pixels at val_size x val_size. Where ignore_classes is set, one run gives two results:
'retrieval' on all classes, printed first, and 'retrieval_<n>' on the n that are left. With --memory it takes the
memory.npz that an earlier run left in its output directory, whatever its ignore_classes.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

import numpy as np
from torch.utils.data import DataLoader

from data.loaders import evaluation_loader
from data.voc import VOCSegmentation, check_names
from models.build import build_prototype_model, prototype_network
from segmentation.feature_index import MemoryBank, fill_memory, load_memory, retrieval_confusion
from segmentation.metrics import iou_of
from segmentation.neighbours import evenly, neighbour_sheet
from segmentation.objects import EmbeddedSplit, embed_split
from segmentation.provenance import made_with_network, warn_of_shared
from utils.config.cli import ArgumentParser
from utils.config.load import add_config_arguments, as_dict, load_config, resolve_path
from utils.config.schema import Retrieval
from utils.report.results import iou_entry, log_iou, save_results
from utils.report.run import NEIGHBOURS, write_run_report
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.launch import add_process_arguments, start_processes
from utils.run.log import warn_of_failure
from utils.run.script import run_script
from utils.run.setup import prepare

log = logging.getLogger(__name__)
SHOWN = 5  # neighbours in a row of neighbours.png, or more if more vote


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_config_arguments(parser, Retrieval)
    add_process_arguments(parser)
    parser.add_argument('--memory', metavar='PATH', help='memory.npz of an earlier run, used instead of memory_split')
    args = parser.parse_args(argv)
    if args.memory is not None:
        args.overrides.append(f'memory={json.dumps(args.memory, ensure_ascii=False)}')
    return args


class Protocol(NamedTuple):
    """A way to score: ids of the classes that are ignored, in the memory and in val, and of those in the mean."""
    ignored: list[int]
    scored: list[int]


def protocols_of(classes: Sequence[str], ignored: Sequence[str]) -> dict[str, Protocol]:
    """'retrieval' on all classes, and where some are ignored 'retrieval_<n>' on the n others, without background.

    Raises:
        UserError: a name is no class, or no class is left.
    """
    check_names(ignored, classes, 'ignore_classes')
    protocols = {'retrieval': Protocol([], list(range(len(classes))))}
    if ignored:
        scored = [i for i, name in enumerate(classes) if i > 0 and name not in ignored]
        if not scored:
            raise UserError('ignore_classes leaves no class to retrieve; take some out.')
        protocols[f'retrieval_{len(scored)}'] = Protocol([classes.index(name) for name in ignored], scored)
    return protocols


def write_sheet(p: Any, val: EmbeddedSplit, val_set: VOCSegmentation, predicted: np.ndarray, bank: MemoryBank,
                own: np.ndarray | None) -> None:
    """Draw ``neighbours.png`` if there is anything to draw and the memory's images are here."""
    shown = evenly(np.flatnonzero(val.prototypes.any(1) & val.inside.any(1)), p.num_visualizations)
    memory_images = Path(p.db_root) / bank.db_name / 'images'
    if not len(shown) or not memory_images.is_dir():
        log.info('No neighbours.png: %s', f'no folder {memory_images}' if len(shown) else 'no object to draw')
        return
    sheet = neighbour_sheet(val, shown, predicted, [val_set.image_path(i) for i in range(len(val_set))], bank,
                            memory_images, max(SHOWN, p.num_neighbours), own)
    save_image(sheet, Path(p.output_dir) / NEIGHBOURS)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, Retrieval, args.overrides)
    if start_processes(args.nproc, p.device, __file__, argv):
        return
    device = prepare(p)

    from_network = p.saliency == 'network'
    masks = None if from_network else p.saliency
    model = build_prototype_model(p)
    mean, std = model.backbone.mean, model.backbone.std
    val_loader, val_set = evaluation_loader(p, p.val_db_name, p.val_split, mean, std, masks)
    classes = val_set.classes
    protocols = protocols_of(classes, p.ignore_classes)
    if p.memory is not None:  # what does not fit is found before the network runs
        bank = load_memory(resolve_path(p.memory, p.root_dir), classes)
    else:
        memory_loader, memory_set = evaluation_loader(p, p.memory_db_name, p.memory_split, mean, std, masks,
                                                      skip=True)
        if memory_set.classes != classes:
            raise UserError(f'{p.memory_db_name} and {p.val_db_name} have different classes; retrieve within one '
                            'list.')
    network = prototype_network(p, model)
    if p.memory is not None:
        bank.check_network(p.memory, network)
    to_device(model, device)

    def embed(loader: DataLoader, keep_masks: bool = False) -> EmbeddedSplit:
        return embed_split(model, loader, device, len(classes), p.features, from_network, keep_masks,
                           p.min_component if p.components else None, p.val_size)

    if p.memory is None:
        made_by = f'{p.features} of {p.pretraining} on {p.memory_db_name} {p.memory_split}, masks: {p.saliency}'
        bank = fill_memory(embed(memory_loader), memory_set.ids, classes, p.memory_db_name, made_by, network)
        if distributed.is_main():
            bank.save(Path(p.output_dir) / 'memory.npz')
    log.info('The memory holds %d objects of dimension %d (%s)', len(bank), bank.prototypes.shape[1], bank.made_by)
    banks = {task: bank.without(protocol.ignored) for task, protocol in protocols.items()}
    val = embed(val_loader, keep_masks=True)
    if not distributed.leave():
        return
    own = None
    if bank.db_name == p.val_db_name:
        own = np.array(val_set.ids)[val.image]
        warn_of_shared(val_set.ids, bank.images, f'{p.val_db_name} {p.val_split}', 'the memory; an object takes no '
                       'class of its own image')
    results, confusions = {}, {}
    for task, (ignored, scored) in protocols.items():
        predicted = banks[task].nearest(val.prototypes, p.num_neighbours, own)
        confusions[task] = retrieval_confusion(val, predicted, ignored)
        iou, names = iou_of(confusions[task])[scored], [classes[i] for i in scored]
        which = f'{len(ignored)} classes ignored, the mean of {len(scored)} without background' if ignored \
            else f'the mean of all {len(scored)} classes'
        log.info('%s: %s; %d objects in the memory', task, which, len(banks[task]))
        present = confusions[task].sum(1)[scored] > 0
        log_iou(iou, names, present)
        results[task] = {**iou_entry(iou, names, present), 'memory': len(banks[task]),
                         'num_neighbours': p.num_neighbours,
                         'made_with': {**made_with_network(network, val_set), 'memory': bank.made_by}}
        if not ignored:
            of_all = predicted
    log.info('Results: %s', save_results(results, Path(p.output_dir)))
    with warn_of_failure(NEIGHBOURS):
        write_sheet(p, val, val_set, of_all, bank, own)
    write_run_report(as_dict(p), 'Retrieval', classes, confusions)


if __name__ == '__main__':
    run_script(main)
