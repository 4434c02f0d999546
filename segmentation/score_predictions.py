"""Score label maps on disk, of this project or any other, against a split.

    python segmentation/score_predictions.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml \\
        --predictions results/linear_finetune_VOCSegmentation_supervised_saliency/predictions

A label map is a PNG of class ids in one channel, ID.png, of the size of its image.
"""
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from data.files import keep_complete
from data.image_set import ImageSet
from data.images import read_labels, read_photograph, turn_upright
from data.label_maps import LABEL_NAMES, read_names
from data.loaders import open_images
from segmentation.engine import report_scores
from segmentation.metrics import confusion_matrix
from utils.config.cli import ConfigParser
from utils.config.schema import LinearFinetune
from utils.run.errors import UserError
from utils.run.log import progress
from utils.run.parallel import in_threads
from utils.run.script import run_script
from utils.run.setup import start

log = logging.getLogger(__name__)


def offline_confusion(dataset: ImageSet, folder: Path) -> tuple[np.ndarray, Sequence[str]]:
    """(classes, labels) confusion matrix of the label maps of a folder, and the names of their labels.

    Raises UserError if a label map is missing, unreadable or of another size, or holds a wrong class id.
    """
    keep_complete(folder, {name: [Path(f'{name}.png')] for name in dataset.ids},
                  f'images of {dataset.split} have no prediction in {folder}',
                  'predict them too, or give another folder with --predictions', skip=False)
    names, num_classes = read_names(folder / LABEL_NAMES) or dataset.classes, len(dataset.classes)

    def count(index: int) -> np.ndarray:
        path, truth = folder / f'{dataset.ids[index]}.png', dataset.load(index)['semseg']
        orientation = read_photograph(dataset.image_path(index)).orientation
        prediction = turn_upright(read_labels(path), truth.shape, orientation, stored=True)
        if prediction.shape != truth.shape:
            raise UserError(f'prediction {path} has shape {prediction.shape}, its ground truth {truth.shape}; store '
                            'class ids in one channel at the size of the image.')
        if prediction.max() >= len(names):
            raise UserError(f'prediction {path} holds class id {prediction.max()}, outside 0..{len(names) - 1}; '
                            'predict every pixel as one of the classes.')
        return confusion_matrix(truth, prediction.astype(np.uint8), num_classes, len(names))

    counts = in_threads(count, progress(range(len(dataset)), 'scoring'))
    return sum(counts, np.zeros((num_classes, len(names)), np.int64)), names


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, LinearFinetune, processes=False)
    parser.add_argument('--predictions', type=Path,
                        help='folder of the label maps; default: predictions/ of the output directory')
    args = parser.parse_args(argv)
    p = parser.load(args)
    start(p, 0, __file__, argv)
    dataset = open_images(p, p.val_db_name, p.val_split, truth=True)
    folder = args.predictions or Path(p.output_dir) / 'predictions'
    confusion, names = offline_confusion(dataset, folder)
    log.info('%d label maps of %s against %s %s', len(dataset), folder, p.val_db_name, p.val_split)
    made = {'label_maps': str(folder.resolve()), 'data': f'{p.val_db_name} {p.val_split}', 'images': len(dataset)}
    report_scores(p, 'Label maps on disk', {'offline': confusion}, names, dataset.classes, made)


if __name__ == '__main__':
    run_script(main)
