"""What pretraining gains on the animals of VOC, before and after, with and without labels.

    python experiments/voc_animals.py --db-root datasets --output results/voc_animals --seeds 1 2 3 \\
        --start imagenet random --masks supervised unsupervised --set pretrain.epochs=4

For each start (a folder of configs/voc_animals: ImageNet or random weights, the full schedule at 224 px or one for two
CPU cores) and seed: K-means, retrieval and the linear classifier on the initial weights, on features of the backbone
and on the untrained embedding; pretraining with masks of either kind; then the same protocols, and the CRF. All is as
the configs of the folder say, with masks from the data set ("given": saliency_supervised_model, the same for every row)
or those that the network predicts. Runs that are finished are not run again. Writes table.md, gains.md, classes.md and
figures.csv.
"""
import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from experiments.runner import SCRIPTS, Chain, Step, overrides_of
from models.crf import require_crf
from segmentation.metrics import standard_deviation
from utils.config.cli import ArgumentParser
from utils.config.paths import REPOSITORY
from utils.report.tables import csv_text, markdown, with_spread
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

CONFIGS = Path('configs/voc_animals')
STARTS = tuple(sorted(path.parent.name for path in (REPOSITORY / CONFIGS).glob('*/pretrain_supervised.yml')))
METRICS = {'K-means, 20 clusters': ('kmeans', 'kmeans'), 'K-means, 5 clusters': ('kmeans', 'kmeans 5'),
           'Retrieval': ('retrieval', 'retrieval'), 'LC': ('linear', 'linear'), 'LC + CRF': ('linear', 'linear_crf')}
INITIAL = 'initial weights'
BACKBONE_LR = 0.01  # of a linear classifier on the backbone, as in configs/linear_finetune/*_imagenet.yml
OWN_KEYS = ('seed', 'output_dir', 'root_dir', 'db_root', 'features', 'saliency')  # what tells the runs apart


class Row(NamedTuple):
    """A line of the tables: the same model of each seed, scored in one way."""
    start: str
    model: str
    features: str
    masks: str
    classes: str


