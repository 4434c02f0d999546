"""What pretraining gains on the animals of VOC, before and after, with and without labels.

    python experiments/voc_animals.py --db-root datasets --output results/voc_animals --seeds 1 2 3 \\
        --start imagenet random --masks supervised unsupervised --set pretrain.epochs=4

For each start (a folder of configs/voc_animals: ImageNet or random weights, the full schedule at 224 px or one for two
CPU cores) and seed: K-means, retrieval and the linear classifier on the initial weights, on features of the backbone
and on the untrained embedding; pretraining with masks of either kind; then the same protocols, and the CRF. Masks are
from the data set ("given": saliency_supervised_model, the same for every row) or those that the network predicts. Runs
that are finished are not run again. Writes table.md, gains.md, classes.md and figures.csv.
"""
import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from experiments.runner import SCRIPTS, Chain, Step, crf_flags, overrides_of
from segmentation.metrics import standard_deviation
from utils.config.cli import ArgumentParser, Distinct, at_least
from utils.config.paths import REPOSITORY, find_file
from utils.report.results import csv_text, markdown, pivot, with_spread
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

CONFIGS = Path('configs/voc_animals')
STARTS = tuple(sorted(path.parent.name for path in (REPOSITORY / CONFIGS).glob('*/pretrain_supervised.yml')))
METRICS = {'K-means, 20 clusters': 'kmeans', 'K-means, 5 clusters': 'kmeans 5', 'Retrieval': 'retrieval',
           'LC': 'linear', 'LC + CRF': 'linear_crf'}  # and their entries in the results
PROTOTYPES, ALL = ('kmeans', 'retrieval'), ('kmeans', 'retrieval', 'linear')  # protocols
BACKBONE_LR = 0.01  # of a linear classifier on the backbone, as in configs/linear_finetune/*_imagenet.yml
OWN_KEYS = ('seed', 'output_dir', 'root_dir', 'db_root', 'features', 'saliency')  # what tells the runs apart


class Model(NamedTuple):
    """A pretraining, and what of it is scored: {(features, masks): tasks}."""
    name: str  # of its rows
    folder: str
    masks: str = 'supervised'  # of the pretraining
    overrides: tuple[str, ...] = ()  # '[task.]key=value', of it and of the protocols that have the key
    protocols: Mapping[tuple[str, str], Sequence[str]] = {
        ('embedding', 'given'): ALL, ('embedding', 'predicted'): PROTOTYPES, ('backbone', 'given'): PROTOTYPES}
    crf: bool = True  # after the linear classifier


INITIAL = Model('initial weights', 'initial', overrides=('pretrain.epochs=0',), protocols={
    ('backbone', 'given'): ALL, ('embedding', 'given'): ALL})


class Row(NamedTuple):
    """A line of the tables: the same model of each seed, scored in one way."""
    start: str
    model: str
    features: str
    masks: str
    classes: str = 'animals'


class Score(NamedTuple):
    """In percent, with the sample standard deviation (None of one value) over seeds."""
    mean: float
    std: float | None
    seeds: int


Scores = Mapping[tuple[Row, str], Mapping[str, Score]]  # {(row, metric): {class or 'mIoU': score}}


class Experiment(Chain):
    """All steps, and those of each row. ``all_classes`` scores the 21 classes too, in rows of their own."""

    def __init__(self, args: argparse.Namespace, all_classes: bool = False) -> None:
        super().__init__(args.output, args.db_root, args.overrides)
        for text in self.given:
            if (key := text.partition('=')[0].rpartition('.')[2]) in OWN_KEYS:
                raise UserError(f'--set {text}: the experiment sets {key} itself; see --db-root, --output, --seeds and '
                                'the rows of its table.')
        self.weights = 'imagenet_classification' if args.weights is None else str(args.weights)
        self.crf = crf_flags()
        self.classes = {'animals': ()} | ({'all 21': ('eval_classes=[]',)} if all_classes else {})
        self.steps: list[Step] = []
        self.rows: dict[Row, list[Step]] = {}

    def add(self, start: str, seed: int, model: Model) -> list[Row]:
        """Pretraining and protocols of a model, in <start>/seed_<seed>/<folder>; gives its rows for the animals."""
        folder = f'{start}/seed_{seed}/{model.folder}'
        weights = [f'pretraining={self.weights}'] if start.startswith('imagenet') else []
        pretrained = self.step('pretrain', f'{CONFIGS}/{start}/pretrain_{model.masks}.yml', f'{folder}/pretrain',
                               [f'seed={seed}', *weights, *overrides_of('pretrain', model.overrides)])
        self.steps.append(pretrained)
        for (features, masks), tasks in model.protocols.items():
            for task, (classes, chosen) in product(tasks, self.classes.items()):
                network = [f'pretraining={folder}/pretrain/checkpoint.pth.tar', f'seed={100 * seed}']
                if task != 'linear':
                    saliency = 'supervised_model' if masks == 'given' else 'network'
                    network += [f'features={features}', f'saliency={saliency}']
                elif features == 'backbone':
                    network += ['features=backbone', f'optimizer_kwargs.lr={BACKBONE_LR}']
                step = self.step(task, f'{CONFIGS}/{start}/{"linear_finetune" if task == "linear" else task}.yml',
                                 f'{folder}/{task}_{features}_{masks}' + ('_21' if chosen else ''),
                                 [*network, *overrides_of(task, model.overrides), *chosen], (pretrained,),
                                 self.crf if task == 'linear' and model.crf else ())
                self.steps.append(step)
                self.rows.setdefault(Row(start, model.name, features, masks, classes), []).append(step)
        return [Row(start, model.name, *read) for read in model.protocols]

    def scores(self) -> Scores:
        """Of what is finished; a seed's result of K-means is the mean of its runs."""
        found: dict[tuple[Row, str], dict[str, list[float]]] = {}
        for row, steps in self.rows.items():
            results = [self.results(step) for step in dict.fromkeys(steps)]
            for metric, task in METRICS.items():
                for entry in (entries[task] for entries in results if task in entries):
                    for label, value in {'mIoU': entry['mIoU'], **entry['IoU']}.items():
                        found.setdefault((row, metric), {}).setdefault(label, []).append(value)
        return {place: {label: Score(float(np.mean(values)), standard_deviation(values), len(values))
                        for label, values in of_labels.items()} for place, of_labels in found.items()}


