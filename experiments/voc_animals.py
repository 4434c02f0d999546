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
from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.runner import (
    Experiment,
    Run,
    add_experiment_arguments,
    markdown,
    mean_and_deviation,
    overrides_of,
    shown,
)
from models.crf import require_crf
from utils.config.cli import ArgumentParser
from utils.config.paths import REPOSITORY
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

CONFIGS = Path('configs/voc_animals')
STARTS = tuple(sorted(path.parent.name for path in (REPOSITORY / CONFIGS).glob('*/pretrain_supervised.yml')))
GIVEN = 'supervised_model'
FIGURES = {'K-means, 20 clusters': ('kmeans', 'kmeans'), 'K-means, 5 clusters': ('kmeans', 'kmeans 5'),
           'Retrieval': ('retrieval', 'retrieval'), 'LC': ('linear', 'linear'), 'LC + CRF': ('linear', 'linear_crf')}
INITIAL = 'initial weights'
BACKBONE_LR = 0.01  # of a linear classifier on the backbone, as in configs/linear_finetune/*_imagenet.yml


@dataclass
class Row:
    """A line of the table: the same model of each seed, scored in one way.

    name: start, model, what is read, masks, classes.
    runs: a run a seed of each protocol that the row has.
    """
    name: tuple[str, str, str, str, str]
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def add(self, run: Run) -> None:
        runs = self.runs.setdefault(run.task, [])
        if run not in runs:
            runs.append(run)

    def entries(self, experiment: Experiment, figure: str) -> list[dict]:
        """The figure of each seed (of K-means the mean of its runs) in percent; none that are not there yet."""
        task, entry = FIGURES[figure]
        found = [experiment.figure(run, entry) for run in self.runs.get(task, [])]
        return [one for one in found if one is not None]

    def values(self, experiment: Experiment, figure: str) -> list[float]:
        """The mIoU of each seed, in percent."""
        return [one['mIoU'] for one in self.entries(experiment, figure)]


class Plan:
    """All runs, in their order, and the rows that they fill.

    Args:
        weights: file of the ImageNet weights, or None for those of timm.
        flags: of the linear classifier: ['--crf-postprocess'] or [].
        all_classes: score the 21 classes too, in rows of their own.
    """

    def __init__(self, weights: Path | None, flags: Sequence[str], all_classes: bool) -> None:
        self.weights = 'imagenet_classification' if weights is None else str(weights.resolve())
        self.flags = tuple(flags)
        self.classes = {'animals': ()} | ({'all 21': ('eval_classes=[]',)} if all_classes else {})
        self.runs: list[Run] = []
        self.rows: dict[tuple, Row] = {}

    def pretrain(self, start: str, seed: int, masks: str, name: str, overrides: Sequence[str] = ()) -> Run:
        """Pretraining, in <start>/seed_<seed>/<name>; its checkpoint is the returned run's."""
        weights = [f'pretraining={self.weights}'] if start.startswith('imagenet') else []
        run = Run('pretrain', f'{CONFIGS}/{start}/pretrain_{masks}.yml', f'{start}/seed_{seed}/{name}/pretrain',
                  (f'seed={seed}', *weights, *overrides_of('pretrain', overrides)))
        self.runs.append(run)
        return run

    def protocol(self, name: tuple[str, str, str], pretrained: Run, task: str, seed: int, features: str,
                 masks: str, overrides: Sequence[str] = (), crf: bool = True) -> None:
        """A protocol on a pretrained model, for animals and if asked for for all classes.

        Args:
            name: start, model and what is read, for the table.
            features: 'embedding' or 'backbone'.
            masks: 'given' or 'predicted'.
            overrides: of the pretraining, of which the protocol takes those that its script has.
            crf: score the linear classifier with the CRF too.
        """
        network = [f'pretraining={pretrained.folder}/checkpoint.pth.tar', f'seed={100 * seed}']
        if task == 'linear':
            config = 'linear_finetune'
            network += ['features=backbone', f'optimizer_kwargs.lr={BACKBONE_LR}'] if features == 'backbone' else []
        else:
            config = task
            network += [f'features={features}', f'saliency={GIVEN if masks == "given" else "network"}']
        network += overrides_of(task, overrides)
        for classes, chosen in self.classes.items():
            folder = f'{Path(pretrained.folder).parent}/{task}_{features}_{masks}' + ('_21' if chosen else '')
            run = Run(task, f'{CONFIGS}/{name[0]}/{config}.yml', folder, (*network, *chosen),
                      self.flags if task == 'linear' and crf else (), pretrained)
            self.runs.append(run)
            key = (*name, masks, classes)
            self.rows.setdefault(key, Row(key)).add(run)

    def baselines(self, start: str, seed: int) -> None:
        """The initial weights, scored on given masks: features of the backbone, and the untrained embedding."""
        initial = self.pretrain(start, seed, 'supervised', 'initial', ['epochs=0'])
        for features in ('backbone', 'embedding'):
            for task in ('kmeans', 'retrieval', 'linear'):
                self.protocol((start, INITIAL, features), initial, task, seed, features, 'given')

    def trained(self, start: str, seed: int, masks: str, model: str = '', name: str = '',
                overrides: Sequence[str] = (), predicted: bool = True, crf: bool = True) -> None:
        """Pretraining with masks of a kind and all protocols on it.

        Args:
            model, name: as the table and as the folder calls it; default: by its masks.
            overrides: '[task.]key=value', of the pretraining and of the protocols that have the key.
            predicted: also score with masks that the network predicts, and the trained backbone's features.
            crf: as of ``protocol``.
        """
        pretrained = self.pretrain(start, seed, masks, name or masks, overrides)
        model = model or f'{masks} masks'
        for task in ('kmeans', 'retrieval', 'linear'):
            self.protocol((start, model, 'embedding'), pretrained, task, seed, 'embedding', 'given', overrides, crf)
        for task in ('kmeans', 'retrieval') if predicted else ():
            self.protocol((start, model, 'embedding'), pretrained, task, seed, 'embedding', 'predicted', overrides)
            self.protocol((start, model, 'backbone'), pretrained, task, seed, 'backbone', 'given', overrides)


