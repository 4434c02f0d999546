"""The whole method on images drawn by code: the protocols before and after pretraining, side by side.

    python experiments/demo.py --output results/demo

Draws a data set, pretrains without labels, and runs all protocols on the encoder before and after, two at a time.
Steps that are finished are not run again. Writes table.md, table.csv and report.html.
"""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from experiments.runner import SCRIPTS, Step, overrides_of, run_chain
from experiments.voc_animals import crf_flags
from utils.config.cli import ArgumentParser
from utils.config.paths import REPOSITORY
from utils.run.script import run_script

BEFORE, AFTER = 'pretraining=pretrain_before/checkpoint.pth.tar', 'pretraining=pretrain/checkpoint.pth.tar'
EXACT = 'saliency=supervised_model'  # the exact masks; by default those that the network predicts
PROTOTYPES = {'before-embedding': (BEFORE, EXACT), 'before-backbone': (BEFORE, EXACT, 'features=backbone'),
              'after-given': (AFTER, EXACT), 'after': (AFTER,)}
NOTE = ('The same encoder before and after pretraining without labels. Before: the better of its embedding and its '
        'backbone features. Before and after, K-means and retrieval have the exact masks (so that the background is '
        'always right); the last column has the masks that the trained network predicts.')


class Demo:
    """The steps of the demo, and the table of their results.

    Args:
        root: their folder.
        given: overrides '[task.]key=value'.
        drawing: arguments of experiments/shapes.py.
    """

    def __init__(self, root: Path, given: Sequence[str], drawing: Sequence[str]) -> None:
        self.root, self.given = root, given
        draw = Step('data', ('experiments/shapes.py', '--output', str(root / 'data' / 'Shapes'), *drawing))
        pretrain = self.step('pretrain', 'pretrain', (), (draw,))
        before = self.step('pretrain', 'pretrain_before', ('epochs=0',), (draw,))
        self.pretraining = [draw, pretrain, before]
        self.protocols = [self.step(task, f'{task}-{name}', overrides, (before if BEFORE in overrides else pretrain,))
                          for task in ('kmeans', 'retrieval') for name, overrides in PROTOTYPES.items()]
        for name, weights, needed in (('before', BEFORE, before), ('after', AFTER, pretrain)):
            trained = self.step('linear', f'linear-{name}', (weights,), (needed,))
            best = root / trained.folder / 'best_model.pth.tar'
            self.protocols += [trained, self.step('linear', f'linear-{name}-eval', (weights,), (trained,),
                                                  ('--state-dict', str(best), *crf_flags()), 'segmentation/eval.py')]

    def step(self, task: str, folder: str, overrides: Sequence[str], needs: tuple[Step, ...],
             flags: Sequence[str] = (), script: str = '') -> Step:
        """A script of a task with its config of configs/demo."""
        config = {'linear': 'linear_finetune'}.get(task, task)
        return Step(folder, (script or SCRIPTS[task][0], '--config_env', 'configs/demo/env.yml', '--config_exp',
                             f'configs/demo/{config}.yml', *flags, '--set', *overrides_of(task, self.given),
                             f'root_dir={self.root}', f'db_root={self.root / "data"}', f'output_dir={folder}',
                             *overrides), needs)

    def table(self) -> list[str]:
        """The call of segmentation/table.py."""
        columns = {'before': ('linear-before-eval', *(f'{task}-before-{features}' for task in ('kmeans', 'retrieval')
                                                      for features in ('embedding', 'backbone'))),
                   'after': ('linear-after-eval', 'kmeans-after-given', 'retrieval-after-given'),
                   'after, with its own masks': ('kmeans-after', 'retrieval-after')}
        words = [word for name, folders in columns.items()
                 for word in ('--column', name, *(str(self.root / folder) for folder in folders))]
        return ['segmentation/table.py', '--output', str(self.root), '--pictures',
                str(self.root / 'kmeans-after' / 'visualizations'), '--pretraining', str(self.root / 'pretrain'),
                '--note', NOTE, *words]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--output', type=Path, default=Path('results/demo'), help='folder of all of it (default: '
                                                                                  '%(default)s)')
    parser.add_argument('--images', type=int, nargs=2, metavar=('TRAIN', 'VAL'), help='how many to draw')
    parser.add_argument('--set', dest='overrides', metavar='[TASK.]KEY=VALUE', nargs='+', action='extend', default=[],
                        help='override a key in every script that has it, or in that of one task alone')
    args = parser.parse_args(argv)
    drawing = ['--train', str(args.images[0]), '--val', str(args.images[1])] if args.images else []
    demo = Demo(args.output.resolve(), args.overrides, drawing)
    print('== Drawing the data set, and pretraining without labels', flush=True)
    run_chain(demo.root, demo.pretraining)
    print(f'== The protocols before and after pretraining, two at a time (output: {args.output}/*/output.txt)')
    run_chain(demo.root, demo.protocols, jobs=2)
    print('== Before and after pretraining', flush=True)
    if code := subprocess.call([sys.executable, *demo.table()], cwd=REPOSITORY):
        raise SystemExit(code)
    print(f'== All of it with pictures: open {args.output}/report.html in a browser')


if __name__ == '__main__':
    run_script(main)
