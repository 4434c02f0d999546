"""The tables of the papers, measured here: the whole chain on PASCAL VOC, from the download to a comparison.

    python experiments/reproduce.py --preset supervised --db-root datasets --output results/reproduce --seeds 1 2 3

First it says what the runs that are left take on this machine. Finished ones are not run again: rerun to resume. Writes
table.md (published, measured, difference) and report.html, which has each class. --released DIR trains nothing and
scores released checkpoints; --check runs the same chain on a few drawn images.
"""
import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np
import torch
import yaml

from data.download import FOLDER, ensure_dataset
from data.voc import VOC_CLASSES
from experiments.estimate import estimate
from experiments.runner import Chain, Step, crf_flags, mean_with_spread
from experiments.shapes import generate
from experiments.voc_animals import experiment_parser
from models.backbones import build_backbone
from models.transformer import load_transformer
from models.weights import read_weights
from utils.config.paths import find_file
from utils.report import page
from utils.report import run as report
from utils.report.results import markdown
from utils.run.checkpoint import save_checkpoint
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script

PRESETS: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_suffix('.yml').read_text())
FILES = {'contrastive': 'pretrain/checkpoint.pth.tar', 'linear': 'linear/best_model.pth.tar'}  # of a preset, by kind
SPACE = 5e9  # bytes of VOC's archive and of what is in it
TINY = ('backbone=resnet18', 'pretraining=none', 'epochs=1', 'train_batch_size=4', 'augmentation_kwargs.size=32',
        'linear.label_share=0.5', 'train_size=32', 'val_size=32', 'overclustering=[21, 24]', 'num_workers=0',
        'num_visualizations=2', 'kmeans.saliency=supervised_model', 'retrieval.saliency=supervised_model',
        'pseudo_labels.num_clusters=5', 'pseudo_labels.backbone=timm/vit_tiny_patch16_224')
HEAD = ('preset', 'protocol', 'published', 'measured', 'difference')


