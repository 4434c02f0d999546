"""Pretraining: contrast object masks across views, without a label.

    python pretrain/main.py --config_env configs/env.yml \\
        --config_exp configs/VOCSegmentation_supervised_saliency_model.yml
"""
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from torch import Tensor, nn

from data.loaders import collate_pairs, identity, open_images, train_loader
from data.transforms import EvaluationTransform
from data.views import ContrastivePair, ContrastiveView
from models.backbones import freeze_layers
from models.build import build_contrastive_model, synchronise_batchnorm
from pretrain.losses import compute_losses
from pretrain.maskcontrast import MaskContrast
from pretrain.monitor import Monitor, probe_of
from utils.config.cli import ConfigParser
from utils.config.published import add_published_flags, flags_without_effect
from utils.config.schema import Pretrain
from utils.report.run import write_run_report
from utils.run.devices import Precision
from utils.run.errors import UserError
from utils.run.script import run_script
from utils.run.setup import start
from utils.run.trainer import Trainer

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, Pretrain)
    add_published_flags(parser)
    args = parser.parse_args(argv)
    notes, p = flags_without_effect(args), parser.load(args)
    device = start(p, args.nproc, __file__, argv, identity(p, p.train_db_name))
    for note in notes:
        log.info(note)

    dataset = open_images(p, p.train_db_name, p.train_split, saliency=p.saliency, skip=True)
    encoder = build_contrastive_model(p)
    if p.sync_batchnorm:
        encoder = synchronise_batchnorm(encoder, device)
    freeze_layers(encoder.backbone, p.freeze_layers)
    mean, std, size = encoder.backbone.mean, encoder.backbone.std, p.augmentation_kwargs.size
    pair = ContrastivePair(dataset, ContrastiveView(**p.augmentation_kwargs))
    loader = train_loader(p, dataset.transformed(pair), partial(collate_pairs, step=encoder.output_stride))
    if not encoder.upsample and size % encoder.backbone.stride:
        raise UserError(f'augmentation_kwargs.size {size} must be a multiple of {encoder.backbone.stride} when '
                        'upsample is off.')
    model = MaskContrast(encoder, p.model_kwargs.ndim, **p.moco_kwargs, gather_prototypes=p.gather_prototypes)
    if p.compile:
        model.compile()
    trainer = Trainer(p, model, device, loader, dataset.ids)
    trainer.began_with('masks', dataset.drawn_digest(), dataset.masks)
    monitor = Monitor(trainer, model.model_q, dataset, size, p.panel_every)
    if p.probe_every:
        labelled = open_images(p, p.train_db_name, p.probe_split, truth=True)
        probe = probe_of(labelled.transformed(EvaluationTransform(size, mean, std)), p.probe_images)

    def losses(model: nn.Module, batch: dict[str, Any], precision: Precision) -> dict[str, Tensor]:
        monitor.draw_views(batch)
        return compute_losses(model, batch, precision, p.loss_chunk)

    if p.epochs == 0:
        trainer.save()
        log.info('epochs is 0: the initial weights are in %s', trainer.path)
    with trainer.stoppable():
        for epoch in trainer.epochs():
            monitor.draw_embedding()
            model.train()
            trainer.train_one_epoch(losses, model.bank_statistics)
            if p.probe_every and (epoch + 1) % p.probe_every == 0:
                with trainer.at_once():
                    monitor.measure(probe, p.seed)
            trainer.finish_epoch()
        monitor.draw_embedding(last=True)
    write_run_report(p, 'Pretraining', {})
    log.info('Pretraining is complete: %s', trainer.path)


if __name__ == '__main__':
    run_script(main)
