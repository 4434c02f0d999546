"""Write a salient-object mask for every image of a folder.

    python saliency/predict.py --images photos --output masks --method unsupervised
    python saliency/predict.py --images photos --output masks --method maskcontrast --weights checkpoint.pth.tar
    python saliency/predict.py --images photos --output masks --method basnet --weights basnet.pth
    python saliency/predict.py --images photos --output masks --method onnx --weights net.onnx --onnx-config net.yml
    python saliency/predict.py --images photos --output masks --method transformer \\
        --backbone timm/vit_small_patch16_224.dino

Masks are PNGs of 0 and 255, of the size of their image, under the same names; of several objects in an image the next
ones have 254, 253, ... Rerun to resume. Images without an object, damaged ones and the like are named in report.txt.
Several processes, of --nproc or torchrun, share the images.
"""
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.coco import OUTLINES, library, outline_objects, require_ours, write_coco
from data.frames import Frame, open_frames, predict_frames
from data.images import read_image, read_objects
from models.crf import Refine, crf_in_workers, require_crf
from saliency.methods import METHODS, build_source
from saliency.sources import MaskSource, binarise, crf_logits
from utils.config.cli import ArgumentParser, at_least
from utils.config.schema import DEVICES
from utils.report.folder import FolderRun, Rows, fingerprint
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.files import save_mask
from utils.run.log import progress
from utils.run.parallel import available_cores, in_threads, process_pool
from utils.run.script import run_script
from utils.run.setup import start_job

NO_OBJECT = 'no object: less than 1% of the image is salient'


def write_masks(source: MaskSource, frames: Iterable[Frame], output: Path, batch_size: int = 1, threads: int = 1,
                refine: Refine | None = None) -> Iterator[tuple[Path, str]]:
    """Write the masks; yields each image, and why it has no mask: '' if it has one."""
    def write(name: Path, image: np.ndarray, saliency: np.ndarray) -> str:
        numbered = saliency.dtype == np.uint8  # objects of their own, of any size
        if refine is not None:
            saliency = refine(image, crf_logits(saliency)).astype(saliency.dtype)
        mask = saliency if numbered else binarise(saliency)
        if mask is None or not mask.any():
            what = 'no object' if numbered else NO_OBJECT
            return what if refine is None else f'{what} after the CRF'
        save_mask(mask, output / name.with_suffix('.png'))
        return ''

    return predict_frames(frames, lambda name, photograph: photograph.pixels, list, source, write, batch_size, threads)


def write_unsupervised_mask(output: Path, frame: Frame) -> tuple[Path, str]:
    """What a worker process does; see ``write_masks``."""
    return next(write_masks(build_source('unsupervised'), [frame], output))


