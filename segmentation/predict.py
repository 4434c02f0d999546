"""Segment images: label maps, overlays and a legend.

    python segmentation/predict.py --images NEW --output segmented --model photos/results/kmeans/clusters.pth.tar
    python segmentation/predict.py --images film.mp4 --output frames --model best_model.pth.tar --crf-postprocess
    python segmentation/predict.py --images NEW --output segmented --model clusters.pth.tar --masks unsupervised

--images is an image, a folder (subfolders count) or a video; --model is clusters.pth.tar of kmeans.py or
best_model.pth.tar of linear_finetune.py. Label maps are palette PNGs of the images' own sizes, under the same
names. Rerun to resume. Several processes, of --nproc or torchrun, share the images. In Python:
``segmentation.segmenter.Segmenter``.
"""
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
import torch
from PIL import Image

from data.frames import Frame, open_frames, predict_frames
from data.images import ImageFileError, Photograph, fit_to_photograph, read_image, read_mask
from data.label_maps import LABEL_NAMES, UNFINISHED, write_names
from models.crf import Refine, crf_in_workers, require_crf
from segmentation.segmenter import MASKS, Output, Segmenter
from utils.config.cli import ArgumentParser, at_least
from utils.config.keys import schema_keys
from utils.config.paths import find_file
from utils.config.schema import DEVICES, CrfKwargs
from utils.report.folder import FolderRun, fingerprint
from utils.report.pictures import legend, overlay, thumbnail
from utils.run import distributed
from utils.run.devices import pin
from utils.run.errors import UserError
from utils.run.files import save_image, save_label_map, set_aside
from utils.run.log import progress
from utils.run.parallel import available_cores
from utils.run.script import run_script
from utils.run.setup import start_job

MAPS, OVERLAYS, REMOVED = 'predictions', 'overlays', 'removed'
LONGEST = 65_500  # side of a JPEG at most, pixels
WHOLE = 0.9  # share of the frames that a video's header names, which need not be exact, that makes it whole


def with_mask(frames: Iterable[Frame], masks: Path, why: str) -> Iterator[Frame]:
    """The frames; one that has no mask in a folder raises ImageFileError for the reason ``why`` when it is read."""
    def refuse() -> Photograph:
        raise ImageFileError(why)

    for name, load in frames:
        yield name, load if (masks / name.with_suffix('.png')).is_file() else refuse


def segment(segmenter: Segmenter, frames: Iterable[Frame], output: Path, batch_size: int, threads: int,
            refine: Refine | None, masks: Path | None = None) -> Iterator[tuple[Path, str]]:
    """Write label maps and overlays; yields each image, and why it has no label map, or ''. ``masks``: their folder."""
    def prepare(name: Path, photograph: Photograph) -> tuple[torch.Tensor, np.ndarray | None]:
        if masks is None:
            return segmenter.prepare(photograph.pixels), segmenter.find_mask(photograph.pixels)
        path = masks / name.with_suffix('.png')
        return segmenter.prepare(photograph.pixels), fit_to_photograph(read_mask(path), photograph, path, False)

    def stack(inputs: list) -> tuple[torch.Tensor, list[np.ndarray] | None]:
        images, found = zip(*inputs, strict=True)
        return pin(torch.stack(images), segmenter.device), None if segmenter.masks == 'network' else list(found)

    def write(name: Path, image: np.ndarray, found: Output) -> str:
        labels = segmenter.finish(image, found, refine)
        drawn = thumbnail(overlay(image, labels), LONGEST)
        save_image(Image.fromarray(drawn), output / OVERLAYS / name.with_suffix('.jpg'))
        save_label_map(labels, output / MAPS / name.with_suffix('.png'))  # last: it says that the image is done
        return ''

    return predict_frames(frames, prepare, stack, lambda batch: segmenter.run(batch[0], refine is not None, batch[1]),
                          write, batch_size, threads)


