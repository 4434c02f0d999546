"""What each part of the method is worth on the animals of VOC, as the paper's ablations ask.

    python experiments/ablations.py --db-root datasets --output results/voc_animals --seeds 1 2 3 \\
        --groups "temperature T" "bank size K"

Each variant differs in one thing from pretraining with supervised masks as the configs of --start have it (a folder of
configs/voc_animals, by default that of ImageNet weights); K-means, retrieval and the linear classifier score it, on
given masks, and the initial weights beside it. Runs that are finished are not run again, those of
experiments/voc_animals.py in the same --output among them. Writes ablations.md, ablations.csv and ablations.png.
"""
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.runner import overrides_of
from experiments.voc_animals import (
    CONFIGS,
    INITIAL,
    METRICS,
    STARTS,
    Experiment,
    Row,
    add_experiment_arguments,
    mean_and_deviation,
    shown,
)
from utils.config.cli import ArgumentParser
from utils.config.load import load_config
from utils.config.schema import Pretrain
from utils.report.plots import line_panels, to_image
from utils.report.tables import csv_text, markdown
from utils.run.errors import UserError
from utils.run.files import save_image, write_text
from utils.run.script import run_script

WHOLE = ('augmentation_kwargs.scale=[1.0, 1.0]', 'augmentation_kwargs.jitter_probability=0.0',
         'augmentation_kwargs.grey_probability=0.0', 'augmentation_kwargs.flip_probability=0.0')  # both views the image
NO_BANK, NO_MOMENTUM = 'moco_kwargs.K=0', 'moco_kwargs.m=0.0'
FROM_IMAGENET = 'initial weights, nothing frozen'
SHOWN = [metric for metric in METRICS if 'CRF' not in metric]


class Variant(NamedTuple):
    """A pretraining with overrides '[task.]key=value'; without any it is the one that all others are compared with.

    name: of its folder and row; those without one share the runs of experiments/voc_animals.py.
    """
    name: str = ''
    overrides: tuple[str, ...] = ()
    masks: str = 'supervised'


def sweep(name: str, key: str, values: Sequence[float]) -> dict[str, Variant]:
    """A variant for each value of a key."""
    return {str(value): Variant(f'{name}_{value}', (f'{key}={value}',)) for value in values}


FULL, UNFROZEN = Variant(), Variant('frozen_none', ('freeze_layers=false',))
GROUPS: dict[str, dict[str, Variant]] = {
    'temperature T': sweep('T', 'moco_kwargs.T', (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)),
    'bank size K': sweep('K', 'moco_kwargs.K', (64, 128, 256, 512, 1024)),
    'parts left out': {
        'none': FULL, 'momentum\nencoder': Variant('no_momentum', (NO_MOMENTUM,)),
        'bank': Variant('K_0', (NO_BANK,)), 'augmented\nviews': Variant('no_views', WHOLE),
        'all three': Variant('no_parts', (NO_MOMENTUM, NO_BANK, *WHOLE))},
    'masks': {'supervised': FULL, 'unsupervised': Variant(masks='unsupervised')},
    FROM_IMAGENET: {
        'ImageNet': UNFROZEN, 'random': Variant('random', ('freeze_layers=false', 'pretrain.pretraining=none'))},
    'frozen stages': {'nothing': UNFROZEN, **{'stem' if n == '0' else f'stem, {n}': variant for n, variant in
                                              sweep('frozen', 'freeze_layers', (0, 2, 4, 6, 7)).items()}},
    'dimension of the embedding': sweep('ndim', 'model_kwargs.ndim', (4, 8, 16, 32)),
    'learning rate': sweep('lr', 'pretrain.optimizer_kwargs.lr', (0.004, 0.02, 0.05, 0.1)),
    'epochs': sweep('epochs', 'pretrain.epochs', (2, 5, 10, 20, 40)),
}


