"""What a network gains over the clusters that it learns from, and by which of MaskDistill's parts.

    python experiments/distill.py --output results/distill --seeds 0 1 2
    python experiments/distill.py --output results/distill_photographs --db-root datasets --data NAME --weights WEIGHTS

For each seed the teacher, K-means on the masks of the training split, its label maps, and a network for each setting.
Features are those of a pretraining on drawn images, or, on a data set NAME in VOC's layout, of a backbone with WEIGHTS;
no label is read before scoring. Teacher and network are scored on val with the teacher's names of the clusters: the
teacher with the masks that it predicts, on NAME with the unsupervised ones. Writes distill.md and distill.csv.
"""
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.runner import Chain, Step, mean_with_spread
from experiments.voc_animals import experiment_parser
from segmentation.engine import BEST
from utils.report.results import csv_text, markdown
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

DRAWN, PHOTOGRAPHS = 'configs/demo', 'configs/distill'
TEACHER: Sequence[str] = ('fit_split=train', 'num_seeds=1')  # of configs/demo/kmeans.yml: on the masks that it predicts
TRAIN = {DRAWN: 'val_split=train', PHOTOGRAPHS: 'val_split=trainaug'}  # the images that get label maps
SETTINGS = {'all masks': (1.0, 'ce', 1), 'confidence': (0.8, 'ce', 1), 'OHEM': (1.0, 'ohem', 1),
            'confidence, OHEM': (0.8, 'ohem', 1), 'confidence, CRF round': (0.8, 'ce', 2)}
# share of the masks that are kept, and their images with them; loss; rounds, the second of which learns from what the
# first network predicts on the training split, after a CRF


def distil(chain: Chain, configs: str, teacher: Step, setting: tuple[float, str, int],
           shared: Sequence[str]) -> list[Step]:
    """The steps from a teacher, a run of kmeans.py, to a network; the last one's results are those of the network.

    Of the folder ``configs``, with ``shared`` overrides.
    """
    confidence, loss, rounds = setting
    maps = chain.step('pseudo_labels', f'{configs}/pseudo_labels.yml', f'maps-{confidence}-{teacher.folder}', [
        *shared, f'clusters={teacher.folder}/clusters.pth.tar', f'confidence={confidence}'], (teacher,))
    steps, labels, config = [maps], f'{maps.folder}/label_maps', f'{configs}/distill.yml'
    for number in range(1, rounds + 1):
        folder = f'{loss}-{confidence}-round-{number}-{teacher.folder}'
        given = [*shared, f'label_maps={labels}', f'loss={loss}']
        steps.append(chain.step('linear', config, folder, given, (steps[-1],)))
        if number < rounds:
            best = '--state-dict', str(chain.root / folder / BEST), '--crf-postprocess'
            steps.append(chain.step('linear', config, f'{folder}-train', [*given, TRAIN[configs]], (steps[-1],), best,
                                    'segmentation/eval.py'))
            labels = f'{folder}-train/predictions_crf'
    return steps


def write(root: Path, scores: Mapping[tuple[str, int], tuple[float, ...]]) -> None:
    """Write and print the table of {(setting, seed): mIoU of teacher and network, percent}."""
    rows = []
    for name in dict.fromkeys(name for name, _ in scores):
        columns = zip(*((a, b, b - a) for (setting, _), (a, b) in scores.items() if setting == name), strict=True)
        rows.append([name, *map(mean_with_spread, columns)])
    text = markdown(['setting', 'clusters', 'network', 'network - clusters, paired'], rows, 3)
    write_text(root / 'distill.md', text)
    write_text(root / 'distill.csv', csv_text(['setting', 'seed', 'clusters', 'network'], [
        [*place, *pair] for place, pair in scores.items()]))
    print(f'\nmIoU in percent\n\n{text}\nWritten to {root}')


def main(argv: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__, output=Path('results/distill'), seeds=[0, 1, 2])
    parser.add_argument('--settings', nargs='+', choices=tuple(SETTINGS), default=list(SETTINGS), help='which of them')
    parser.add_argument('--data', metavar='NAME', help='a data set below --db-root in the place of drawn images')
    args = parser.parse_args(argv)
    if (args.data is None) != (args.db_root is None):
        raise UserError('--data and --db-root go together; give both, or neither for drawn images.')
    configs, given = (DRAWN, TEACHER) if args.data is None else (PHOTOGRAPHS, ())
    named = {'train_db_name': args.data, 'val_db_name': args.data, 'pretraining': args.weights}
    chain = Chain(args.output, args.db_root or args.output / 'data',
                  [*(f'{key}={value}' for key, value in named.items() if value), *args.overrides], f'{DRAWN}/env.yml')
    drawing = Step('data', ('experiments/shapes.py', '--output', str(chain.db_root / 'Shapes')))
    scores: dict[tuple[str, int], tuple[float, ...]] = {}
    for seed in args.seeds:  # a table after each seed
        steps, shared = list[Step](), [f'seed={seed}']
        if args.data is None:
            steps = [drawing, chain.step('pretrain', f'{DRAWN}/pretrain.yml', f'pretrain-{seed}', shared, (drawing,))]
            shared = [*shared, f'pretraining={steps[1].folder}/checkpoint.pth.tar']
        teacher = chain.step('kmeans', f'{configs}/kmeans.yml', f'clusters-{seed}', [*shared, *given], tuple(steps))
        students = {name: distil(chain, configs, teacher, SETTINGS[name], shared) for name in args.settings}
        chain.run([*steps, teacher, *itertools.chain(*students.values())], list_only=args.list)
        for name, student in students.items() if not args.list else ():
            found = chain.results(teacher)['kmeans'], chain.results(student[-1])['distilled']
            scores[name, seed] = tuple(entry['mIoU'] for entry in found)
        if scores:
            write(chain.root, scores)


if __name__ == '__main__':
    run_script(main)