def move_stale(output: Path, name: Path) -> None:
    """Move the label map of an image that is no longer there to removed/, and delete its overlay."""
    place = output / REMOVED / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():  # of an earlier removal
        set_aside(place)
    (output / MAPS / name).replace(place)
    (output / OVERLAYS / name.with_suffix('.jpg')).unlink(missing_ok=True)
    print(f'{name.with_suffix("")} is no longer there: its label map is now {place}')


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=Path, required=True, help='an image, a folder of images or a video')
    parser.add_argument('--output', type=Path, required=True, help='folder for predictions/, overlays/ and the report')
    parser.add_argument('--model', required=True, help='clusters.pth.tar or best_model.pth.tar')
    parser.add_argument('--weights', type=Path,
                        help='checkpoint of the pretraining that clusters.pth.tar was made with, if it was moved')
    parser.add_argument('--masks', metavar='unsupervised|network|FOLDER',
                        help='clusters: object masks as of saliency/predict.py --method unsupervised, those that the '
                             'network predicts, or in a folder, under the names of the images (of one that is called '
                             'network write ./network); by default as those of the clusters were made, if they tell')
    parser.add_argument('--crf-postprocess', action='store_true', help='refine the label maps with a CRF')
    parser.add_argument('--batch-size', type=at_least(1), default=8, help='images a forward pass')
    parser.add_argument('--workers', type=at_least(1), default=available_cores(),
                        help='threads that read and write, and processes of the CRF (default: one a CPU core)')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where the network runs')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='number format of the network')
    parser.add_nproc()
    args = parser.parse_args(argv)
    if args.crf_postprocess:
        require_crf()
    device = start_job(args.nproc, args.device, __file__, argv)
    total, names, duplicates, frames = open_frames(args.images)
    model, folder = find_file(args.model), None if args.masks in (None, *MASKS[:2]) else Path(args.masks)
    if folder is not None and not folder.is_dir():
        raise UserError(f'--masks {args.masks} is no folder; give one that holds masks, unsupervised or network.')
    segmenter = Segmenter.load(model, str(device), args.weights, args.masks if folder is None else 'given',
                               args.precision)
    classes = segmenter.classes
    merged = [f'{label} in {classes.index(name)}' for label, name in enumerate(classes) if classes.index(name) != label]
    masks = {'network': None, 'given': folder and str(folder.resolve())}.get(segmenter.masks, segmenter.masks)
    published = schema_keys(CrfKwargs)
    crf = {name: value for name, value in segmenter.crf.items() if value != published[name].default}
    settings = {'model': fingerprint(model), 'merged clusters': merged, 'crf': args.crf_postprocess and (crf or True),
                'masks': masks, 'precision': None if args.precision == 'fp32' else args.precision}
    run = FolderRun(args.output, MAPS, args.images, 'label map', **settings)  # None: as where there was no other yet
    named = partial(write_names, args.output / MAPS / LABEL_NAMES, classes, labels=len(classes))
    if distributed.is_main():
        save_image(legend(classes), args.output / 'legend.png')
        named(maps=UNFINISHED)  # where they are trained on

    todo: Iterable[Frame] = run.todo(progress(frames, 'prediction', total), args.batch_size, folder)
    no_mask = f'no mask in {folder}'
    todo = todo if folder is None else with_mask(todo, folder, no_mask)
    # while one image is refined, the next waits
    threads = 2 * args.workers if args.crf_postprocess else args.workers
    with crf_in_workers(segmenter.crf, args.workers) if args.crf_postprocess else nullcontext() as refine:
        run.collect(segment(segmenter, todo, args.output, args.batch_size, threads, refine, folder))

    if not run.join():
        return
    named()

    count, (failed, failures) = len(names), run.failures(no_mask)
    cut = {Path(args.images.name): f'it ends after {count} of {total} frames'} if count < total else {}
    for name in run.stale(names) if not cut else ():
        move_stale(args.output, name)
    summary = run.finish(names, duplicates, cut, 'contact_sheet.png', lambda name: [
        read_image(args.output / OVERLAYS / name.with_suffix('.jpg'))], classes)
    if failed:
        raise UserError(f'{failed} of {count} images cannot be read: {failures}; replace them and rerun, the label '
                        f'maps of the others are in {args.output / MAPS}.')
    if count < WHOLE * total:
        raise UserError(f'video {args.images} ends after {count} of {total} frames; copy or convert it anew and rerun, '
                        f'the label maps of these frames are in {args.output / MAPS}.')
    if run.missing == count:
        raise UserError(f'none of the {count} images has a mask in {folder}; a mask needs the relative path of its '
                        'image with .png.')
    print(summary)


if __name__ == '__main__':
    run_script(main)
