"""Write a salient-object mask for every image of a folder.

    python saliency/predict.py --images photos --output masks --method unsupervised
    python saliency/predict.py --images photos --output masks --method basnet --weights basnet.pth
    python saliency/predict.py --images photos --output masks --method onnx --weights net.onnx --onnx-config net.yml

Masks are PNGs of 0 and 255, of the size of their image, under the same names. Started again it goes on
where it stopped. Images without an object, damaged ones and the like are named in report.txt.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.files import find_images, mask_name, one_a_mask, prepare_output, write_mask
from data.images import ImageFileError, read_image
from models.crf import Refine, crf_in_workers, require_crf
from saliency.postprocess import binarise, crf_logits
from saliency.report import SHEET, contact_sheet
from saliency.sources import METHODS, MaskSource, build_source
from utils.config.cli import ArgumentParser
from utils.report.folder import check_settings, fingerprint, write_report
from utils.run.devices import DEVICES
from utils.run.errors import UserError, name_some
from utils.run.log import warn_of_failure
from utils.run.parallel import available_cores, batches, in_threads, process_pool
from utils.run.script import run_script
from utils.run.setup import lock

Result = tuple[Path, str]  # an image, and why it has no mask: '' if it has one
NO_OBJECT = 'no object: less than 1% of the image is salient'


class Item(NamedTuple):
    """An image on its way: read, then with its map."""
    name: Path
    image: np.ndarray | None
    reason: str = ''  # why it cannot be read
    saliency: np.ndarray | None = None


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=Path, required=True, help='folder of the images; subfolders count')
    parser.add_argument('--output', type=Path, required=True, help='folder for the masks and the report')
    parser.add_argument('--method', choices=METHODS, required=True, help='where the masks come from')
    parser.add_argument('--weights', type=Path, help='weights of the network: a checkpoint or an .onnx file')
    parser.add_argument('--onnx-config', type=Path, help='YAML file with input_size, mean and scale of an ONNX network')
    parser.add_argument('--crf-postprocess', action='store_true',
                        help="move the outlines of a network's masks onto the edges of the image with a CRF")
    parser.add_argument('--workers', type=int, default=available_cores(),
                        help='processes (unsupervised, CRF) or threads that read and write (networks); 0 works in the '
                             'main process; default: one a CPU core')
    parser.add_argument('--input-size', type=int, help="side of BASNet's input in pixels, the resize it was trained "
                                                       'with (default: 256, as published)')
    parser.add_argument('--batch-size', type=int, default=8, help='images a forward pass of a network')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where a network runs')
    args = parser.parse_args(argv)
    for name, value, least in (('--workers', args.workers, 0), ('--batch-size', args.batch_size, 1),
                               ('--input-size', args.input_size, 1)):
        if value is not None and value < least:
            raise UserError(f'{name} {value} is too small; give at least {least}.')
    if args.crf_postprocess:
        if args.method == 'unsupervised':
            raise UserError('--method unsupervised has GrabCut in place of the CRF; leave out --crf-postprocess.')
        require_crf()
    return args


def finish(name: Path, image: np.ndarray, saliency: np.ndarray, output: Path, refine: Refine | None) -> str:
    """Make the mask of a map and write it; why there is none, or ''."""
    if refine is not None:
        saliency = refine(image, crf_logits(saliency)).astype(np.float32)
    mask = binarise(saliency)
    if mask is None:
        return NO_OBJECT if refine is None else f'{NO_OBJECT} after the CRF'
    write_mask(mask, output / mask_name(name))
    return ''


def in_batches(source: MaskSource, images: Path, names: Sequence[Path], output: Path, batch_size: int,
               threads: int, refine: Refine | None) -> Iterator[Result]:
    """Mask with one source, which sees whole batches; threads read the next ones and finish the last one meanwhile."""
    def read(name: Path) -> Item:
        try:
            return Item(name, read_image(images / name))
        except ImageFileError as error:
            return Item(name, None, error.reason)

    def predicted() -> Iterator[Item]:
        for batch in batches(in_threads(read, names, threads, batch_size), batch_size):
            readable = [item.image for item in batch if item.image is not None]
            maps = iter(source.predict(readable) if readable else [])
            yield from (item if item.image is None else item._replace(saliency=next(maps)) for item in batch)

    def write(item: Item) -> Result:
        if item.image is None or item.saliency is None:
            return item.name, item.reason
        return item.name, finish(item.name, item.image, item.saliency, output, refine)

    return in_threads(write, predicted(), threads + 1, 2 * (threads + 1))  # while one is refined, the next waits


def in_processes(images: Path, names: Sequence[Path], output: Path, workers: int) -> Iterator[Result]:
    """Mask without weights, each image in one of several processes, as they come ready.

    Raises:
        UserError: a process died.
    """
    pool = process_pool(min(workers, len(names)))
    try:
        yield from pool.map(_mask_one, [(images, name, output) for name in names])
    except BrokenProcessPool as error:
        raise UserError('a worker process was killed, probably for lack of memory; start again with fewer '
                        '--workers.') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _mask_one(job: tuple[Path, Path, Path]) -> Result:
    images, name, output = job
    return next(in_batches(build_source('unsupervised'), images, [name], output, 1, 1, None))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    names = find_images(args.images)
    source = build_source(args.method, args.weights, args.onnx_config, args.device, args.input_size)
    prepare_output(args.output, args.images)
    lock(args.output)
    settings = {'images': str(args.images.resolve()), 'method': args.method, 'weights': fingerprint(args.weights),
                'onnx_config': fingerprint(args.onnx_config), 'input_size': args.input_size,
                'crf_postprocess': args.crf_postprocess or None}  # None: as where it was not known yet
    check_settings(args.output, settings)

    alone, doubles = one_a_mask(names)
    left_out = {name.as_posix(): f'its mask would have the name of that of {owner.name}'
                for name, owner in doubles.items()}
    done = [name for name in alone if (args.output / mask_name(name)).is_file()]
    already = set(done)
    todo = [name for name in alone if name not in already]

    written: list[Path] = []
    with crf_in_workers({}, args.workers) if args.crf_postprocess else nullcontext() as refine:
        if args.method == 'unsupervised' and args.workers > 0 and len(todo) > 1:
            results = in_processes(args.images, todo, args.output, args.workers)
        else:
            results = in_batches(source, args.images, todo, args.output, args.batch_size, max(1, args.workers), refine)
        for name, reason in tqdm(results, 'masks', total=len(names), initial=len(names) - len(todo), disable=None):
            if reason:
                left_out[name.as_posix()] = reason
            else:
                written.append(name)

    known = {mask_name(name) for name in names}
    masks = sorted(path.relative_to(args.output) for path in args.output.rglob('*.png'))
    left_out |= {name.as_posix(): 'a mask of an earlier run, whose image is no longer there' for name in masks
                 if name not in known}
    if done or written:
        with warn_of_failure(SHEET):
            contact_sheet(args.images, sorted(done + written), args.output)
    text = write_report(args.output, settings, 'masks', len(names), len(written), len(done), left_out, SHEET)
    if not done and not written:
        reasons = name_some([f'{name} ({reason})' for name, reason in sorted(left_out.items())], 3)
        raise UserError(f'none of the {len(names)} images has a mask: {reasons}; replace the images or take another '
                        f'--method, and see {args.output / "report.txt"}.')
    print(text.partition('\n')[0] + f'; see {args.output / "report.txt"}')


if __name__ == '__main__':
    run_script(main)
