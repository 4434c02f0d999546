"""Segment images: label maps, overlays and a legend.

    python segmentation/predict.py --images NEW --output segmented --model photos/results/kmeans/clusters.pth.tar
    python segmentation/predict.py --images film.mp4 --output frames --model best_model.pth.tar --crf-postprocess

--images is an image, a folder (subfolders count) or a video; --model is clusters.pth.tar of kmeans.py or
best_model.pth.tar of linear_finetune.py. Label maps are palette PNGs of the images' own sizes, under the same
names. Started again it goes on where it stopped. In Python: ``segmentation.segmenter.Segmenter``.
"""
import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
import torch
from PIL import Image

from data.files import mask_name, prepare_output
from data.frames import Frame, open_frames, predict_frames
from data.images import ImageFileError, read_image
from models.crf import Refine, crf_in_workers, require_crf
from segmentation.segmenter import Output, Segmenter
from utils.config.cli import ArgumentParser
from utils.config.paths import find_file
from utils.config.schema import DEVICES
from utils.report.folder import check_settings, fingerprint, write_report
from utils.report.pictures import legend, montage, overlay, thumbnail
from utils.run.devices import pin
from utils.run.errors import UserError, name_some
from utils.run.files import save_image, save_label_map
from utils.run.lock import lock_folder
from utils.run.log import progress, warn_of_failure
from utils.run.parallel import available_cores
from utils.run.script import run_script

MAPS, OVERLAYS, REMOVED, SHEET = 'predictions', 'overlays', 'removed', 'contact_sheet.png'
SHOWN, COLUMNS, SIDE = 24, 6, 160  # of the contact sheet: overlays, overlays in a row, longer side in pixels
LONGEST = 65_500  # side of a JPEG at most, pixels
WHOLE = 0.9  # share of the frames that a video's header names, which need not be exact, that makes it whole


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--images', type=Path, required=True, help='an image, a folder of images or a video')
    parser.add_argument('--output', type=Path, required=True, help='folder for predictions/, overlays/ and the report')
    parser.add_argument('--model', required=True, help='clusters.pth.tar or best_model.pth.tar')
    parser.add_argument('--weights', type=Path,
                        help='checkpoint of the pretraining that clusters.pth.tar was made with, if it was moved')
    parser.add_argument('--crf-postprocess', action='store_true', help='refine the label maps with a CRF')
    parser.add_argument('--batch-size', type=int, default=8, help='images a forward pass (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=available_cores(),
                        help='threads that read and write, and processes of the CRF (default: one a CPU core)')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where the network runs')
    args = parser.parse_args(argv)
    for name, value in (('--workers', args.workers), ('--batch-size', args.batch_size)):
        if value < 1:
            raise UserError(f'{name} {value} is too small; give at least 1.')
    return args


def segment(segmenter: Segmenter, frames: Iterable[Frame], output: Path, batch_size: int, threads: int,
            refine: Refine | None) -> Iterator[tuple[Path, str]]:
    """Write label maps and overlays; yields each image, and why it has no label map: '' if it has one."""
    def write(name: Path, image: np.ndarray, found: Output) -> str:
        labels = segmenter.finish(image, found, refine)
        drawn = thumbnail(overlay(image, labels), LONGEST)
        save_image(Image.fromarray(drawn), output / OVERLAYS / name.with_suffix('.jpg'))
        save_label_map(labels, output / MAPS / mask_name(name))  # last: it says that the image is done
        return ''

    return predict_frames(frames, segmenter.prepare, lambda tensors: pin(torch.stack(tensors), segmenter.device),
                          lambda images: segmenter.run(images, refine is not None), write, batch_size, threads)


def contact_sheet(output: Path, names: Sequence[Path], classes: Sequence[str]) -> None:
    """Up to 24 overlays, drawn at random from ``names``, above the legend: contact_sheet.png."""
    drawn = np.random.default_rng(0).choice(len(names), min(SHOWN, len(names)), replace=False)
    pictures = []
    for i in sorted(drawn):
        with suppress(ImageFileError):  # removed or damaged since it was drawn
            pictures.append(thumbnail(read_image(output / OVERLAYS / names[i].with_suffix('.jpg')), SIDE))
    if pictures:
        above, below = montage(pictures, COLUMNS), legend(classes)
        sheet = Image.new('RGB', (max(above.width, below.width), above.height + below.height), 'white')
        sheet.paste(above, (0, 0))
        sheet.paste(below, (0, above.height))
        save_image(sheet, output / SHEET)


def move_stale(output: Path, names: Iterable[Path]) -> None:
    """Move label maps of images that are no longer there to removed/, and delete their overlays."""
    known = set(map(mask_name, names))
    for path in list((output / MAPS).rglob('*.png')):
        name = path.relative_to(output / MAPS)
        if name not in known:
            place = output / REMOVED / name
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
            (output / OVERLAYS / name.with_suffix('.jpg')).unlink(missing_ok=True)
            print(f'{name.with_suffix("")} is no longer there: its label map is now {place}')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.crf_postprocess:
        require_crf()
    total, doubles, frames = open_frames(args.images)
    model = find_file(args.model)
    segmenter = Segmenter.load(model, args.device, args.weights)
    prepare_output(args.output, args.images)
    lock_folder(args.output)
    classes = segmenter.classes
    merged = [f'{label} in {classes.index(name)}' for label, name in enumerate(classes) if classes.index(name) != label]
    settings = {'images': str(args.images.resolve()), 'model': fingerprint(model),
                'merged clusters': merged, 'crf': args.crf_postprocess}
    check_settings(args.output, settings)
    save_image(legend(classes), args.output / 'legend.png')

    done: list[Path] = []
    written: list[Path] = []
    failed: dict[str, str] = {}

    def todo() -> Iterator[Frame]:
        for frame in progress(frames, 'prediction', total):
            if (args.output / MAPS / mask_name(frame[0])).is_file():
                done.append(frame[0])
            else:
                yield frame

    # while one image is refined, the next waits
    threads = 2 * args.workers if args.crf_postprocess else args.workers
    with crf_in_workers({}, args.workers) if args.crf_postprocess else nullcontext() as refine:
        for name, reason in segment(segmenter, todo(), args.output, args.batch_size, threads, refine):
            if reason:
                failed[name.as_posix()] = reason
            else:
                written.append(name)

    count = len(done) + len(written) + len(failed)
    cut = {args.images.name: f'it ends after {count} of {total} frames'} if count < WHOLE * total else {}
    if not cut:
        move_stale(args.output, [*done, *written, *map(Path, failed), *doubles])
    left_out = failed | cut | {name.as_posix(): f'its label map would have the name of that of {owner.name}'
                               for name, owner in doubles.items()}
    if done or written:
        with warn_of_failure(SHEET):
            contact_sheet(args.output, sorted(done + written), classes)
    text = write_report(args.output, settings, 'label maps', count + len(doubles), len(written), len(done), left_out,
                        SHEET, classes)
    if failed:
        raise UserError(f'{len(failed)} of {count} images cannot be read: '
                        f'{name_some([f"{name} ({reason})" for name, reason in failed.items()], 3)}; replace them and '
                        f'start again, the label maps of the others are in {args.output / MAPS}.')
    if cut:
        raise UserError(f'video {args.images} ends after {count} of {total} frames; copy or convert it again and start '
                        f'again, the label maps of these frames are in {args.output / MAPS}.')
    print(text.partition('\n')[0] + f'; see {args.output}')


if __name__ == '__main__':
    run_script(main)
