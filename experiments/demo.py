"""The whole method on images drawn by code: the protocols before and after pretraining, side by side.

    python experiments/demo.py --output results/demo

Draws a data set, pretrains without labels, and runs all protocols on the encoder before and after, two at a time.
Steps that are finished are not run again. Writes table.md, table.csv and report.html.
"""
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.distill import SETTINGS, TEACHER, distil
from experiments.runner import Chain, Step, crf_flags
from segmentation import table
from utils.config.cli import ArgumentParser, at_least
from utils.run.script import run_script

EXACT = 'saliency=supervised_model'  # the exact masks; by default those that the network predicts
READ = {'before': {'-embedding': (EXACT,), '-backbone': (EXACT, 'features=backbone')},
        'after': {'-given': (EXACT,), '': ()}}  # {encoder: {suffix of a folder: overrides}} of K-means and retrieval
COLUMNS = {'initial weights': ('linear-before-eval', 'kmeans-before-embedding', 'kmeans-before-backbone',
                      'retrieval-before-embedding', 'retrieval-before-backbone'),
           'pretrained': ('linear-after-eval', 'kmeans-after-given', 'retrieval-after-given'),
           'pretrained, predicted masks': ('kmeans-after', 'retrieval-after'),
           'distilled': ('kmeans-after-train', 'ohem-0.8-round-1-kmeans-after-train')}
NOTE = ('The same encoder before and after pretraining without labels. Initial weights: the better of its embedding '
        'and its backbone features. In the first two columns K-means and retrieval have the exact masks (so that the '
        'background is always right), in the third those that the pretrained network predicts. Distilled: a network '
        'that learnt clusters of the training images, which have exact masks, and these clusters with predicted masks.')


def plan(chain: Chain, drawing: Sequence[str]) -> tuple[list[Step], list[Step]]:
    """The data set and the encoder before and after its pretraining; the protocols on both.

    ``drawing`` are arguments of experiments/shapes.py.
    """
    draw = Step('data', ('experiments/shapes.py', '--output', str(chain.db_root / 'Shapes'), *drawing))
    config, linear, crf = 'configs/demo/pretrain.yml', 'configs/demo/linear_finetune.yml', crf_flags()
    encoders = {'before': chain.step('pretrain', config, 'pretrain_before', ['epochs=0'], (draw,)),
                'after': chain.step('pretrain', config, 'pretrain', needs=(draw,))}
    steps = []
    for name, encoder in encoders.items():
        weights = f'pretraining={encoder.folder}/checkpoint.pth.tar'
        trained = chain.step('linear', linear, f'linear-{name}', [weights], (encoder,))
        best = ('--state-dict', str(chain.root / trained.folder / 'best_model.pth.tar'), *crf)
        steps += [trained, chain.step('linear', linear, f'linear-{name}-eval', (), (trained,), best,
                                      'segmentation/eval.py')]
        steps += [chain.step(task, f'configs/demo/{task}.yml', f'{task}-{name}{suffix}', [weights, *read], (encoder,))
                  for task in ('kmeans', 'retrieval') for suffix, read in READ[name].items()]
    teacher = chain.step('kmeans', 'configs/demo/kmeans.yml', 'kmeans-after-train', [weights, *TEACHER], (encoder,))
    steps += [teacher, *distil(chain, 'configs/demo', teacher, SETTINGS['confidence, OHEM'], [weights])]
    return [draw, *encoders.values()], steps


def joined(root: Path) -> list[str]:
    """The arguments of segmentation/table.py that join the results."""
    words = ['--output', str(root), '--pretraining', str(root / 'pretrain'), '--note', NOTE,
             '--pictures', str(root / 'kmeans-after' / 'visualizations')]
    for name, folders in COLUMNS.items():
        words += ['--column', name, *(str(root / folder) for folder in folders)]
    return words


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--output', type=Path, default=Path('results/demo'), help='folder of all of it')
    parser.add_argument('--images', type=at_least(10), nargs=2, metavar=('TRAIN', 'VAL'), help='how many to draw')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone')
    args = parser.parse_args(argv)
    drawing = ['--train', str(args.images[0]), '--val', str(args.images[1])] if args.images else []
    chain = Chain(args.output, args.output / 'data', args.overrides, 'configs/demo/env.yml')
    first, protocols = plan(chain, drawing)
    print('== Drawing the data set, and pretraining without labels', flush=True)
    chain.run(first)
    print(f'== The protocols before and after pretraining, two at a time (output: {args.output}/*/output.txt)')
    chain.run(protocols, jobs=2)
    print('== Before and after pretraining', flush=True)
    table.main(joined(chain.root))
    print(f'== All of it with pictures: open {args.output}/report.html in a browser')


if __name__ == '__main__':
    run_script(main)
