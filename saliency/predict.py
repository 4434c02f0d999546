"""Write a salient-object mask for every image of a folder.

    python saliency/predict.py --images photos --output masks --method unsupervised
    python saliency/predict.py --images photos --output masks --method basnet --weights basnet.pth
    python saliency/predict.py --images photos --output masks --method onnx --weights net.onnx --onnx-config net.yml

Masks are PNGs of 0 and 255, of the size of their image, under the same names. Rerun to resume. Images without an
object, damaged ones and the like are named in report.txt.
"""
import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.files import drop_duplicates, find_images, mask_name, prepare_output, write_mask
from data.frames import predict_frames
from data.images import ImageFileError, read_image
from models.crf import Refine, crf_in_workers, require_crf
from saliency.maps import binarise, crf_logits
from saliency.sources import METHODS, MaskSource, build_source
from utils.config.cli import ArgumentParser
from utils.config.schema import DEVICES
from utils.report.folder import check_settings, fingerprint, write_report
from utils.report.pictures import montage, thumbnail
from utils.run.errors import UserError, name_some
from utils.run.files import save_image
from utils.run.lock import lock_folder
from utils.run.log import warn_of_failure
from utils.run.parallel import available_cores, process_pool
from utils.run.script import run_script

SHEET, SHOWN, COLUMNS, SIDE = 'contact_sheet.jpg', 24, 3, 160  # images, images in a row, longer side in pixels
NO_OBJECT = 'no object: less than 1% of the image is salient'


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
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


def write_masks(source: MaskSource, images: Path, names: Sequence[Path], output: Path, batch_size: int = 1,
                threads: int = 1, refine: Refine | None = None) -> Iterator[tuple[Path, str]]:
    """Write the masks; yields each image, and why it has no mask: '' if it has one."""
    def write(name: Path, image: np.ndarray, saliency: np.ndarray) -> str:
        if refine is not None:
            saliency = refine(image, crf_logits(saliency)).astype(np.float32)
        mask = binarise(saliency)
        if mask is None:
            return NO_OBJECT if refine is None else f'{NO_OBJECT} after the CRF'
        write_mask(mask, output / mask_name(name))
        return ''

    frames = ((name, partial(read_image, images / name)) for name in names)
    return predict_frames(frames, lambda image: image, list, source.predict, write, batch_size, threads)


def write_unsupervised_mask(images: Path, output: Path, name: Path) -> tuple[Path, str]:
    """What a worker process does; see ``write_masks``."""
    return next(write_masks(build_source('unsupervised'), images, [name], output))


def contact_sheet(images: Path, names: Sequence[Path], output: Path) -> None:
    """Draw image | mask for up to 24 images that have a mask, spread over the set."""
    cells: list[np.ndarray] = []
    for index in np.unique(np.linspace(0, len(names) - 1, min(SHOWN, len(names))).astype(int)):
        with suppress(ImageFileError):  # damaged since its mask was made
            cells += [thumbnail(read_image(path), SIDE)
                      for path in (images / names[index], output / mask_name(names[index]))]
    save_image(montage(cells, 2 * COLUMNS), output / SHEET)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    names = find_images(args.images)
    source = build_source(args.method, args.weights, args.onnx_config, args.device, args.input_size)
    prepare_output(args.output, args.images)
    lock_folder(args.output)
    settings = {'images': str(args.images.resolve()), 'method': args.method, 'weights': fingerprint(args.weights),
                'onnx_config': fingerprint(args.onnx_config), 'input_size': args.input_size,
                'crf_postprocess': args.crf_postprocess or None}  # None: as where it was not known yet
    check_settings(args.output, settings)

    alone, doubles = drop_duplicates(names)
    left_out = {name.as_posix(): f'its mask would have the name of that of {owner.name}'
                for name, owner in doubles.items()}
    done = {name for name in alone if (args.output / mask_name(name)).is_file()}
    todo = [name for name in alone if name not in done]

    with ExitStack() as stack:
        if args.method == 'unsupervised' and args.workers > 0 and len(todo) > 1:
            pool = stack.enter_context(process_pool(min(args.workers, len(todo))))
            results = pool.map(partial(write_unsupervised_mask, args.images, args.output), todo)
        else:
            refine = stack.enter_context(crf_in_workers({}, args.workers)) if args.crf_postprocess else None
            threads = max(1, args.workers) + 1  # while one image is refined, the next waits
            results = write_masks(source, args.images, todo, args.output, args.batch_size, threads, refine)
        reasons = dict(tqdm(results, 'masks', total=len(names), initial=len(names) - len(todo), disable=None))
    written = [name for name, reason in reasons.items() if not reason]

    known = {mask_name(name) for name in names}
    masks = (path.relative_to(args.output) for path in args.output.rglob('*.png'))
    left_out |= {name.as_posix(): reason for name, reason in reasons.items() if reason}
    left_out |= {name.as_posix(): 'a mask of an earlier run, whose image is no longer there' for name in masks
                 if name not in known}
    if done or written:
        with warn_of_failure(SHEET):
            contact_sheet(args.images, sorted([*done, *written]), args.output)
    text = write_report(args.output, settings, 'masks', len(names), len(written), len(done), left_out, SHEET)
    if not done and not written:
        said = name_some([f'{name} ({reason})' for name, reason in sorted(left_out.items())], 3)
        raise UserError(f'none of the {len(names)} images has a mask: {said}; replace the images or take another '
                        f'--method, and see {args.output / "report.txt"}.')
    print(text.partition('\n')[0] + f'; see {args.output / "report.txt"}')


if __name__ == '__main__':
    run_script(main)
