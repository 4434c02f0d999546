"""Whether prediction takes millions of images: peak memory of a process, and images a second in one and two processes.

    python benchmarks/many_images.py --images 100000

Images of 16 x 24 px are drawn into sub-folders of 1,000. Each script predicts a tenth of them and then all, in one
process and in two; their difference is without the start. The networks are random ResNet-18s at 32 px, on the CPU.
"""
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import numpy as np
import torch

from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from utils.config.cli import ArgumentParser, at_least
from utils.report.results import markdown
from utils.run.script import run_script

ROOT = Path(__file__).resolve().parents[1]
HEAD = ('script', 'processes', 'images', 'peak memory of a process, MB', 'images a second')
SCRIPTS = {'saliency/predict.py': ('--method', 'maskcontrast', '--weights', 'encoder.pth.tar', '--input-size', '32',
                                   '--coco', 'coco.json'),
           'segmentation/predict.py': ('--model', 'model/best_model.pth.tar')}
# a process that a large one starts counts the memory of that as its own; not so one of this
SMALL = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""


def draw(folder: Path, start: int, end: int) -> None:
    """Images of an object each, but for every tenth. Of about half of all, random weights give no mask."""
    random = np.random.default_rng(start)
    for number in range(start, end):
        image = np.full((16, 24, 3), 40, np.uint8)
        if number % 10:
            image += random.integers(0, 40, image.shape, np.uint8)
            image[4:12, 4 + number % 7:18] = 40, 180, 220
        path = folder / f'{number // 1000:05}' / f'{number:08}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)


def save_networks(folder: Path) -> None:
    """What ``SCRIPTS`` predict with, of random weights."""
    (folder / 'model').mkdir()
    torch.manual_seed(0)
    torch.save(LinearSegmentationModel('resnet18', 5).state_dict(), folder / 'model' / 'best_model.pth.tar')
    torch.save({'config': {'backbone': 'resnet18'}, 'model': ContrastiveSegmentationModel('resnet18').state_dict()},
               folder / 'encoder.pth.tar')
    (folder / 'model' / 'config.yml').write_text('{backbone: resnet18, val_size: 32, config_name: drawn}')


def measure(script: str, folder: Path, output: str, processes: int) -> tuple[float, float]:
    """Seconds, and peak resident memory of the largest process in MB."""
    command = [sys.executable, str(ROOT / script), '--images', 'images', '--output', output, '--device', 'cpu',
               '--nproc', str(processes), '--workers', '1', '--batch-size', '32', *SCRIPTS[script]]
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', SMALL, *command], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    return time.perf_counter() - begun, int(done.stdout) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=at_least(20), default=100_000, help='images to draw and predict')
    parser.add_argument('--scripts', nargs='+', choices=SCRIPTS, default=[*SCRIPTS], help='what predicts them')
    args = parser.parse_args(argv)
    rows, seconds, tenth = [], {}, args.images // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_networks(folder)
        for start, end in ((0, tenth), (tenth, args.images)):
            draw(folder / 'images', start, end)
            for script in args.scripts:
                for processes in (1, 2):
                    run = script, processes
                    time_of, peak = measure(script, folder, f'{script[:3]}_{end}_{processes}', processes)
                    rate = f'{(end - start) / (time_of - seconds[run]):.0f}' if run in seconds else ''
                    seconds[run] = time_of
                    rows.append((script, str(processes), f'{end:,}', f'{peak:.0f}', rate))
    print(markdown(HEAD, sorted(rows), 4), end='')


if __name__ == '__main__':
    run_script(main)