def outline_masks(rows: Rows, names: Iterable[str], run: FolderRun) -> None:
    """Rows of ``write_coco`` of the images that have a mask."""
    def outline(name: str) -> tuple:
        return name, *outline_objects(read_objects(run.path_of(Path(name))).values)

    with rows.file:
        for row in in_threads(outline, (name for name in names if run.has(Path(name)))):
            rows.add(*row)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=Path, required=True, help='folder of the images; subfolders count')
    parser.add_argument('--output', type=Path, required=True, help='folder for the masks and the report')
    parser.add_argument('--method', choices=METHODS, required=True, help='where the masks come from')
    parser.add_argument('--weights', type=Path, help='weights of the network: a checkpoint or an .onnx file')
    parser.add_argument('--onnx-config', type=Path, help='YAML file with input_size, mean and scale of an ONNX network')
    parser.add_argument('--crf-postprocess', action='store_true',
                        help="move the outlines of a network's masks onto the edges of the image with a CRF")
    parser.add_argument('--workers', type=at_least(0), default=available_cores(),
                        help='processes (unsupervised, CRF) or threads that read and write (networks); 0 works in the '
                             'main process; default: one a CPU core')
    parser.add_argument('--input-size', type=at_least(1), help="side of BASNet's input in pixels, the resize it was "
                                                               'trained with (default: 256, as published); or of '
                                                               "maskcontrast's, by default as large as whole images "
                                                               'look like its crops')
    parser.add_argument('--backbone', help='vision transformer, timm/NAME; --weights PATH in place of those of timm')
    parser.add_argument('--masks-per-image', type=at_least(1), metavar='N', help='transformer: up to N, by MaskCut')
    parser.add_argument('--resize', type=at_least(1), help='transformer: shorter side of its input (default: 640 px)')
    parser.add_argument('--heads', type=at_least(1), help='transformer: heads whose attention counts (default: 5)')
    parser.add_argument('--topk', type=float, help='transformer: share of the patches attended to (default: 0.4)')
    parser.add_argument('--mass', type=float, help='transformer: share of the attention that is kept (default: 0.5)')
    parser.add_argument('--pos-embed', choices=('dino', 'timm'), help='transformer: how positions are resized (dino)')
    parser.add_argument('--precision', choices=('fp32', 'bf16'),
                        help='BASNet, maskcontrast, transformer: number format (default: fp32)')
    parser.add_argument('--coco', type=Path, metavar='FILE', help='also write the masks as a COCO annotation file')
    parser.add_argument('--batch-size', type=at_least(1), default=8, help='images a forward pass of a network')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where a network runs')
    parser.add_nproc()
    args = parser.parse_args(argv)
    if args.crf_postprocess:
        if args.method == 'unsupervised':
            raise UserError('--method unsupervised has GrabCut in place of the CRF; leave out --crf-postprocess.')
        require_crf()
    if not args.images.is_dir():
        raise UserError(f'{args.images} is not a folder; give the folder that holds the images.')
    device = start_job(args.nproc, args.device, __file__, argv)
    total, names, duplicates, frames = open_frames(args.images)
    options = {name: getattr(args, name) for takes in METHODS.values() for name in takes}
    if args.coco is not None:
        library(*OUTLINES)  # told before anything is computed
        require_ours(args.coco)
    asked = args.method == 'onnx' or device.index is None  # onnxruntime may not have the device that PyTorch has
    source = build_source(args.method, args.device if asked else str(device), **options)
    files = {name: fingerprint(getattr(args, name)) for name in ('weights', 'onnx_config')}
    run = FolderRun(args.output, '', args.images, 'mask', method=args.method, **options | files,
                    crf_postprocess=args.crf_postprocess or None)  # None: as where it was not known yet
    todo = run.todo(progress(frames, 'masks', total), args.batch_size)

    with ExitStack() as stack:
        if args.method == 'unsupervised' and args.workers > 0 and total > 1:
            pool = stack.enter_context(process_pool(args.workers))
            work = partial(write_unsupervised_mask, args.output)
            results = in_threads(lambda frame: pool.submit(work, frame).result(), todo, args.workers)
        else:
            refine = stack.enter_context(crf_in_workers({}, args.workers)) if args.crf_postprocess else None
            threads = max(1, args.workers) + 1  # while one image is refined, the next waits
            results = write_masks(source, todo, args.output, args.batch_size, threads, refine)
        run.collect(results)
    if args.coco is not None:
        rows = run.rows('coco')
        outline_masks(rows, distributed.share(progress(names, 'COCO'), args.batch_size), run)
    if not run.join():
        return

    others = dict.fromkeys(run.stale(names), 'a mask of an earlier run, whose image is no longer there')
    if args.coco is not None:
        lacking = map(Path, write_coco(args.coco, rows))
        others |= dict.fromkeys(lacking, f'a mask without an outline is not in {args.coco}')
    _, failures = run.failures()
    summary = run.finish(names, duplicates, others, 'contact_sheet.jpg', lambda name: [
        read_image(args.images / name), read_image(run.path_of(name))])
    if not run.existing and not run.written:
        raise UserError(f'none of the {total} images has a mask: {failures}; replace the images or take another '
                        f'--method, and see {args.output / "report.txt"}.')
    print(summary)


if __name__ == '__main__':
    run_script(main)
