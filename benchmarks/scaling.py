"""Pretraining steps in one and several processes: the same global batch, split over them.

    python benchmarks/scaling.py --processes 1 2 --backbone resnet18 --batch 16 --size 96

Each process has its share of the CPU cores, or a GPU of its own. The loader is left out: pairs are noise.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from experiments.estimate import draw_batch
from models.segmentation import ContrastiveSegmentationModel
from pretrain.losses import compute_losses
from pretrain.maskcontrast import MaskContrast
from utils.config.cli import ArgumentParser
from utils.run import distributed
from utils.run.devices import DTYPES, Precision
from utils.run.errors import UserError
from utils.run.parallel import available_cores
from utils.run.script import run_script
from utils.run.trainer import build_optimizer

WARM_UP = 2


def work(rank: int, processes: int, args: argparse.Namespace, folder: str) -> None:
    """What each process does; the first writes the median seconds of a step into the folder."""
    device = torch.device(args.device, rank) if args.device == 'cuda' else torch.device('cpu')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, available_cores() // processes))
    if processes > 1:
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo',
                                init_method=f'file://{folder}/store{processes}', rank=rank, world_size=processes)
    batch = draw_batch(args.batch // processes, args.size)
    precision = Precision(device, args.precision)
    model = MaskContrast(ContrastiveSegmentationModel(args.backbone, 32), 32, 8 * args.batch).train()
    precision.to_device(model)
    trained = distributed.parallel(model)
    optimizer = build_optimizer('sgd', model.parameters(), 0.004)
    seconds = []
    for _ in range(args.steps + WARM_UP):
        distributed.barrier()
        start = time.perf_counter()
        loss = compute_losses(trained, batch, precision)['loss']
        precision.step(loss, optimizer)
        loss.item()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, str(processes)).write_text(str(statistics.median(seconds[WARM_UP:])))
    distributed.leave()


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='numbers of processes to time')
    parser.add_argument('--backbone', default='resnet18', choices=['resnet18', 'resnet50'], help='of the encoder')
    parser.add_argument('--batch', type=int, default=16, help='pairs a step, of all processes together')
    parser.add_argument('--size', type=int, default=96, help='side of the views, pixels')
    parser.add_argument('--steps', type=int, default=7, help='steps that are timed')
    parser.add_argument('--precision', default='fp32', choices=list(DTYPES), help='of the networks')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'], help='where the processes run')
    args = parser.parse_args(argv)
    for processes in args.processes:
        if processes < 1 or args.batch % processes:
            raise UserError(f'{args.batch} pairs cannot be split over {processes} processes; choose another --batch.')
    if args.device == 'cuda' and max(args.processes) > torch.cuda.device_count():
        raise UserError(f'{max(args.processes)} processes need as many GPUs; {torch.cuda.device_count()} are visible.')
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # processes share the cores
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in args.processes:
            mp.spawn(work, (processes, args, folder), processes)
            seconds[processes] = float(Path(folder, str(processes)).read_text())
    where = torch.cuda.get_device_name() if args.device == 'cuda' else f'{available_cores()} cores'
    print(f'{args.backbone}, {args.batch} pairs at {args.size} px, {args.precision}, {where}, '
          f'torch {torch.__version__}, median of {args.steps} steps')
    print(f'{"processes":>9}{"ms a step":>12}{"pairs a second":>16}{"speed":>8}')
    first = seconds[args.processes[0]]
    for processes, taken in seconds.items():
        print(f'{processes:9}{1000 * taken:12.0f}{args.batch / taken:16.1f}{first / taken:8.2f}')


if __name__ == '__main__':
    run_script(main)