class Experiment(Chain):
    """All steps, in their order, the rows that they fill, and the results of those that are finished.

    Args:
        args: with what ``add_experiment_arguments`` added.
        all_classes: score the 21 classes too, in rows of their own.
    """

    def __init__(self, args: argparse.Namespace, all_classes: bool = False) -> None:
        super().__init__(args.output, args.db_root, args.overrides)
        self.weights = 'imagenet_classification' if args.weights is None else str(args.weights.resolve())
        self.crf = crf_flags()
        self.classes = {'animals': ()} | ({'all 21': ('eval_classes=[]',)} if all_classes else {})
        self.steps: list[Step] = []
        self.rows: dict[Row, dict[str, list[Step]]] = {}
        for text in self.given:
            if (key := text.partition('=')[0].rpartition('.')[2]) in OWN_KEYS:
                raise UserError(f'--set {text}: the experiment sets {key} itself; see --db-root, --output, --seeds and '
                                'the rows of its table.')

    def pretrain(self, start: str, seed: int, masks: str, name: str, overrides: Sequence[str] = ()) -> Step:
        """Pretraining, in <start>/seed_<seed>/<name>."""
        weights = [f'pretraining={self.weights}'] if start.startswith('imagenet') else []
        step = self.step('pretrain', f'{CONFIGS}/{start}/pretrain_{masks}.yml',
                         f'{start}/seed_{seed}/{name}/pretrain',
                         [f'seed={seed}', *weights, *overrides_of('pretrain', overrides)])
        self.steps.append(step)
        return step

    def protocol(self, row: Row, pretrained: Step, task: str, seed: int, overrides: Sequence[str] = (),
                 crf: bool = True) -> None:
        """A protocol on a pretrained model, for the animals and if asked for for all classes.

        Args:
            row: without classes.
            overrides: of the pretraining, of which the protocol takes those that its script has.
            crf: score the linear classifier with the CRF too.
        """
        network = [f'pretraining={pretrained.folder}/checkpoint.pth.tar', f'seed={100 * seed}']
        if task != 'linear':
            saliency = 'supervised_model' if row.masks == 'given' else 'network'
            network += [f'features={row.features}', f'saliency={saliency}']
        elif row.features == 'backbone':
            network += ['features=backbone', f'optimizer_kwargs.lr={BACKBONE_LR}']
        config = f'{CONFIGS}/{row.start}/{"linear_finetune" if task == "linear" else task}.yml'
        folder = f'{Path(pretrained.folder).parent}/{task}_{row.features}_{row.masks}'
        for classes, chosen in self.classes.items():
            step = self.step(task, config, folder + ('_21' if chosen else ''),
                             [*network, *overrides_of(task, overrides), *chosen], (pretrained,),
                             self.crf if task == 'linear' and crf else ())
            self.steps.append(step)
            steps = self.rows.setdefault(row._replace(classes=classes), {}).setdefault(task, [])
            if step not in steps:
                steps.append(step)

    def baselines(self, start: str, seed: int) -> None:
        """The initial weights, scored on given masks: features of the backbone, and the untrained embedding."""
        initial = self.pretrain(start, seed, 'supervised', 'initial', ['epochs=0'])
        for features in ('backbone', 'embedding'):
            for task in ('kmeans', 'retrieval', 'linear'):
                self.protocol(Row(start, INITIAL, features, 'given', ''), initial, task, seed)

    def trained(self, start: str, seed: int, masks: str, name: str = '', overrides: Sequence[str] = (),
                predicted: bool = True) -> None:
        """Pretraining with masks of a kind and the protocols on given masks.

        Args:
            name: of its folder and row; default: by its masks. Those without one are scored with the CRF too.
            overrides: '[task.]key=value', of the pretraining and of the protocols that have the key.
            predicted: also score with masks that the network predicts, and the trained backbone's features.
        """
        pretrained = self.pretrain(start, seed, masks, name or masks, overrides)
        row = Row(start, name or f'{masks} masks', 'embedding', 'given', '')
        for task in ('kmeans', 'retrieval', 'linear'):
            self.protocol(row, pretrained, task, seed, overrides, crf=not name)
        for task in ('kmeans', 'retrieval') if predicted else ():
            self.protocol(row._replace(masks='predicted'), pretrained, task, seed, overrides)
            self.protocol(row._replace(features='backbone'), pretrained, task, seed, overrides)

    def entries(self, row: Row, metric: str) -> list[dict[str, Any]]:
        """The result of each seed (of K-means the mean of its runs) in percent; none that are not there yet."""
        task, entry = METRICS[metric]
        found = [self.result(step, entry) for step in self.rows[row].get(task, [])]
        return [one for one in found if one is not None]

    def values(self, row: Row, metric: str) -> list[float]:
        """The mIoU of each seed, in percent."""
        return [one['mIoU'] for one in self.entries(row, metric)]

    def stronger(self, start: str, metric: str, classes: str = 'animals') -> tuple[float, float | None] | None:
        """Mean and deviation of the stronger of the two baselines of a start; None if neither is there yet."""
        found = [self.values(row, metric) for row in self.rows
                 if (row.start, row.model, row.classes) == (start, INITIAL, classes)]
        return max((mean_and_deviation(values) for values in found if values), key=lambda one: one[0], default=None)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (None of one value)."""
    return float(np.mean(values)), standard_deviation(values)


def shown(values: Sequence[float]) -> str:
    """'50.3 ± 1.4 (n = 3)', '50.3' of a single value, or '-' of none."""
    return with_spread(*mean_and_deviation(values), len(values), 1) if values else '-'


def pivot(cells: Mapping[tuple[Row, str], str], columns: Sequence[str]) -> str:
    """A table of {(row, column): text}; '-' where there is none."""
    return markdown([*Row._fields, *columns], [[*row, *(cells.get((row, name), '-') for name in columns)]
                                               for row in dict.fromkeys(row for row, _ in cells)])


def table(experiment: Experiment) -> str:
    """mIoU of each row, mean and deviation over seeds."""
    found = {(row, metric): experiment.values(row, metric) for row in experiment.rows for metric in METRICS}
    return pivot({place: shown(values) for place, values in found.items() if values}, list(METRICS))


def gains(experiment: Experiment) -> str:
    """What each trained row gains over the stronger of the two baselines, and that in deviations of the difference.

    A row of one seed has no deviation, and none is given.
    """
    cells = {}
    for row in experiment.rows:
        for metric in METRICS if row.model != INITIAL else ():
            values, before = experiment.values(row, metric), experiment.stronger(row.start, metric, row.classes)
            if values and before is not None:
                (after, spread), (best, deviation) = mean_and_deviation(values), before
                joint = 0 if spread is None else math.hypot(spread, deviation or 0)
                ratio = f' ({(after - best) / joint:+.1f} σ)' if joint else ''
                cells[row, metric] = f'{after - best:+.1f}{ratio}'
    return pivot(cells, list(METRICS))


def class_tables(experiment: Experiment) -> str:
    """A table of the IoU of each class for each metric."""
    parts = []
    for metric in METRICS:
        for classes in experiment.classes:
            found = {row: experiment.entries(row, metric) for row in experiment.rows if row.classes == classes}
            cells = {(row, name): shown([one['IoU'][name] for one in entries]) for row, entries in found.items()
                     for name in (entries[0]['IoU'] if entries else ())}
            if cells:
                parts.append(f'{metric}, {classes}: IoU in percent\n\n'
                             f'{pivot(cells, list(dict.fromkeys(name for _, name in cells)))}')
    return '\n'.join(parts)


def csv_table(experiment: Experiment) -> str:
    """All of it: a line a row, metric and class (or mIoU), in full precision."""
    lines = []
    for row in experiment.rows:
        for metric in METRICS:
            entries = experiment.entries(row, metric)
            for label in ['mIoU', *entries[0]['IoU']] if entries else []:
                values = [one['mIoU'] if label == 'mIoU' else one['IoU'][label] for one in entries]
                lines.append([*row, metric, label, *mean_and_deviation(values), len(values)])
    return csv_text([*Row._fields, 'metric', 'class', 'mean', 'std', 'count'], lines)


def crf_flags() -> list[str]:
    """The CRF, if its library is there."""
    try:
        require_crf()
    except UserError as error:
        print(f'Without the CRF: {error}')
        return []
    return ['--crf-postprocess']


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --db-root, --output, --weights, --seeds, --set and --list to a script's arguments."""
    parser.add_argument('--db-root', type=Path, required=True, help='folder that holds VOCSegmentation/')
    parser.add_argument('--output', type=Path, required=True, help='folder of all runs, tables and plots')
    parser.add_argument('--weights', type=Path, help='ImageNet weights under the names of timm; default: timm fetches '
                                                     'them')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3],
                        help='one training of each kind for each; two processes can share them out in one --output: '
                             'the tables of all are those of a last call with all seeds')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone: '
                             f'{", ".join(SCRIPTS)}, e.g. pretrain.epochs=4 val_size=112')
    parser.add_argument('--list', action='store_true', help='print the commands that are left and run '
                        'none; the tables are of what is there')


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_experiment_arguments(parser)
    parser.add_argument('--start', nargs='+', choices=STARTS, default=['imagenet', 'random'],
                        help='initial weights and schedule, folders of configs/voc_animals (default: %(default)s)')
    parser.add_argument('--masks', nargs='+', choices=('supervised', 'unsupervised'),
                        default=['supervised', 'unsupervised'], help='masks of the pretraining (default: both kinds)')
    parser.add_argument('--all-classes', action='store_true', help='score the 21 classes too')
    args = parser.parse_args(argv)
    experiment = Experiment(args, args.all_classes)
    for seed in args.seeds:  # tables after each seed
        for start in args.start:
            experiment.baselines(start, seed)
            for masks in args.masks:
                experiment.trained(start, seed, masks)
        if args.list and seed != args.seeds[-1]:
            continue
        experiment.run(experiment.steps, list_only=args.list)
        texts = {'table.md': table(experiment), 'gains.md': gains(experiment),
                 'classes.md': class_tables(experiment), 'figures.csv': csv_table(experiment)}
        for name, text in texts.items():
            write_text(experiment.root / name, text)
        print(f'\nmIoU in percent\n\n{texts["table.md"]}\nGain over the stronger baseline of the same start, in points '
              f'and in deviations of the difference\n\n{texts["gains.md"]}\nWritten to {experiment.root}')


if __name__ == '__main__':
    run_script(main)
