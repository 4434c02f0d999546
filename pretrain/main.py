"""Pretraining: contrast object masks across views, without a label.

    python pretrain/main.py --config_env configs/env.yml \\
        --config_exp configs/VOCSegmentation_supervised_saliency_model.yml
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import logging

from torch.utils.tensorboard import SummaryWriter

from data.build import pretrain_loader
from models.build import build_contrastive_model
from models.resnet import freeze_layers
from pretrain.engine import train_one_epoch
from pretrain.maskcontrast import MaskContrast
from utils.checkpoint import resume_training, save_training
from utils.config import add_config_arguments, load_config
from utils.errors import run_script
from utils.optim import build_optimizer, learning_rate, set_learning_rate
from utils.runtime import place, prepare
from utils.schema import Pretrain

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, Pretrain, args.overrides)
    device = prepare(p)
    path = Path(p.output_dir) / 'checkpoint.pth.tar'

    loader, sampler = pretrain_loader(p)
    model = MaskContrast(build_contrastive_model(p), p.model_kwargs.ndim, **p.moco_kwargs)
    if p.freeze_layers:
        freeze_layers(model.model_q.backbone)
        freeze_layers(model.model_k.backbone)
    place(model, device)
    optimizer = build_optimizer(p.optimizer, model.parameters(), **p.optimizer_kwargs)
    first = resume_training(path, model, optimizer)['epoch']

    writer = SummaryWriter(Path(p.output_dir) / 'tensorboard')
    if p.epochs == 0:
        save_training(path, model, optimizer, 0, p)
        log.info('epochs is 0: the initial weights are in %s', path)
    for epoch in range(first, p.epochs):
        start = time.perf_counter()
        lr = learning_rate(p.scheduler, p.optimizer_kwargs.lr, epoch, p.epochs, **p.scheduler_kwargs)
        set_learning_rate(optimizer, lr)
        sampler.epoch = epoch

        def write(step: int, means: dict[str, float]) -> None:
            for name, value in means.items():
                writer.add_scalar(f'train/{name}', value, step)

        means = train_one_epoch(model, loader, optimizer, device, epoch, p.log_every, write)
        writer.add_scalar('train/lr', lr, epoch)
        save_training(path, model, optimizer, epoch + 1, p)
        log.info('Epoch %d of %d: loss %.4f, lr %.5f, %.0f s', epoch + 1, p.epochs, means['loss'], lr,
                 time.perf_counter() - start)
    writer.close()
    log.info('Pretraining is complete: %s', path)


if __name__ == '__main__':
    run_script(main)
