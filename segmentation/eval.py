"""Evaluate a trained linear model: figures, label maps and pictures.

    python segmentation/eval.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml \\
        --state-dict results/linear_finetune_VOCSegmentation_supervised_saliency/best_model.pth.tar --crf-postprocess
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.build import evaluation_loader
from models.build import build_linear_model
from segmentation.scoring import score
from utils.arguments import ArgumentParser
from utils.config import add_config_arguments, as_dict, load_config
from utils.crf import require_crf
from utils.errors import run_script
from utils.launch import add_process_arguments, start_processes
from utils.run_report import write_run_report
from utils.runtime import place, prepare
from utils.schema import LinearFinetune


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_config_arguments(parser, LinearFinetune)
    add_process_arguments(parser)
    parser.add_argument('--state-dict', required=True,
                        help='weights of the linear model, e.g. best_model.pth.tar of linear_finetune.py')
    parser.add_argument('--crf-postprocess', action='store_true', help='refine the predictions with a CRF')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = load_config(args.config_env, args.config_exp, LinearFinetune, args.overrides)
    if args.crf_postprocess:
        require_crf()
    if start_processes(args.nproc, p.device, __file__, argv):
        return
    device = prepare(p)

    loader, dataset = evaluation_loader(p, p.val_db_name, p.val_split)
    model = build_linear_model(p, len(dataset.classes), args.state_dict)
    place(model, device)
    confusions = score(model, loader, dataset, device, Path(p.output_dir), p.num_visualizations,
                       p.crf_kwargs if args.crf_postprocess else None, p.crf_workers,
                       'finetuned' if p.network_lr_factor else 'linear')
    write_run_report(as_dict(p), 'Evaluation', dataset.classes, confusions)


if __name__ == '__main__':
    run_script(main)
