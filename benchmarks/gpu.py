"""One table of what a GPU does with this project: steps, loader, both together, prediction.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --backbone resnet18 --batches 4 --size 64 --workers 0 1 --steps 2 --eager

A step is one of pretraining, of the published presets by default. Each way runs in a process of its own: the reference,
the same mathematics in its plainest form and in float32, then this project's (on a GPU fp32 is TF32), compiled and not.
FLOP are counted by PyTorch; beside them stands a large matrix product in the same precision.
The loader makes pairs from drawn 500 px JPEGs; 'waits' is the share of the time in which the step has no batch.
"""
import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache, partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import prediction
from benchmarks.train_step import Way, forget_trials, peak_of_process
from data.loaders import collate_pairs, train_loader
from data.views import ContrastivePair, ContrastiveView
from data.voc import VOCSegmentation
from experiments.shapes import generate
from utils.config.cli import ArgumentParser
from utils.report.results import markdown
from utils.run.devices import DTYPES, computes_bf16, pick_device
from utils.run.parallel import available_cores
from utils.run.script import run_script

WARM = 5  # steps that compile, choose algorithms and fill the queues of the loader
AHEAD = 2  # batches that a worker makes before they are asked for, by PyTorch's default
SIDE = {'cuda': 8192, 'cpu': 1024}  # of the matrices