class Reproduction(Chain):
    """The steps of presets; ``parts`` are all, each with its preset and its share of the labels, '' but in fine-tuning.

    ``moco`` is a checkpoint of MoCo v2, without which what starts from it is left out; ``vit`` are arguments of the
    masks of MaskDistill.
    """

    def __init__(self, root: Path, db_root: Path, given: Sequence[str], moco: Path | None, vit: Sequence[str]) -> None:
        super().__init__(root, db_root, given)
        self.moco = [] if moco is None else ['pretraining=imagenet_moco', f'moco_state_dict={find_file(moco)}']
        self.vit, self.crf, self.parts = vit, crf_flags(), list[tuple[str, str, Step]]()

    def plan(self, preset: str, seed: int, shares: Sequence[str] = (), files: Mapping[str, Path] | None = None) -> None:
        """Add the steps of a preset, or those alone that score released ``files``, {name in FILES: path}."""
        folder, made, data = f'{preset}/seed_{seed}', dict[str, Step](), self.db_root / FOLDER
        for name, of in PRESETS[preset]['steps'].items():
            task, reads = of['task'], {key: of[key] for key in ('pretraining', 'label_maps', 'after') if key in of}
            script, flags, own = '', self.crf if task == 'linear' else [], [] if task == 'kmeans' else [f'seed={seed}']
            if files is not None:
                if name == 'linear' and FILES[name] in files:
                    script, flags, reads = 'segmentation/eval.py', ['--state-dict', str(files[FILES[name]]), *flags], {}
                elif task not in ('kmeans', 'retrieval') or reads['pretraining'] not in files:
                    continue
            needs = {path.partition('/')[0] for path in reads.values() if path not in (files or ())}
            if (of.get('moco') and not self.moco) or of.get('share', '') not in ('', *shares) or needs - {*made}:
                continue
            if task == 'masks':
                made[name] = Step(f'{preset}/masks', ('saliency/predict.py', '--images', f'{data}/images', '--output',
                                                      f'{data}/saliency_transformer_model', *self.vit))
            else:
                own += [*self.moco * of.get('moco', False), *(f'{key}={(files or {}).get(path, f"{folder}/{path}")}'
                                                              for key, path in reads.items() if key != 'after')]
                made[name] = self.step(task, f'configs/{of["config"]}.yml', f'{folder}/{name}', own,
                                       tuple(made[need] for need in needs), flags, script)
            self.parts.append((preset, of.get('share', ''), made[name]))

    def measured(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """{(preset, entry): its results, of each seed}; none of what is published and not finished here."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {
            (preset, entry): [] for preset, *_ in self.parts for entry in PRESETS[preset]['published']}
        for preset, share, step in self.parts:
            for entry, result in self.results(step).items():
                if entry.partition(' ')[0] in report.TASKS:
                    found.setdefault((preset, f'{entry} {share}'.strip()), []).append(result)
        return found

    def write(self, notes: list[str], of_voc: bool = True) -> None:
        """Write table and report of what is finished, with notes, and print the table; other data has no difference."""
        texts: dict[tuple[str, str, str], list[str]] = {}
        for (preset, entry), results in self.measured().items():
            (task, _, more), published = entry.partition(' '), PRESETS[preset]['published'].get(entry, {})
            protocol = report.TASKS[task] + (f', {more}{" clusters" * (task == "kmeans")}' if more else '')
            other = published.get('other', '')
            notes += [f'{preset}: published with {other}, so that no difference is told.'] if other else []
            targets, *ious = [{'mIoU': of.get('mIoU'), **of.get('IoU', {})} for of in (published, *results)]
            for name in dict.fromkeys(name for of in (targets, *ious) for name in of):
                values, target, measured, gap = [of[name] for of in ious if name in of], targets.get(name), '-', '-'
                if values:
                    mean, one = float(np.mean(values)), ' (n = 1)' * (len(values) == 1)
                    measured = mean_with_spread(values) + one
                    gap = '-' if target is None or other or not of_voc else f'{mean - target:+.2f}'
                texts[preset, protocol, name] = ['-' if target is None else str(target), measured, gap]
        short = [[*place[:2], *text] for place, text in texts.items() if place[2] == 'mIoU']
        notes = list(dict.fromkeys(notes))
        table = '\n\n'.join([markdown(HEAD, short, 3).strip(), *notes])
        write_text(self.root / 'table.md', f'{table}\n')
        page.write_page(self.root, 'Published and measured', ' '.join(notes), [
            page.table('mIoU', HEAD, short), page.table('IoU of each class', (*HEAD[:2], 'class', *HEAD[2:]), [
                [*place, *text] for place, text in texts.items() if place[2] != 'mIoU'], folded=True)])
        print(f'\n{table}\n\nWritten to {self.root}: table.md, {page.REPORT}')
        if left := sum(not self.finished(step) for step in {step for *_, step in self.parts}):
            print(f'{left} runs are left: rerun the same command to resume')


def released_files(folder: Path) -> dict[str, dict[str, Path]]:
    """{preset: {name in FILES: path}} of released checkpoints, told by their names and their tensors.

    Raises UserError for a file that is not one, and for two of one kind.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob('*.pth*')):
        parts, kind = reversed(path.relative_to(folder).parts), FILES.get(read_weights(path).kind)
        name = next((part.lower() for part in parts if 'sup' in part.lower()), '')  # of the file, or else of its folder
        of_preset = found.setdefault('unsupervised' if 'unsup' in name else 'supervised', {})
        if kind is None or not name or kind in of_preset:
            raise UserError(f'{path} is no released model, its name says neither supervised nor unsupervised, or it is '
                            'the second one of its kind; rename it or take it away.')
        of_preset[kind] = path.resolve()
    return found


