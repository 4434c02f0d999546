"""Evaluate a trained linear model: results, label maps and pictures.

    python segmentation/eval.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml \\
        --state-dict results/linear_finetune_VOCSegmentation_supervised_saliency/best_model.pth.tar --crf-postprocess

The results name the weights and their fingerprint. Those of the run's own best model join its output directory;
those of another file go to <output_dir>-eval-<name of the file>, unless --set output_dir=... says where.
"""
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.folder import is_folder
from data.loaders import evaluation_loader, label_maps_of, open_images
from models.build import trained_linear_model
from models.crf import require_crf
from models.weights import fingerprint, read_weights
from segmentation.engine import BEST, DISTILLED, TRAINED_ON, check_free, read_trained, score, stem
from segmentation.metrics import made_with, warn_of_shared
from utils.config.cli import ConfigParser
from utils.config.paths import find_file
from utils.config.schema import LinearFinetune
from utils.report.results import read_results
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.script import run_script
from utils.run.setup import start

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, LinearFinetune)
    parser.add_argument('--state-dict', required=True,
                        help='weights of the linear model, e.g. best_model.pth.tar of linear_finetune.py')
    parser.add_argument('--crf-postprocess', action='store_true', help='refine the predictions with a CRF')
    args = parser.parse_args(argv)
    p = parser.load(args)
    weights, best = find_file(args.state_dict, p.root_dir), Path(p.output_dir) / BEST
    if not (best.is_file() and best.samefile(weights)):
        elsewhere = f'output_dir={p.output_dir}-eval-{stem(weights)}'  # unless --set gives another: the last counts
        p = parser.load(args, elsewhere)
    if args.crf_postprocess:
        require_crf()
    if is_folder(folder := Path(p.db_root) / p.val_db_name):
        raise UserError(f'{folder} has no ground truth to score; linear_finetune.py, run again, tells how far its '
                        'network agrees with label maps, and predict.py segments images.')
    device = start(p, args.nproc, __file__, argv)

    dataset = open_images(p, p.val_db_name, p.val_split, truth=True)
    task, trained = read_trained(weights, dataset.classes)
    if trained is None and label_maps_of(p):  # a published model
        task = DISTILLED
    classes = trained or dataset.classes
    model = trained_linear_model(read_weights(weights), p.backbone, num_classes=len(classes),
                                 features=p.features, decoder=p.model_kwargs.decoder)
    if trained is None:
        log.info('Nothing beside %s names its classes: they are taken for those of %s', weights, p.val_db_name)
    digest = fingerprint(model)
    log.info('Weights: %s (fingerprint %s)', weights, digest)
    check_free(Path(p.output_dir), task, weights, digest)
    loader = evaluation_loader(p, dataset, model.backbone.mean, model.backbone.std,
                               None if args.crf_postprocess else p.num_visualizations)
    to_device(model, device)
    made = made_with(weights, digest, dataset, p.val_size)
    theirs = read_results(weights.parent).get(task, {}).get('made_with', {})
    if theirs.get('fingerprint') == digest:
        made |= {name: theirs[name] for name in TRAINED_ON if name in theirs}
    learnt = weights.with_name('labelled.txt')
    if learnt.is_file() and p.train_db_name == p.val_db_name:
        warn_of_shared(dataset.ids, learnt.read_text().splitlines(), f'{p.val_db_name} {p.val_split}',
                       f'{learnt}, which the network was trained on')
    score(model, loader, dataset, classes, device, p, 'Evaluation', task, made, args.crf_postprocess)


if __name__ == '__main__':
    run_script(main)