def apart(function: Callable, *args: Any) -> Any:
    """The result of a function in a new process, which leaves no memory behind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def time_step(name: str, args: argparse.Namespace) -> tuple[float, float, int]:
    """Median seconds of a step, MB at its peak, and its FLOP, 0 of one that is compiled."""
    way = Way(name, args)
    whole = way.batch
    if args.compile:  # a first step of fewer pixels, so that later ones are compiled for any number, as in training
        way.batch = {view: value[:-1] if view.endswith('pixels') else value for view, value in whole.items()}
    for _ in range(WARM):
        way.step()
        way.batch = whole
    forget_trials(args.device)
    seconds, peak = statistics.median(way.step() for _ in range(args.steps)), peak_of_process(args.device)
    with FlopCounterMode(display=False) if not args.compile else nullcontext() as counter:
        way.step()
    return seconds, peak, counter.get_total_flops() if counter else 0


def time_product(name: str, args: argparse.Namespace) -> float:
    """FLOP/s of a large matrix product in the precision of a way, the best of 20."""
    side, dtype = SIDE[args.device], DTYPES.get(name) or torch.float32
    torch.backends.cuda.matmul.allow_tf32 = name != 'reference'
    matrix, times = torch.randn(side, side, device=args.device).to(dtype), []
    for _ in range(20):
        start = time.perf_counter()
        matrix @ matrix
        if args.device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * side ** 3 / min(times)


def batches(folder: Path, workers: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Batches of pairs of the drawn images, without end."""
    images = VOCSegmentation(folder, 'train', saliency='supervised_model')
    images.ids = images.ids * (1 + args.batch * 1000 // len(images))  # an epoch longer than what is timed
    pair = ContrastivePair(images, ContrastiveView(args.size))
    p: Any = SimpleNamespace(num_workers=workers, train_batch_size=args.batch, device=args.device, seed=0, cache='off')
    loader: Any = train_loader(p, images.transformed(pair), collate_pairs)
    while True:
        yield from loader
        loader.sampler.epoch += 1


def time_loader(folder: Path, workers: int, args: argparse.Namespace) -> float:
    """Pairs a second."""
    source, count = batches(folder, workers, args), max(args.steps, 8 * workers)
    for _ in range(1 + AHEAD * workers):  # those that the workers made while they started
        next(source)
    start = time.perf_counter()
    for _ in range(count):
        next(source)
    return count * args.batch / (time.perf_counter() - start)


def time_both(name: str, folder: Path, workers: int, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step with batches of the loader, and the share of them in which it waits for one."""
    way, source, waits = Way(name, args), batches(folder, workers, args), list[float]()
    count = max(args.steps, 4 * workers)
    for _ in range(WARM + count):  # use up what the workers made ahead, which hides how slow they are
        way.batch = next(source)
        way.step()
    begin = time.perf_counter()
    for _ in range(count):
        start = time.perf_counter()
        way.batch = next(source)
        waits.append(time.perf_counter() - start)
        way.step()
    seconds = time.perf_counter() - begin
    return seconds / count, sum(waits) / seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--backbone', default='resnet50', help='of the encoder, its first stages frozen')
    parser.add_argument('--batches', type=int, nargs='+', default=[32, 64], help='pairs a step')
    parser.add_argument('--size', type=int, default=224, help='side of the views, pixels')
    parser.add_argument('--steps', type=int, default=20, help='steps that are timed')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 4, 8, 16], help='of the loader')
    parser.add_argument('--predict', type=int, default=512, help="side of the network's input in prediction, pixels")
    parser.add_argument('--images', type=int, default=256, help='images that are drawn for the loader')
    parser.add_argument('--eager', action='store_true', help='leave out the compiled steps, minutes each on a CPU')
    parser.add_argument('--device', choices=tuple(SIDE), help='default: cuda where there is one')
    args = parser.parse_args(argv)
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    device = pick_device(args.device)
    args.threads, args.freeze = torch.get_num_threads(), True
    precisions = ['fp32', 'bf16'] if computes_bf16(device) else ['fp32']
    machine = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {args.threads} threads'
    print(f'{machine}; {args.backbone}, pairs at {args.size} px, torch {torch.__version__}, {available_cores()} cores')

    rows, products = list[list[str]](), {name: apart(time_product, name, args) for name in ('reference', *precisions)}

    def add(title: str, measure: Callable[[], list[str]]) -> None:
        try:
            figures = measure()
        except Exception as error:  # out of memory, no compiler, errors of a compiler that no other process can read
            figures = [f'failed: {" ".join(str(error).split())[:60]}']
        rows.append([title, *figures, *['-'] * (5 - len(figures))])
        print(*rows[-1], sep=' | ', file=sys.stderr, flush=True)  # what is known if a later one ends all

    def step(name: str, flops: dict[str, float], given: argparse.Namespace) -> list[str]:
        seconds, peak, counted = apart(time_step, name, given)
        flop = flops[name] = counted or flops.get(name, math.nan)  # those of a compiled step are the same
        return [f'{1000 * seconds:.1f} ms', f'{given.batch / seconds:.1f}', f'{peak * 1e6 / 2 ** 30:.2f}',
                f'{flop / seconds / 1e12:.2f}', f'{flop / seconds / products[name]:.0%}']

    def loader(workers: int, given: argparse.Namespace) -> list[str]:
        return ['-', f'{apart(time_loader, drawn, workers, given):.1f}']

    def both(name: str, workers: int, given: argparse.Namespace) -> list[str]:
        seconds, waits = apart(time_both, name, drawn, workers, given)
        return [f'{1000 * seconds:.1f} ms', f'{given.batch / seconds:.1f}', '-', '-', f'waits {waits:.0%}']

    for batch in args.batches:
        flops: dict[str, float] = {}
        for name, compiled in [('reference', False), *product(precisions, (False,) if args.eager else (False, True))]:
            tf32 = ' (TF32)' if (name, args.device) == ('fp32', 'cuda') else ''
            title = 'reference, fp32' if name == 'reference' else f'ours, {name}{tf32}{", compiled" * compiled}'
            given = argparse.Namespace(**{**vars(args), 'batch': batch, 'compile': compiled})
            add(f'{title}, {batch} pairs', partial(step, name, flops, given))
    given = argparse.Namespace(**{**vars(args), 'batch': args.batches[-1], 'compile': False})
    counts = [count for count in args.workers if count <= available_cores()] or [available_cores()]
    with tempfile.TemporaryDirectory() as folder:
        drawn = generate(Path(folder) / 'drawn', args.images, 1, 500)
        for count in counts:
            add(f'loader, {count} workers', partial(loader, count, given))
        for name in precisions:
            add(f'{name} behind {counts[-1]} workers', partial(both, name, counts[-1], given))
    given = argparse.Namespace(images=max(4, 5 * args.steps), model='linear', backbone=args.backbone,
                               size=args.predict, rounds=3)
    measured = cache(partial(prediction.measure, given, device))

    def predicted(way: int) -> list[str]:
        seconds = measured()[way][0]
        return [f'{1000 * seconds / given.images:.1f} ms', f'{given.images / seconds:.1f}']

    for way, title in enumerate((f'network alone at {args.predict} px', 'predict.py')):
        add(title, partial(predicted, way))
    print(markdown(['', 'time', 'pairs, images / s', 'peak GiB', 'TFLOP/s', 'of the matrix product'], rows, 5))


if __name__ == '__main__':
    run_script(main)
