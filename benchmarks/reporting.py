"""What pictures and reports cost a pretraining run.

    python benchmarks/reporting.py --epochs 10 --images 850 --backbone resnet18 --size 64 --batch 10

Draws images by code and pretrains on them with pretrain/main.py, with a clock around what draws image grids and writes
report.html. Their number does not grow with the images: the longer an epoch, the smaller their share.
"""
from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.shapes import generate
from pretrain import main as pretraining
from pretrain.monitor import ImageGrids
from utils.config.cli import ArgumentParser
from utils.run.script import run_script


class Clock:
    """Adds up the seconds of a function's calls."""

    def __init__(self, function: Callable) -> None:
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start
            self.calls += 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--epochs', type=int, default=10, help='of the pretraining')
    parser.add_argument('--images', type=int, default=850, help='drawn images to train on')
    parser.add_argument('--backbone', default='resnet18', choices=['resnet18', 'resnet50'], help='of the encoder')
    parser.add_argument('--size', type=int, default=64, help='side of the views, pixels')
    parser.add_argument('--batch', type=int, default=10, help='pairs a step')
    parser.add_argument('--panel-every', type=int, default=5, help='epochs between two image grids')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder, 'Shapes'), args.images, 1)
        views, embedding = Clock(ImageGrids.draw_views), Clock(ImageGrids.draw_embedding)
        report = Clock(pretraining.write_run_report)
        with (patch.object(ImageGrids, 'draw_views', lambda *a, **k: views(*a, **k)),
              patch.object(ImageGrids, 'draw_embedding', lambda *a, **k: embedding(*a, **k)),
              patch.object(pretraining, 'write_run_report', report)):
            start = time.perf_counter()
            pretraining.main(['--config_env', 'configs/demo/env.yml', '--config_exp', 'configs/demo/pretrain.yml',
                              '--nproc', '1', '--set', f'db_root={folder}', f'root_dir={folder}',
                              f'epochs={args.epochs}', f'backbone={args.backbone}', f'train_batch_size={args.batch}',
                              f'augmentation_kwargs.size={args.size}', f'panel_every={args.panel_every}'])
            whole = time.perf_counter() - start
    print(f'\n{args.epochs} epochs of {args.images // args.batch} steps\n\n{"part":<32}{"seconds":>9}{"share":>8}')
    for name, seconds in (('whole run', whole), ('grids of views', views.seconds),
                          ('grids of embeddings', embedding.seconds), ('report.html', report.seconds),
                          ('pictures and report together', views.seconds + embedding.seconds + report.seconds)):
        print(f'{name:<32}{seconds:>9.2f}{seconds / whole:>8.2%}')


if __name__ == '__main__':
    run_script(main)
