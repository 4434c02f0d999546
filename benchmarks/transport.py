"""Batches of pairs a second from the loader's workers to the training process: views as bytes, beside float32 ones.

    python benchmarks/transport.py --batch 64 --size 224 --rounds 5

The workers send one batch again and again, so that nothing is decoded, and the training process reads every byte. The
reference sends normalised views and no indices of the foreground. Both take turns; the table shows medians of the
rounds.
"""
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from experiments.estimate import draw_batch
from models.backbones import IMAGENET
from utils.config.cli import ArgumentParser, at_least
from utils.report.results import markdown
from utils.run.script import run_script

Batch = dict[str, Tensor]
WARM = 4  # batches a worker that are not counted: they are made while workers start


class Prepared(Dataset):
    """A batch, ``count`` times."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return {name: value.clone() for name, value in self.batch.items()}  # else it lies in shared memory from then on


def plain(batch: Batch) -> Batch:
    """The same views as float32, normalised, and the masks."""
    return {name: functional.normalize(value / 255, *IMAGENET) if value.ndim == 4 else value
            for name, value in batch.items() if value.ndim > 1}


def rate(batch: Batch, count: int, workers: int) -> float:
    """Batches a second."""
    source = iter(DataLoader(Prepared(batch, count + WARM * workers), batch_size=None, num_workers=workers))

    def read() -> int:
        return sum(int(value.flatten().view(torch.int32).sum()) for value in next(source).values())

    for _ in range(WARM * workers):
        read()
    start = time.perf_counter()
    for _ in range(count):
        read()
    return count / (time.perf_counter() - start)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--batch', type=at_least(1), default=64, help='pairs a batch')
    parser.add_argument('--size', type=at_least(4), default=224, help='side of the views, pixels')
    parser.add_argument('--batches', type=at_least(1), default=60, help='batches a round')
    parser.add_argument('--workers', type=at_least(1), default=1, help='of the loader')
    parser.add_argument('--rounds', type=at_least(1), default=5, help='rounds that both ways take in turn')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    batch = draw_batch(args.batch, args.size)
    ways = {'reference': plain(batch), 'ours': batch}
    rates = [{name: rate(sent, args.batches, args.workers) for name, sent in ways.items()} for _ in range(args.rounds)]
    rows = [[name, f'{sum(value.nbytes for value in sent.values()) / 1e6:.1f}',
             f'{statistics.median(found[name] for found in rates):.1f}',
             f'{statistics.median(found[name] / found["reference"] for found in rates):.2f}']
            for name, sent in ways.items()]
    print(f'{args.batch} pairs at {args.size} px, {args.workers} workers, {args.rounds} rounds of {args.batches}')
    print(markdown(['', 'MB a batch', 'batches a second', 'ratio'], rows, 3), end='')


if __name__ == '__main__':
    run_script(main)