def groups_of(start: str, chosen: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Variant]]:
    """The chosen groups; a variant that changes nothing in the config of a start, with the overrides given, is FULL.

    Raises:
        UserError: they compare random with ImageNet weights, and the start has none.
    """
    if not start.startswith('imagenet') and FROM_IMAGENET in chosen:
        raise UserError(f'--start {start} has no ImageNet weights for the group "{FROM_IMAGENET}"; choose another '
                        'start, or --groups without it.')

    def config(variant: Variant) -> str:
        path = str(CONFIGS / start / f'pretrain_{variant.masks}.yml')
        overrides = ['root_dir=.', 'db_root=.', *overrides_of('pretrain', [*given, *variant.overrides])]
        return json.dumps(load_config('configs/env.yml', path, Pretrain, overrides), sort_keys=True)  # 0 is not false
    return {group: {label: FULL if config(variant) == config(FULL) else variant
                    for label, variant in GROUPS[group].items()} for group in chosen}


def write(experiment: Experiment, start: str, groups: dict[str, dict[str, Variant]]) -> None:
    """The table in Markdown and as CSV, and the plot, of what is finished, on given masks."""
    def values(model: str, features: str) -> dict[str, list[float]]:
        found = {metric: experiment.values(Row(start, model, features, 'given', 'animals'), metric) for metric in SHOWN}
        return {metric: some for metric, some in found.items() if some}

    found = {}
    for group, variants in groups.items():
        of_group = {label: values(variant.name or f'{variant.masks} masks', 'embedding')
                    for label, variant in variants.items()}
        if sum(map(bool, of_group.values())) > 1:  # else there is nothing to compare
            found[group] = {label: some for label, some in of_group.items() if some}
    before = {INITIAL: {features: values(INITIAL, features) for features in ('backbone', 'embedding')}}
    rows = [(group, label.replace('\n', ' '), some) for group, of_group in {**before, **found}.items()
            for label, some in of_group.items()]
    text = markdown(['ablation', 'variant', *SHOWN], [
        [group, label, *(shown(some.get(metric, [])) for metric in SHOWN)] for group, label, some in rows])
    write_text(experiment.root / 'ablations.md', text)
    write_text(experiment.root / 'ablations.csv', csv_text(['ablation', 'variant', 'metric', 'mean', 'std', 'count'], [
        [group, label, metric, *mean_and_deviation(of_seeds), len(of_seeds)]
        for group, label, some in rows for metric, of_seeds in some.items()]))
    if found:
        panels = {group: {metric: [(place, *mean_and_deviation(some[metric]))
                                   for place, some in enumerate(of_group.values()) if metric in some]
                          for metric in SHOWN} for group, of_group in found.items()}
        best = {metric: experiment.stronger(start, metric) for metric in SHOWN}
        save_image(to_image(partial(line_panels, panels, '', 'mIoU, %', {group: list(of_group) for group, of_group
                                                                         in found.items()},
                                    {metric: one[0] for metric, one in best.items() if one is not None})),
                   experiment.root / 'ablations.png')
    print(f'\nmIoU in percent\n\n{text}\nWritten to {experiment.root}')


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_experiment_arguments(parser)
    parser.add_argument('--start', choices=STARTS, default='imagenet',
                        help='what all variants differ from, a folder of configs/voc_animals (default: %(default)s)')
    parser.add_argument('--groups', nargs='+', choices=tuple(GROUPS), default=list(GROUPS),
                        help='which ablations (default: all)')
    args = parser.parse_args(argv)
    experiment = Experiment(args)
    groups = groups_of(args.start, args.groups, args.overrides)
    for seed in args.seeds:  # a table after each seed
        experiment.baselines(args.start, seed)
        for variant in dict.fromkeys(variant for variants in groups.values() for variant in variants.values()):
            experiment.trained(args.start, seed, variant.masks, variant.name, variant.overrides, predicted=False)
        if not args.list or seed == args.seeds[-1]:
            experiment.run(experiment.steps, list_only=args.list)
            write(experiment, args.start, groups)


if __name__ == '__main__':
    run_script(main)
