"""What a network gains over the clusters that it learns from, and by which of MaskDistill's parts.

    python experiments/distill.py --output results/distill --seeds 0 1 2
    python experiments/distill.py --output results/distill_photographs --db-root datasets --data NAME --weights WEIGHTS

For each seed: the teacher, K-means on the masks of the training split (kmeans.py, fit_split), its label maps, and a
network for each setting. On drawn images the features are those of a pretraining with this seed; on a data set NAME in
VOC's layout below --db-root, of which no label is read before scoring, those of a backbone with WEIGHTS. Teacher and
network are scored on val with the teacher's names of the clusters, the teacher on drawn images with the masks that it
predicts, and on NAME with the unsupervised ones. Runs that are finished are not run again. Writes
distill.md and distill.csv.
"""
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from experiments.runner import Chain, Step
from segmentation.engine import BEST
from segmentation.metrics import standard_deviation
from utils.config.cli import ArgumentParser
from utils.report.results import csv_text, markdown, with_spread
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

DRAWN, PHOTOGRAPHS = 'configs/demo', 'configs/distill'
TEACHER = 'fit_split=train', 'num_seeds=1'  # overrides of configs/demo/kmeans.yml: on the masks that it predicts
TRAIN = {DRAWN: 'val_split=train', PHOTOGRAPHS: 'val_split=trainaug'}  # the images that get label maps


class Setting(NamedTuple):
    """How a network learns from clusters."""
    confidence: float  # share of the masks that are kept, and their images with them
    loss: str
    rounds: int = 1  # of two, the second learns from what the first predicts on the training split, after a CRF


SETTINGS = {'all masks': Setting(1.0, 'ce'), 'confidence': Setting(0.8, 'ce'), 'OHEM': Setting(1.0, 'ohem'),
            'confidence, OHEM': Setting(0.8, 'ohem'), 'confidence, CRF round': Setting(0.8, 'ce', 2)}


def distil(chain: Chain, configs: str, teacher: Step, setting: Setting, shared: Sequence[str],
           data: Sequence[str] = ()) -> list[Step]:
    """The steps from a teacher, a run of kmeans.py, to a network; the last one's results are those of the network.

    ``configs`` is the folder of pseudo_labels.yml and distill.yml; ``shared`` overrides are for all steps, ``data`` for
    the network.
    """
    maps = chain.step('pseudo_labels', f'{configs}/pseudo_labels.yml', f'maps-{setting.confidence}-{teacher.folder}', [
        *shared, f'clusters={teacher.folder}/clusters.pth.tar', f'confidence={setting.confidence}'], (teacher,))
    steps, labels, config = [maps], f'{maps.folder}/label_maps', f'{configs}/distill.yml'
    for number in range(1, setting.rounds + 1):
        folder = f'{setting.loss}-{setting.confidence}-round-{number}-{teacher.folder}'
        given = [*shared, *data, f'label_maps={labels}', f'loss={setting.loss}']
        steps.append(chain.step('linear', config, folder, given, (steps[-1],)))
        if number < setting.rounds:
            best = '--state-dict', str(chain.root / folder / BEST), '--crf-postprocess'
            steps.append(chain.step('linear', config, f'{folder}-train', [*given, TRAIN[configs]], (steps[-1],), best,
                                    'segmentation/eval.py'))
            labels = f'{folder}-train/predictions_crf'
    return steps


def write(root: Path, scores: Mapping[tuple[str, int], tuple[float, float]]) -> None:
    """Write and print the table of {(setting, seed): mIoU of teacher and network, percent}."""
    rows = []
    for name in dict.fromkeys(name for name, _ in scores):
        pairs = np.array([pair for (setting, _), pair in scores.items() if setting == name])
        columns = *pairs.T, pairs[:, 1] - pairs[:, 0]
        rows.append([name, *(with_spread(float(np.mean(column)), standard_deviation(column.tolist()), len(column))
                             for column in columns)])
    text = markdown(['setting', 'clusters', 'network', 'network - clusters, paired'], rows, 3)
    write_text(root / 'distill.md', text)
    write_text(root / 'distill.csv', csv_text(['setting', 'seed', 'clusters', 'network'], [
        [*place, *pair] for place, pair in scores.items()]))
    print(f'\nmIoU in percent\n\n{text}\nWritten to {root}')


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--output', type=Path, default=Path('results/distill'), help='folder of all of it')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='of every run')
    parser.add_argument('--settings', nargs='+', choices=tuple(SETTINGS), default=list(SETTINGS), help='which of them')
    parser.add_argument('--db-root', type=Path, help='folder of the data set NAME')
    parser.add_argument('--data', metavar='NAME', help='a data set in the place of drawn images')
    parser.add_argument('--weights', type=Path, help='of the backbone on NAME (default: those that timm offers)')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone')
    args = parser.parse_args(argv)
    if (args.data is None) != (args.db_root is None):
        raise UserError('--data and --db-root go together; give both, or neither for drawn images.')
    chain = Chain(args.output, args.db_root or args.output / 'data', args.overrides, 'configs/demo/env.yml')
    scores = {}
    for seed in args.seeds:  # a table after each seed
        if args.data is None:
            configs, given, data = DRAWN, [*TEACHER], list[str]()
            drawing = Step('data', ('experiments/shapes.py', '--output', str(chain.db_root / 'Shapes')))
            encoder = chain.step('pretrain', f'{DRAWN}/pretrain.yml', f'pretrain-{seed}', [f'seed={seed}'], (drawing,))
            first = [drawing, encoder]
            shared = [f'seed={seed}', f'pretraining={encoder.folder}/checkpoint.pth.tar']
        else:
            configs, given, data, first = PHOTOGRAPHS, [], [f'train_db_name={args.data}'], []
            weights = [] if args.weights is None else [f'pretraining={args.weights.resolve()}']
            shared = [f'seed={seed}', f'val_db_name={args.data}', *weights]
        teacher = chain.step('kmeans', f'{configs}/kmeans.yml', f'clusters-{seed}', [*shared, *given], tuple(first))
        students = {name: distil(chain, configs, teacher, SETTINGS[name], shared, data) for name in args.settings}
        chain.run([*first, teacher, *(step for steps in students.values() for step in steps)], jobs=args.jobs)
        for name, steps in students.items():
            scores[name, seed] = (chain.results(teacher)['kmeans']['mIoU'],
                                  chain.results(steps[-1])['distilled']['mIoU'])
        write(chain.root, scores)


if __name__ == '__main__':
    run_script(main)
