"""Segment retrieval: each object takes the class of its nearest neighbour in a labelled memory.

    python segmentation/retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

from torch.utils.data import DataLoader

from data.build import evaluation_loader
from models.build import build_prototype_model
from segmentation.embedding import EmbeddedSplit, embed_split
from segmentation.memory_bank import MemoryBank, retrieval_confusion
from utils.config import add_config_arguments, load_config
from utils.errors import UserError, run_script
from utils.metrics import iou_of
from utils.results import iou_entry, log_iou, save_results
from utils.runtime import place, prepare
from utils.schema import Retrieval

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    return parser.parse_args(argv)


def kept_classes(classes: Sequence[str], ignored: Sequence[str]) -> list[int]:
    """Ids of the classes that are not ignored. Raises UserError for a name that is no class."""
    unknown = sorted(set(ignored) - set(classes))
    if unknown:
        raise UserError(f'ignore_classes names {", ".join(unknown)}, which the data set does not have; its classes '
                        f'are {", ".join(classes)}.')
    return [i for i, name in enumerate(classes) if name not in ignored]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, Retrieval, args.overrides)
    device = prepare(p)

    from_network = p.saliency == 'network'
    masks = None if from_network else p.saliency
    memory_loader, memory_set = evaluation_loader(p, p.memory_db_name, p.memory_split, masks)
    val_loader, val_set = evaluation_loader(p, p.val_db_name, p.val_split, masks)
    classes = val_set.classes
    if memory_set.classes != classes:
        raise UserError(f'{p.memory_db_name} and {p.val_db_name} have different classes; retrieve within one list.')
    kept = kept_classes(classes, p.ignore_classes)
    model = build_prototype_model(p)
    place(model, device)

    def embed(loader: DataLoader) -> EmbeddedSplit:
        split = embed_split(model, loader, device, len(classes), p.features, from_network)
        ignored = [i for i in range(len(classes)) if i not in kept]
        split.inside[:, ignored] = split.outside[:, ignored] = 0  # void
        return split

    bank, val = MemoryBank(embed(memory_loader)), embed(val_loader)
    log.info('The memory holds %d objects of %d images', len(bank), len(memory_set))
    iou = iou_of(retrieval_confusion(val, bank.nearest(val.prototypes)))
    scored = [i for i in kept if i > 0] if p.ignore_classes else kept
    names = [classes[i] for i in scored]
    log_iou(iou[scored], names)
    path = save_results({'retrieval': {**iou_entry(iou[scored], names), 'memory': len(bank)}}, Path(p.output_dir))
    log.info('Results: %s', path)


if __name__ == '__main__':
    run_script(main)
