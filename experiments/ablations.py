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
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments import voc_animals
from experiments.runner import overrides_of
from experiments.voc_animals import ALL, INITIAL, METRICS, Model, Row, Scores
from utils.config.load import load_config
from utils.config.schema import Pretrain
from utils.report.pictures import line_panels, to_image
from utils.report.results import csv_text
from utils.run.errors import UserError
from utils.run.files import save_image, write_text
from utils.run.script import run_script

WHOLE = ('augmentation_kwargs.scale=[1.0, 1.0]', 'augmentation_kwargs.jitter_probability=0.0',
         'augmentation_kwargs.grey_probability=0.0', 'augmentation_kwargs.flip_probability=0.0')  # both views the image
NO_BANK, NO_MOMENTUM = 'moco_kwargs.K=0', 'moco_kwargs.m=0.0'
FROM_IMAGENET = 'initial weights, nothing frozen'
EMBEDDING = {('embedding', 'given'): ALL}  # what is scored of a variant
SHOWN = [metric for metric in METRICS if 'CRF' not in metric]


def variant(name: str, *overrides: str) -> Model:
    """A pretraining with overrides '[task.]key=value'."""
    return Model(name, name, 'supervised', overrides, EMBEDDING, crf=False)


def sweep(name: str, key: str, values: Sequence[float]) -> dict[str, Model]:
    return {str(value): variant(f'{name}_{value}', f'{key}={value}') for value in values}


# the whole method, from the runs of experiments/voc_animals.py
FULL, UNSUPERVISED = (Model(f'{masks} masks', masks, masks, protocols=EMBEDDING) for masks in (
    'supervised', 'unsupervised'))
UNFROZEN = variant('frozen_none', 'freeze_layers=false')
GROUPS: dict[str, dict[str, Model]] = {
    'temperature T': sweep('T', 'moco_kwargs.T', (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)),
    'bank size K': sweep('K', 'moco_kwargs.K', (64, 128, 256, 512, 1024)),
    'parts left out': {
        'none': FULL, 'momentum encoder': variant('no_momentum', NO_MOMENTUM), 'bank': variant('K_0', NO_BANK),
        'augmented views': variant('no_views', *WHOLE), 'all three': variant('no_parts', NO_MOMENTUM, NO_BANK, *WHOLE)},
    'masks': {'supervised': FULL, 'unsupervised': UNSUPERVISED},
    FROM_IMAGENET: {
        'ImageNet': UNFROZEN, 'random': variant('random', 'freeze_layers=false', 'pretrain.pretraining=none')},
    'frozen stages': {'nothing': UNFROZEN, **{'stem' if n == '0' else f'stem, {n}': model for n, model in
                                              sweep('frozen', 'freeze_layers', (0, 2, 4, 6, 7)).items()}},
    'dimension of the embedding': sweep('ndim', 'model_kwargs.ndim', (4, 8, 16, 32)),
    'learning rate': sweep('lr', 'pretrain.optimizer_kwargs.lr', (0.004, 0.02, 0.05, 0.1)),
    'epochs': sweep('epochs', 'pretrain.epochs', (2, 5, 10, 20, 40)),
}


def groups_of(start: str, chosen: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Model]]:
    """The chosen groups; a variant that changes nothing in the config of a start, with the overrides given, is FULL."""
    if not start.startswith('imagenet') and FROM_IMAGENET in chosen:
        raise UserError(f'--start {start} has no ImageNet weights for the group "{FROM_IMAGENET}"; choose another '
                        'start, or --groups without it.')

    def config(model: Model) -> str:
        path = str(voc_animals.CONFIGS / start / f'pretrain_{model.masks}.yml')
        overrides = ['root_dir=.', 'db_root=.', *overrides_of('pretrain', [*given, *model.overrides])]
        return json.dumps(load_config('configs/env.yml', path, Pretrain, overrides), sort_keys=True)  # 0 is not false
    return {group: {label: FULL if config(model) == config(FULL) else model
                    for label, model in GROUPS[group].items()} for group in chosen}


def write(root: Path, rows: Mapping[tuple[str, str], Row], scores: Scores) -> None:
    """Write the table, which it prints, in Markdown and as CSV, and the plot, of {(group, label): row}."""
    cells = {(place, metric): scores[row, metric]['mIoU'] for place, row in rows.items() for metric in SHOWN
             if (row, metric) in scores}
    labels = {group: list(dict.fromkeys(label for (of, label), _ in cells if of == group)) for group, _ in rows}
    compared = {group: of for group, of in labels.items() if group != INITIAL.name and len(of) > 1}
    cells = {place: score for place, score in cells.items() if place[0][0] in (INITIAL.name, *compared)}
    text = voc_animals.table(cells, SHOWN, ('ablation', 'variant'))
    write_text(root / 'ablations.md', text)
    write_text(root / 'ablations.csv', csv_text(['ablation', 'variant', 'metric', 'mean', 'std', 'count'],
                                                [[*place, metric, *score] for (place, metric), score in cells.items()]))
    if compared:
        panels = {group: {metric: [(x, *cells[(group, label), metric][:2]) for x, label in enumerate(of)
                                   if ((group, label), metric) in cells] for metric in SHOWN}
                  for group, of in compared.items()}
        ticks = {group: [label.replace(' ', '\n') for label in of] for group, of in compared.items()}
        best = {metric: voc_animals.stronger(scores, next(iter(rows.values())), metric) for metric in SHOWN}
        levels = {metric: score.mean for metric, score in best.items() if score is not None}
        save_image(to_image(partial(line_panels, panels, '', 'mIoU, %', ticks, levels)), root / 'ablations.png')
    print(f'\nmIoU in percent\n\n{text}\nWritten to {root}')


def main(argv: Sequence[str] | None = None) -> None:
    parser = voc_animals.experiment_parser(__doc__)
    parser.add_argument('--start', choices=voc_animals.STARTS, default='imagenet',
                        help='what all variants differ from, a folder of configs/voc_animals (default: %(default)s)')
    parser.add_argument('--groups', nargs='+', choices=tuple(GROUPS), default=list(GROUPS),
                        help='which ablations (default: all)')
    args = parser.parse_args(argv)
    experiment = voc_animals.Experiment(args)
    groups = groups_of(args.start, args.groups, args.overrides)
    for seed in args.seeds:  # a table after each seed
        rows = {(INITIAL.name, row.features): row for row in experiment.add(args.start, seed, INITIAL)}
        for group, models in groups.items():
            rows |= {(group, label): experiment.add(args.start, seed, model)[0] for label, model in models.items()}
        if not args.list or seed == args.seeds[-1]:
            experiment.run(experiment.steps, list_only=args.list)
            write(experiment.root, rows, experiment.scores())


if __name__ == '__main__':
    run_script(main)
