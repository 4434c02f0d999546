"""Score instance masks by COCO's average precision: AP, AP50 and AP75.

    python segmentation/score_instances.py --predictions detections.json --annotations val.json --output results/masks
"""
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from data.coco import MASKS, Instances, library, read_instances, read_mask
from utils.config.cli import ArgumentParser
from utils.report.results import save_results
from utils.run.errors import UserError, name_some
from utils.run.script import run_script


def average_precision(truth: Instances, found: Instances, class_agnostic: bool = False) -> np.ndarray:
    """(12,) AP, AP50, AP75, ... of COCO, 0..1; -1 without an object. Raises UserError for masks of different sizes."""
    api = library(*MASKS)
    from pycocotools import coco, cocoeval
    files, sizes = [coco.COCO(), coco.COCO()], {}  # type: ignore[var-annotated]
    with redirect_stdout(None):
        for file, objects in zip(files, (truth, found), strict=True):
            masks = [(i, entry, read_mask(entry)[0]) for i, name in enumerate(truth) for entry in objects.get(name, ())]
            if wrong := [entry for i, entry, mask in masks if sizes.setdefault(i, mask['size']) != mask['size']]:
                raise UserError(f'masks of image {wrong[0]["image_id"]} differ in size; make them from one image.')
            file.dataset = {  # annotations from 1 on, since pycocotools takes 0 for none
                'images': [{'id': i, 'height': 0, 'width': 0} for i in range(len(truth))],
                'categories': [{'id': number} for number in {0, *(entry['category_id'] for _, entry, _ in masks)}],
                'annotations': [{'iscrowd': 0, **entry, 'id': number, 'image_id': i, 'segmentation': mask,
                                 'area': area if isinstance(area := entry.get('area'), float | int) else api.area(mask),
                                 'category_id': 0 if class_agnostic else entry['category_id']}
                                for number, (i, entry, mask) in enumerate(masks, 1)]}
            file.createIndex()
        evaluation = cocoeval.COCOeval(*files, 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--predictions', type=Path, required=True, help='list of results, or an annotation file')
    parser.add_argument('--annotations', type=Path, required=True, help='COCO annotation file of the ground truth')
    parser.add_argument('--output', type=Path, required=True, help='folder for results.json')
    parser.add_argument('--class-agnostic', action='store_true', help='categories do not count: masks without classes')
    args = parser.parse_args(argv)
    truth, names = read_instances(args.annotations)
    found, _ = read_instances(args.predictions, None if args.class_agnostic else names, args.annotations)
    if lost := [name for name, entries in found.items() if entries and name not in truth]:
        raise UserError(f'{args.annotations} lacks the images {name_some(lost)} of {args.predictions}; add them.')
    made, results = {name: str(value) for name, value in vars(args).items()} | {'images': len(truth)}, {}
    for protocol, most in (('single', 1), ('multi', None)):
        kept = [{name: entries[:most] for name, entries in objects.items()} for objects in (truth, found)]
        values = (100 * average_precision(kept[0], kept[1], args.class_agnostic)[:3]).tolist()
        print(f'{protocol}: AP is {values[0]:.2f}, AP50 is {values[1]:.2f}, AP75 is {values[2]:.2f}')
        results[f'instances_{protocol}'] = dict(zip(('AP', 'AP50', 'AP75'), values, strict=True)) | {'made_with': made}
    save_results(results, args.output)


if __name__ == '__main__':
    run_script(main)
