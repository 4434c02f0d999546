"""What makes pretraining gain on photographs: its clusters against those of pooled features of the initial weights.

    python experiments/clothing.py --db-root datasets --output results/clothing --weights PATH \\
        --start imagenet --settings recipe "grey 0.8" --seeds 1 2 3

K-means with 20 clusters, 25 runs a seed, on precomputed masks; no label is read before scoring. Settings are compared
on a random tenth of the training list that no training sees. --val is for what has been chosen by it: it trains on the
whole list and scores val. Each setting differs in one thing from the recipe, configs/clothing/<start>, or from it with
its backbone frozen. Runs that are finished are not run again. Writes clothing.csv, to which each seed of a setting adds
a row, and clothing.md.
"""
import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.voc import random_share, read_ids
from experiments.runner import Chain, Step, mean_with_spread, overrides_of
from experiments.voc_animals import experiment_parser
from utils.config.paths import REPOSITORY
from utils.report.results import csv_text, markdown
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

CONFIGS = Path('configs/clothing')
STARTS = tuple(sorted(path.parent.name for path in (REPOSITORY / CONFIGS).glob('*/pretrain.yml')))
HELD_OUT, SPLIT_SEED = 0.1, 0
MASKS = 'saliency_unsupervised_model'
INITIAL = {f'initial, {size} px': ('pretrain.epochs=0', 'kmeans.features=backbone', f'kmeans.val_size={size}')
           for size in (96, 160, 224, 336)}
SETTINGS: dict[str, Sequence[str]] = INITIAL | {  # '[task.]key=value'
    'recipe': (),
    'grey 0.8': ('augmentation_kwargs.grey_probability=0.8',),
    'solarised 0.2': ('augmentation_kwargs.solarise_probability=0.2',),
    'solarised 0.2, pooled': ('augmentation_kwargs.solarise_probability=0.2', 'kmeans.features=backbone'),
    'solarised 0.5': ('augmentation_kwargs.solarise_probability=0.5',),
    'hue 0.5': ('augmentation_kwargs.jitter=[0.4, 0.4, 0.4, 0.5]',),
    'T 0.1': ('moco_kwargs.T=0.1',),
    'T 0.5': ('moco_kwargs.T=0.5',),
    '8 dimensions': ('model_kwargs.ndim=8',),
    '32 dimensions': ('model_kwargs.ndim=32',),
    'nothing frozen': ('freeze_layers=false',),
    'backbone frozen': ('freeze_layers=7',),
    'lr 0.01': ('optimizer_kwargs.lr=0.01',),
    'lr 0.01, pooled': ('optimizer_kwargs.lr=0.01', 'kmeans.features=backbone'),
    '12 epochs': ('pretrain.epochs=12',),
    '128 px': ('augmentation_kwargs.size=128', 'kmeans.val_size=296'),
    '224 px, 60 epochs': ('augmentation_kwargs.size=224', 'pretrain.epochs=60', 'train_batch_size=64',  # for a GPU
                          'kmeans.val_size=512'),
    'backbone frozen, solarised 0.2': ('freeze_layers=7', 'augmentation_kwargs.solarise_probability=0.2'),
    'backbone frozen, 32 dimensions': ('freeze_layers=7', 'model_kwargs.ndim=32'),
    'backbone frozen, 32 dimensions, solarised 0.2': (
        'freeze_layers=7', 'model_kwargs.ndim=32', 'augmentation_kwargs.solarise_probability=0.2'),
    'backbone frozen, 32 dimensions, solarised 0.2, whitened': (
        'freeze_layers=7', 'model_kwargs.ndim=32', 'augmentation_kwargs.solarise_probability=0.2',
        'kmeans.whiten=true'),
    'backbone frozen, 12 epochs': ('freeze_layers=7', 'pretrain.epochs=12'),
    'backbone frozen, 12 epochs, whitened': ('freeze_layers=7', 'pretrain.epochs=12', 'kmeans.whiten=true'),
    'backbone frozen, 128 px': ('freeze_layers=7', 'augmentation_kwargs.size=128', 'kmeans.val_size=296'),
    'scored at 96 px': ('kmeans.val_size=96',),
    'recipe, pooled': ('kmeans.features=backbone',),
    'recipe, whitened': ('kmeans.whiten=true',),
    'initial, 224 px, whitened': (*INITIAL['initial, 224 px'], 'kmeans.whiten=true'),
}


class Run(NamedTuple):
    """A row of clothing.csv: K-means of one seed of a setting, in percent, with the standard deviation of its runs."""
    start: str
    setting: str
    overrides: str
    scored: str
    seed: int
    mIoU: float  # noqa: N815, as it is called everywhere
    std: float
    runs: int
    NMI: float