def stronger(scores: Scores, row: Row, metric: str) -> Score | None:
    """mIoU of the stronger of the two baselines of a row; None if neither is there yet."""
    before = [(Row(row.start, INITIAL.name, *read, row.classes), metric) for read in INITIAL.protocols]
    found = [scores[place]['mIoU'] for place in before if place in scores]
    return max(found, key=lambda score: score.mean, default=None)


def table(cells: Mapping[Any, Score | str], columns: Sequence[str] = tuple(METRICS),
          head: Sequence[str] = Row._fields) -> str:
    """{(row, column): score or text} in Markdown."""
    texts = {place: cell if isinstance(cell, str) else with_spread(*cell, 1) for place, cell in cells.items()}
    return markdown([*head, *columns], pivot(texts, columns))


def gains(scores: Scores) -> dict[tuple[Row, str], str]:
    """{(trained row, metric): gain over the stronger baseline, and that in standard deviations, if there are any}."""
    cells = {}
    for row, metric in scores:
        before, after = stronger(scores, row, metric), scores[row, metric]['mIoU']
        if row.model != INITIAL.name and before is not None:
            gain, joint = after.mean - before.mean, 0 if after.std is None else math.hypot(after.std, before.std or 0)
            cells[row, metric] = f'{gain:+.1f}' + (f' ({gain / joint:+.1f} σ)' if joint else '')
    return cells


def class_tables(scores: Scores) -> str:
    parts = []
    for metric, classes in product(METRICS, dict.fromkeys(row.classes for row, _ in scores)):
        cells = {(row, label): of_labels[label] for (row, of_metric), of_labels in scores.items()
                 if (of_metric, row.classes) == (metric, classes) for label in of_labels if label != 'mIoU'}
        if cells:
            labels = list(dict.fromkeys(label for _, label in cells))
            parts.append(f'{metric}, {classes}: IoU in percent\n\n{table(cells, labels)}')
    return '\n'.join(parts)


def write(root: Path, scores: Scores) -> None:
    """Write the tables, and print that of the mIoU and its gain."""
    texts = {'table.md': table({place: of_labels['mIoU'] for place, of_labels in scores.items()}),
             'gains.md': table(gains(scores)), 'classes.md': class_tables(scores), 'figures.csv': csv_text(
                 [*Row._fields, 'metric', 'class', 'mean', 'std', 'count'],
                 [[*row, metric, label, *score] for (row, metric), of_labels in scores.items()
                  for label, score in of_labels.items()])}
    for name, text in texts.items():
        write_text(root / name, text)
    print(f'\nmIoU in percent\n\n{texts["table.md"]}\nGain over the stronger baseline of the same start, in points '
          f'and in standard deviations of the difference\n\n{texts["gains.md"]}\nWritten to {root}')


def experiment_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """With --db-root, --output, --weights, --seeds, --set and --list; the first two are required without a default."""
    parser, given = ArgumentParser(description), 'output' in defaults
    parser.add_argument('--db-root', type=Path, required=not given, help='folder that holds VOCSegmentation/')
    parser.add_argument('--output', type=Path, required=not given, help='folder of all runs, tables and plots')
    parser.add_argument('--weights', type=find_file,
                        help='ImageNet weights with the names of timm, which else fetches them')
    parser.add_argument('--seeds', type=at_least(0), nargs='+', action=Distinct, default=[1, 2, 3],
                        help='processes can share them out in one --output: the tables of all are those of a last call '
                             'with all seeds')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone: '
                             f'{", ".join(SCRIPTS)}, e.g. pretrain.epochs=4 val_size=112')
    parser.add_argument('--list', action='store_true', help='run none of the commands that are left, but print them; '
                                                            'the tables are of what is there')
    parser.set_defaults(**defaults)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument('--start', nargs='+', choices=STARTS, default=['imagenet', 'random'],
                        help='initial weights and schedule, folders of configs/voc_animals (default: %(default)s)')
    parser.add_argument('--masks', nargs='+', choices=('supervised', 'unsupervised'),
                        default=['supervised', 'unsupervised'], help='masks of the pretraining (default: both kinds)')
    parser.add_argument('--all-classes', action='store_true', help='score the 21 classes too')
    args = parser.parse_args(argv)
    experiment = Experiment(args, args.all_classes)
    models = [INITIAL, *(Model(f'{masks} masks', masks, masks) for masks in args.masks)]
    for seed in args.seeds:  # tables after each seed
        for start, model in product(args.start, models):
            experiment.add(start, seed, model)
        if not args.list or seed == args.seeds[-1]:
            experiment.run(experiment.steps, list_only=args.list)
            write(experiment.root, experiment.scores())


if __name__ == '__main__':
    run_script(main)
