"""The whole method on images drawn by code: the protocols before and after pretraining, side by side.

    python experiments/demo.py --output results/demo

Draws a data set, pretrains without labels, and runs all protocols on the encoder before and after, two at a time.
Steps that are finished are not run again. Writes table.md, table.csv and report.html.
"""
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.runner import Chain, Step
from experiments.voc_animals import crf_flags
from utils.config.cli import ArgumentParser
from utils.config.paths import REPOSITORY
from utils.run.script import run_script

BEFORE, AFTER = 'pretraining=pretrain_before/checkpoint.pth.tar', 'pretraining=pretrain/checkpoint.pth.tar'
EXACT = 'saliency=supervised_model'  # the exact masks; by default those that the network predicts
PROTOTYPES = {'before-embedding': (BEFORE, EXACT), 'before-backbone': (BEFORE, EXACT, 'features=backbone'),
              'after-given': (AFTER, EXACT), 'after': (AFTER,)}
COLUMNS = {'before': ('linear-before-eval', *(f'{task}-before-{features}' for task in ('kmeans', 'retrieval')
                                              for features in ('embedding', 'backbone'))),
           'after': ('linear-after-eval', 'kmeans-after-given', 'retrieval-after-given'),
           'after, with its own masks': ('kmeans-after', 'retrieval-after')}
NOTE = ('The same encoder before and after pretraining without labels. Before: the better of its embedding and its '
        'backbone features. Before and after, K-means and retrieval have the exact masks (so that the background is '
        'always right); the last column has the masks that the trained network predicts.')


def pretraining_steps(chain: Chain, drawing: Sequence[str]) -> tuple[Step, Step, Step]:
    """The data set, the pretraining, and the encoder before it.

    Args:
        drawing: arguments of experiments/shapes.py.
    """
    draw = Step('data', ('experiments/shapes.py', '--output', str(chain.db_root / 'Shapes'), *drawing))
    config = 'configs/demo/pretrain.yml'
    return draw, chain.step('pretrain', config, 'pretrain', needs=(draw,)), chain.step(
        'pretrain', config, 'pretrain_before', ['epochs=0'], (draw,))


def protocol_steps(chain: Chain, pretrained: Step, before: Step) -> list[Step]:
    steps, config, crf = [], 'configs/demo/linear_finetune.yml', crf_flags()
    for name, weights, needed in (('before', BEFORE, before), ('after', AFTER, pretrained)):
        trained = chain.step('linear', config, f'linear-{name}', (weights,), (needed,))
        best = chain.root / trained.folder / 'best_model.pth.tar'
        steps += [trained, chain.step('linear', config, f'linear-{name}-eval', (), (trained,),
                                      ('--state-dict', str(best), *crf), 'segmentation/eval.py')]
    for task in ('kmeans', 'retrieval'):
        steps += [chain.step(task, f'configs/demo/{task}.yml', f'{task}-{name}', overrides,
                             (before if BEFORE in overrides else pretrained,))
                  for name, overrides in PROTOTYPES.items()]
    return steps


def table(root: Path) -> list[str]:
    """The call of segmentation/table.py."""
    words = [word for name, folders in COLUMNS.items()
             for word in ('--column', name, *(str(root / folder) for folder in folders))]
    return ['segmentation/table.py', '--output', str(root), '--pictures', str(root / 'kmeans-after' / 'visualizations'),
            '--pretraining', str(root / 'pretrain'), '--note', NOTE, *words]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--output', type=Path, default=Path('results/demo'), help='folder of all of it (default: '
                                                                                  '%(default)s)')
    parser.add_argument('--images', type=int, nargs=2, metavar=('TRAIN', 'VAL'), help='how many to draw')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone')
    args = parser.parse_args(argv)
    drawing = ['--train', str(args.images[0]), '--val', str(args.images[1])] if args.images else []
    chain = Chain(args.output, args.output / 'data', args.overrides, 'configs/demo/env.yml')
    steps = pretraining_steps(chain, drawing)
    print('== Drawing the data set, and pretraining without labels', flush=True)
    chain.run(steps)
    print(f'== The protocols before and after pretraining, two at a time (output: {args.output}/*/output.txt)')
    chain.run(protocol_steps(chain, *steps[1:]), jobs=2)
    print('== Before and after pretraining', flush=True)
    if code := subprocess.call([sys.executable, *table(chain.root)], cwd=REPOSITORY):
        raise SystemExit(code)
    print(f'== All of it with pictures: open {args.output}/report.html in a browser')


if __name__ == '__main__':
    run_script(main)