def draw_check(args: argparse.Namespace) -> Sequence[str]:
    """Ready --check: drawn images under VOC's names, random weights; gives the arguments of the masks."""
    args.db_root, files = args.output / 'data', [args.output.resolve() / name for name in ('moco.pth.tar', 'vit.pth')]
    path = generate(args.db_root / FOLDER, 24, 24, 48) / 'dataset.yml'
    write_text(path, yaml.safe_dump(yaml.safe_load(path.read_text()) | {'classes': list(VOC_CLASSES)}))
    torch.manual_seed(0)  # a rerun resumes with the same weights
    networks = build_backbone('resnet18'), load_transformer(TINY[-1].partition('=')[2], None).network
    for file, network in zip(files, networks, strict=True):
        save_checkpoint(network.state_dict(), file)
    args.moco, args.overrides = files[0], [*TINY, f'pseudo_labels.pretraining={files[1]}', *args.overrides]
    return '--backbone', TINY[-1].partition('=')[2], '--weights', str(files[1]), '--resize', '64', '--heads', '3'


def main(argv: Sequence[str] | None = None) -> None:
    parser = experiment_parser(__doc__, db_root=Path('datasets'), output=Path('results/reproduce'), seeds=[1])
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--preset', nargs='+', choices=(*PRESETS, 'all'), default=['supervised'], help='what to run')
    what.add_argument('--released', type=Path, metavar='DIR',
                      help='score the checkpoints of a folder, whose names say supervised or unsupervised, with the '
                           'first of --seeds')
    parser.add_argument('--moco', type=Path, help='weights of MoCo v2, moco_v2_800ep_pretrain.pth.tar, from which all '
                                                  'but supervised and paper_60_epochs start, and retrieval')
    parser.add_argument('--finetune', nargs='+', default=[], help='fine-tune with shares of the labels', choices=[
        of['share'] for of in PRESETS['supervised']['steps'].values() if 'share' in of])
    parser.add_argument('--check', action='store_true', help='the same chain on drawn images, in minutes')
    args = parser.parse_args(argv)
    presets, released = PRESETS if 'all' in args.preset else args.preset, {}
    if args.released and not (released := released_files(args.released)):
        raise UserError(f'{args.released} holds no checkpoint (*.pth, *.pth.tar); put the released ones there.')
    args.output = args.output / ('check' if args.check else 'released' if released else '')
    if args.weights:
        args.overrides = [f'pretrain.pretraining={args.weights}', *args.overrides]
    vit = draw_check(args) if args.check else ('--backbone', 'timm/vit_small_patch16_224.dino')
    if not (released or args.moco or {*presets} <= {'supervised', 'paper_60_epochs'}):
        raise UserError('unsupervised and maskdistill start from MoCo v2; fetch its weights, '
                        'moco_v2_800ep_pretrain.pth.tar, and give them as --moco PATH.')
    chain = Reproduction(args.output, args.db_root, args.overrides, args.moco, ('--method', 'transformer', *vit))
    for seed in args.seeds[:1] if released else args.seeds:
        for preset in released or presets:
            chain.plan(preset, seed, args.finetune, released.get(preset))
    steps = [step for *_, step in chain.parts]
    if not args.list and (left := [step for step in dict.fromkeys(steps) if not chain.finished(step)]):
        table, size = estimate(left)
        print(f'The runs that are left take on this machine, if reading images does not hold them up:\n\n{table}')
        absent = not (chain.db_root / FOLDER).exists()
        print(f'{chain.db_root / FOLDER} is fetched first; the archive takes some 2 GB.\n' * absent, flush=True)
        for folder, needed in ((chain.root, size), (chain.db_root, SPACE * absent)):
            near = next(place for place in (folder, *folder.parents) if place.exists())
            if shutil.disk_usage(near).free < needed:
                raise UserError(f'{folder} needs {needed / 1e9:.0f} GB, more than is free there; make room, or take '
                                'another folder.')
        ensure_dataset(chain.db_root / FOLDER)
    try:
        chain.run(steps, list_only=args.list)
    finally:
        chain.write([' '.join(['mIoU in percent', *(['of drawn images, which means nothing,'] if args.check else []),
                               *(['with --set', *args.overrides] if args.overrides else [])])], not args.check)


if __name__ == '__main__':
    run_script(main)
