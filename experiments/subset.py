"""A part of VOC at reduced size, in the same folder layout: the images of given lists.

    python experiments/subset.py --voc FOLDER/VOCSegmentation --output DIR/VOCSegmentation \\
        [--lists configs/voc_animals/sets] [--size 256]

The default lists are those of images that show a cat, cow, dog, horse or sheep. Masks in saliency_*/ come along.
"""
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from PIL import Image

from data.images import fit_to_photograph, read_labels, read_mask, read_photograph
from data.transforms import resize_mask
from data.voc import read_list
from utils.config.cli import ArgumentParser
from utils.config.paths import REPOSITORY
from utils.report.pictures import thumbnail
from utils.run.errors import UserError
from utils.run.files import save_image, save_label_map, save_mask
from utils.run.log import progress
from utils.run.script import run_script


def copy(name: str, voc: Path, output: Path, size: int) -> None:
    """Image, ground truths and masks of an ID, as far as VOC has them."""
    photograph = read_photograph(voc / 'images' / f'{name}.jpg')
    image = thumbnail(photograph.pixels, size)
    save_image(Image.fromarray(image), output / 'images' / f'{name}.jpg', quality=95)
    for path in (folder / f'{name}.png' for folder in voc.iterdir()):
        if not path.is_file():
            continue
        is_mask = path.parent.name.startswith('saliency_')
        drawn = fit_to_photograph(read_mask(path) if is_mask else read_labels(path), photograph, path, stored=True)
        small = resize_mask(drawn, *image.shape[1::-1])
        if is_mask:
            save_mask(small, output / path.relative_to(voc))
        else:
            save_label_map(small, output / path.relative_to(voc))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--voc', type=Path, required=True, help='the whole data set, VOCSegmentation/')
    parser.add_argument('--output', type=Path, required=True, help='folder of the part')
    parser.add_argument('--lists', type=Path, default=REPOSITORY / 'configs/voc_animals/sets',
                        help='folder of lists, <split>.txt with one ID a line (default: %(default)s)')
    parser.add_argument('--size', type=int, default=256, help='longest side, pixels (default: %(default)s)')
    args = parser.parse_args(argv)
    lists = sorted(args.lists.glob('*.txt'))
    if not lists:
        raise UserError(f'no lists in {args.lists}; give a folder of <split>.txt with one ID a line.')
    if args.output.exists():
        raise UserError(f'{args.output} exists; choose another --output or delete it.')
    names = sorted({name for path in lists for name in read_list(path)})
    for name in progress(names, 'subset'):
        copy(name, args.voc, args.output, args.size)
    shutil.copytree(args.lists, args.output / 'sets')
    print(f'{len(names)} images in {args.output}')


if __name__ == '__main__':
    run_script(main)