def link_split(data: Path, folder: Path, val: bool) -> None:
    """Make a data set of links to another, with the lists 'fit' and 'score' of images that have a mask.

    They are the training list and val, or else two parts of the training list. Raises UserError for data without masks,
    and for a folder that links to other data or has other lists.
    """
    if not (data / MASKS).is_dir():
        raise UserError(f'{data} has no folder {MASKS}; write the masks into it with saliency/predict.py --method '
                        'unsupervised.')
    ids = read_ids(data, 'trainaug')
    score = read_ids(data, 'val') if val else random_share(ids, HELD_OUT, SPLIT_SEED)
    links = {path.name: path for path in data.iterdir() if path.name != 'sets'}
    links['SegmentationClass'] = data / ('SegmentationClass' if val else 'SegmentationClassAug')
    for name, path in links.items():
        link = folder / name
        if link.is_symlink() and link.readlink() != path:
            raise UserError(f'{link} is a link to {link.readlink()}, of another data set; choose another --output.')
        if not link.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    for name, part in (('fit', sorted(set(ids).difference(score))), ('score', score)):
        path, text = folder / 'sets' / f'{name}.txt', ''.join(
            f'{image}\n' for image in part if (data / MASKS / f'{image}.png').is_file())
        if path.is_file() and path.read_text() != text:
            raise UserError(f'{path} is of other lists or masks than {data} has now; choose another --output.')
        write_text(path, text)


def read_rows(path: Path) -> dict[tuple, Run]:
    """The runs of a clothing.csv by what tells them apart, none if there is no file. Raises UserError for another."""
    try:
        with path.open(newline='') if path.is_file() else io.StringIO() as file:
            runs = [Run(**{name: Run.__annotations__[name](value) for name, value in row.items()})
                    for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path} is not a table of this script; move it or choose another --output.') from None
    return {run[:5]: run for run in runs}


def steps_of(chain: Chain, start: str, setting: str, seed: int, data: str, weights: Sequence[str]) -> list[Step]:
    """Pretraining and K-means; settings that only differ in how they are scored share their pretraining.

    ``data``: the name of a folder as of ``link_split``; ``weights``: an override.
    """
    given, place = overrides_of('pretrain', SETTINGS[setting]), f'{start}/{data}/seed_{seed}'
    pretrained = chain.step('pretrain', f'{CONFIGS}/{start}/pretrain.yml', f'{place}/{_folder("pretrain", given)}', [
        f'seed={seed}', f'train_db_name={data}', 'train_split=fit', *weights, *given])
    kmeans = chain.step('kmeans', f'{CONFIGS}/{start}/kmeans.yml', f'{place}/{_folder("kmeans", [setting])}', [
        f'pretraining={pretrained.folder}/checkpoint.pth.tar', f'seed={100 * seed}', f'val_db_name={data}',
        'val_split=score', *overrides_of('kmeans', SETTINGS[setting])], (pretrained,))
    return [pretrained, kmeans]


def _folder(task: str, words: Sequence[str]) -> str:
    return re.sub(r'[^\w.=-]+', '_', ' '.join((task, *words)))


def table(runs: Sequence[Run]) -> str:
    """Mean and standard deviation over seeds, and the paired difference to the best of the initial features."""
    of: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for run in runs:
        of.setdefault((run.start, run.scored), {}).setdefault(run.setting, {})[run.seed] = run.mIoU
    rows = []
    for (start, scored), settings in of.items():
        before = max((found for name, found in settings.items() if name in INITIAL), key=_mean, default={})
        for name, found in settings.items():
            gains = [value - before[seed] for seed, value in found.items() if seed in before]
            rows.append([start, scored, name, mean_with_spread(list(found.values())),
                         mean_with_spread(gains) if gains else '-'])
    return markdown(['start', 'scored', 'setting', 'mIoU', 'gain over the best initial features'], rows, 2)


def _mean(found: Mapping[int, float]) -> float:
    return sum(found.values()) / len(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument('--data', default='Clothing', help='data set below --db-root (default: %(default)s)')
    parser.add_argument('--start', nargs='+', choices=STARTS, default=['imagenet'], help='weights and schedule')
    parser.add_argument('--settings', nargs='+', choices=tuple(SETTINGS), default=list(SETTINGS), help='which of them')
    parser.add_argument('--val', action='store_true', help='train on the whole list and score val')
    args = parser.parse_args(argv)
    chain, scored = Chain(args.output, args.output / 'data', args.overrides), 'val' if args.val else 'held_out'
    link_split(args.db_root.resolve() / args.data, chain.db_root / scored, args.val)
    weights = {'imagenet': [f'pretraining={args.weights}']} if args.weights else {}
    runs, path = [], chain.root / 'clothing.csv'
    read_rows(path)  # another file is refused before anything is trained
    for seed in args.seeds:  # a table after each seed
        chosen = [(start, setting, steps_of(chain, start, setting, seed, scored, weights.get(start, [])))
                  for start in args.start for setting in dict.fromkeys((*INITIAL, *args.settings))]
        try:
            chain.run([step for *_, steps in chosen for step in steps], list_only=args.list)
        finally:
            for start, setting, steps in chosen:
                if found := chain.results(steps[-1]).get('kmeans'):
                    overrides = ' '.join((*args.overrides, *SETTINGS[setting]))
                    runs.append(Run(start, setting, overrides, scored, seed, found['mIoU'], found['std'],
                                    found['num_runs'], found['NMI']))
            rows = read_rows(path) | {run[:5]: run for run in runs}  # of other processes too
            write_text(path, csv_text(Run._fields, list(rows.values())))
        text = ' '.join(['mIoU in percent', *(['with --set', *args.overrides] if args.overrides else [])])
        write_text(chain.root / 'clothing.md', text := f'{text}\n\n{table(runs)}')
        print(f'\n{text}\nWritten to {chain.root}', flush=True)


if __name__ == '__main__':
    run_script(main)