def with_figures(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The rows of a table that have a figure, below their head."""
    return [['start', 'model', 'features', 'masks', 'classes', *FIGURES],
            *(row for row in rows if set(row[-len(FIGURES):]) != {'-'})]


def table(plan: Plan, experiment: Experiment) -> str:
    """mIoU of each row, mean and standard deviation over seeds."""
    return markdown(with_figures([[*row.name, *(shown(row.values(experiment, figure)) for figure in FIGURES)]
                                  for row in plan.rows.values()]))


def stronger(plan: Plan, experiment: Experiment, start: str, figure: str,
             classes: str = 'animals') -> tuple[float, float | None] | None:
    """Mean and deviation of the stronger of the two baselines of a start; None if neither is there yet."""
    found = [row.values(experiment, figure) for row in plan.rows.values()
             if (row.name[0], row.name[1], row.name[4]) == (start, INITIAL, classes)]
    return max((mean_and_deviation(values) for values in found if values), key=lambda one: one[0], default=None)


def gains(plan: Plan, experiment: Experiment) -> str:
    """What each trained row gains over the stronger of the two baselines, and that in deviations of the difference.

    A row of one seed has no deviation, and none is given.
    """
    lines = []
    for row in plan.rows.values():
        if row.name[1] == INITIAL:
            continue
        cells = []
        for figure in FIGURES:
            values = row.values(experiment, figure)
            before = stronger(plan, experiment, row.name[0], figure, row.name[4])
            if not values or before is None:
                cells.append('-')
                continue
            (after, spread), (best, deviation) = mean_and_deviation(values), before
            joint = 0 if spread is None else math.hypot(spread, deviation or 0)
            cells.append(f'{after - best:+.1f}' + (f' ({(after - best) / joint:+.1f} σ)' if joint else ''))
        lines.append([*row.name, *cells])
    return markdown(with_figures(lines))


def class_tables(plan: Plan, experiment: Experiment) -> str:
    """A table of the IoU of each class for each figure."""
    parts = []
    for figure in FIGURES:
        for classes in plan.classes:
            found = {row.name: row.entries(experiment, figure) for row in plan.rows.values() if row.name[4] == classes}
            found = {name: entries for name, entries in found.items() if entries}
            if found:
                names = list(next(iter(found.values()))[0]['IoU'])
                lines = [['start', 'model', 'features', 'masks', *names]]
                lines += [[*name[:4], *(shown([one['IoU'][label] for one in entries]) for label in names)]
                          for name, entries in found.items()]
                parts.append(f'{figure}, {classes}: IoU in percent\n\n{markdown(lines)}')
    return '\n'.join(parts)


def csv_table(plan: Plan, experiment: Experiment) -> str:
    """All of it as CSV: a line a row, figure and class (or mIoU), in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['start', 'model', 'features', 'masks', 'classes', 'figure', 'class', 'mean', 'std', 'count'])
    for row in plan.rows.values():
        for figure in FIGURES:
            entries = row.entries(experiment, figure)
            for label in ['mIoU', *entries[0]['IoU']] if entries else []:
                values = [one['mIoU'] if label == 'mIoU' else one['IoU'][label] for one in entries]
                writer.writerow([*row.name, figure, label, *mean_and_deviation(values), len(values)])
    return text.getvalue()


def crf_flags() -> list[str]:
    """The CRF, if its library is there."""
    try:
        require_crf()
    except UserError as error:
        print(f'Without the CRF: {error}')
        return []
    return ['--crf-postprocess']


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_experiment_arguments(parser)
    parser.add_argument('--start', nargs='+', choices=STARTS, default=['imagenet', 'random'],
                        help='initial weights and schedule, folders of configs/voc_animals (default: %(default)s)')
    parser.add_argument('--masks', nargs='+', choices=('supervised', 'unsupervised'),
                        default=['supervised', 'unsupervised'], help='masks of the pretraining (default: both kinds)')
    parser.add_argument('--all-classes', action='store_true', help='score the 21 classes too')
    return parser.parse_args(argv)


def write_tables(plan: Plan, experiment: Experiment) -> None:
    texts = {'table.md': table(plan, experiment), 'gains.md': gains(plan, experiment),
             'classes.md': class_tables(plan, experiment), 'figures.csv': csv_table(plan, experiment)}
    for name, text in texts.items():
        write_text(experiment.root / name, text)
    print(f'\nmIoU in percent\n\n{texts["table.md"]}\nGain over the stronger baseline of the same start, in points and '
          f'in deviations of the difference\n\n{texts["gains.md"]}\nWritten to {experiment.root}')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    plan, experiment = Plan(args.weights, crf_flags(), args.all_classes), Experiment(args)
    for seed in args.seeds:  # a table after each seed
        for start in args.start:
            plan.baselines(start, seed)
            for masks in args.masks:
                plan.trained(start, seed, masks)
        if not args.list or seed == args.seeds[-1]:
            experiment.run(plan.runs)
            write_tables(plan, experiment)


if __name__ == '__main__':
    run_script(main)
