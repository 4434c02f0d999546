"""Pretraining: contrast object masks across views, without a label.

    python pretrain/main.py --config_env configs/env.yml \\
        --config_exp configs/VOCSegmentation_supervised_saliency_model.yml
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

from torch import Tensor

from data.loaders import identity, open_images, train_loader
from data.pairs import PairDataset
from data.transforms import EvaluationTransform
from data.views import ContrastiveView
from models.build import build_contrastive_model, synchronise_batchnorm
from models.resnet import FROZEN, freeze_layers
from pretrain.engine import compute_losses
from pretrain.maskcontrast import MaskContrast
from pretrain.monitor import ImageGrids, OnlineKmeans
from utils.config.cli import ConfigParser
from utils.config.load import as_dict, load_config
from utils.config.published import add_published_flags, flags_without_effect
from utils.config.schema import Pretrain
from utils.report.run import write_run_report
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.optim import build_optimizer
from utils.run.precision import Precision
from utils.run.script import run_script
from utils.run.setup import seed_process, start
from utils.run.trainer import Trainer

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ConfigParser(__doc__, Pretrain)
    add_published_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    notes = flags_without_effect(args)
    p = load_config(args.config_env, args.config_exp, Pretrain, args.overrides)
    device = start(p, args.nproc, __file__, argv, identity(p, p.train_db_name))
    for note in notes:
        log.info(note)
    path = Path(p.output_dir) / 'checkpoint.pth.tar'

    encoder = build_contrastive_model(p)
    mean, std = encoder.backbone.mean, encoder.backbone.std
    dataset = open_images(p, p.train_db_name, p.train_split, saliency=p.saliency, skip=True)
    loader, sampler = train_loader(p, PairDataset(dataset, ContrastiveView(mean, std, **p.augmentation_kwargs)))
    if not encoder.upsample and p.augmentation_kwargs.size % encoder.backbone.stride:
        raise UserError(f'augmentation_kwargs.size {p.augmentation_kwargs.size} must be a multiple of '
                        f'{encoder.backbone.stride} when upsample is off.')
    model = MaskContrast(encoder, p.model_kwargs.ndim, **p.moco_kwargs, gather_prototypes=p.gather_prototypes)
    if p.sync_batchnorm:
        model = synchronise_batchnorm(model, device)
    precision = Precision(device, p.precision, p.channels_last, p.tf32)
    precision.to_device(model)
    for network in (model.model_q, model.model_k):
        if p.freeze_layers is not False:
            freeze_layers(network.backbone, FROZEN if p.freeze_layers is True else p.freeze_layers)
        if p.compile:
            network.backbone.compile()
            network.decoder.compile()
    trained = distributed.parallel(model)
    seed_process(p.seed)
    optimizer = build_optimizer(p.optimizer, model.parameters(), **p.optimizer_kwargs)
    trainer = Trainer(path, model, optimizer, precision, loader, sampler, dataset.ids, p, p.log_every,
                      p.checkpoint_every)

    grids = ImageGrids(trainer.writer, model.model_q, precision, dataset, p.augmentation_kwargs.size, p.panel_every,
                       p.compile)
    online = None
    if p.probe_every:
        probe_set = open_images(p, p.train_db_name, p.probe_split, truth=True).transformed(
            EvaluationTransform(p.augmentation_kwargs.size, mean, std))
        online = OnlineKmeans(trainer.writer, model.model_q, precision, probe_set, p.probe_images, p.seed, p.compile)

    if p.epochs == 0:
        trainer.save()
        log.info('epochs is 0: the initial weights are in %s', path)
    with trainer:
        for epoch in trainer.epochs(p.epochs, p.scheduler, p.optimizer_kwargs.lr, **p.scheduler_kwargs):
            if trainer.step == 0:
                grids.draw_embedding(epoch)
            model.train()

            def losses(batch: dict[str, Any], epoch: int = epoch) -> dict[str, Tensor]:
                if trainer.step == 0:
                    grids.draw_views(epoch, batch)
                return compute_losses(trained, batch, precision, p.loss_chunk)

            trainer.train_one_epoch(losses, model.bank_statistics)
            if online is not None and (epoch + 1) % p.probe_every == 0:
                with trainer.at_once():
                    online.measure(epoch + 1)
            trainer.finish_epoch()
        grids.draw_embedding(p.epochs, last=True)
    write_run_report(as_dict(p), 'Pretraining', {})
    log.info('Pretraining is complete: %s', path)


if __name__ == '__main__':
    run_script(main)
