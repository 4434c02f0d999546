"""Linear classifier: train a 1x1 convolution on frozen pixel embeddings, or the whole network with it; then score it.

    python segmentation/linear_finetune.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml --crf-postprocess

Configs in configs/finetune train the whole network on a share of the labels.
"""
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.loaders import evaluation_loader, identity, label_maps_of, open_images, train_loader
from data.transforms import LinearTrainTransform
from models.backbones import freeze_layers
from models.build import build_linear_model, synchronise_batchnorm
from models.crf import require_crf
from models.weights import fingerprint, load_strict, read_weights
from segmentation.clustering import require_known
from segmentation.engine import (
    AGREEMENT,
    BEST,
    DISTILLED,
    TRAINED_ON,
    compute_losses,
    read_trained,
    score,
    validate,
    write_trained,
)
from segmentation.metrics import iou_of, made_with, warn_of_shared
from utils.config.cli import ConfigParser
from utils.config.schema import LinearFinetune
from utils.run import distributed
from utils.run.checkpoint import save_checkpoint
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.script import run_script
from utils.run.setup import start
from utils.run.trainer import Trainer

log = logging.getLogger(__name__)
TITLES = {'linear': 'Linear classifier', 'finetuned': 'Fine-tuning', DISTILLED: 'Distillation'}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, LinearFinetune)
    parser.add_argument('--crf-postprocess', action='store_true', help='refine the final predictions with a CRF')
    args = parser.parse_args(argv)
    p = parser.load(args)
    if p.epochs == 0:
        raise UserError('epochs is 0, and a classifier of random weights has no result; set epochs to 1 or more.')
    if args.crf_postprocess:
        require_crf()
    device = start(p, args.nproc, __file__, argv, identity(p, p.train_db_name, p.val_db_name))
    best_path, maps = Path(p.output_dir) / BEST, label_maps_of(p)
    task = DISTILLED if maps else 'finetuned' if p.network_lr_factor else 'linear'

    dataset = open_images(p, p.val_db_name, p.val_split, truth=True)
    train_set = open_images(p, p.train_db_name, p.train_split, truth=True, share=p.label_share, seed=p.label_seed,
                            label_maps=True)
    classes, labelled = dataset.classes if maps is None else train_set.classes, train_set.ids
    named = read_trained(best_path, classes)[1] if best_path.with_name('checkpoint.pth.tar').is_file() else None
    if named is not None and len(named) != len(classes):
        raise UserError(f'{len(named)} classes are named beside {best_path}, and {len(classes)} in {train_set.truth}; '
                        'name all that were trained on in both.')
    model = build_linear_model(p, len(classes))
    if p.sync_batchnorm:
        model = synchronise_batchnorm(model, device)  # before stages are frozen: it makes modules anew
    mean, std = model.backbone.mean, model.backbone.std
    loader = train_loader(p, train_set.transformed(LinearTrainTransform(p.train_size, mean, std, p.border_label)))
    val_loader = evaluation_loader(p, dataset, mean, std, p.num_visualizations)
    if p.train_db_name == p.val_db_name:
        warn_of_shared(dataset.ids, labelled, f'{p.val_db_name} {p.val_split}', f'{p.train_split}, which is trained on')
    groups: Any = [{'params': model.classifier.parameters()}]
    if p.network_lr_factor == 0:
        model.freeze_all_but_classifier()
    else:
        freeze_layers(model.backbone, p.freeze_layers)
        groups.append({'params': model.network_parameters(), 'lr_factor': p.network_lr_factor})
    if p.compile:
        model.compile()
    trainer = Trainer(p, model, device, loader, labelled, groups)
    best = trainer.extra.get('best_miou', -1.0)

    if maps is not None and p.select == 'miou' and dataset.truth != maps:
        log.warning('select: miou takes the best epoch by the ground truth of %s; select: last reads none',
                    p.val_split)
    names = classes if named is None or dataset.truth == maps else named
    if names != classes:
        log.info('The labels have other names beside %s than in %s; those beside the model count', best_path, maps)
    require_known(names, dataset.classes)
    trainer.began_with('label_maps' if maps else 'truth', train_set.digest or train_set.drawn_digest(), train_set.truth)
    if distributed.is_main():
        write_text(best_path.with_name('labelled.txt'), '\n'.join(labelled) + '\n')
        if named is None:  # names of labels are the user's to edit
            write_trained(best_path, task, classes)
    losses = partial(compute_losses, hardest=p.ohem_share if p.loss == 'ohem' else None)
    with trainer.stoppable():
        for epoch in trainer.epochs():
            model.set_train_mode(p.freeze_batchnorm)
            trainer.train_one_epoch(losses)
            with trainer.at_once():
                miou = float(iou_of(validate(model, val_loader, device, dataset.classes, names)).mean())
            if (miou > best or p.select == 'last') and distributed.is_main():
                save_checkpoint(model.state_dict(), best_path)
            best = max(best, miou)
            trainer.writer.add_scalars({'val/miou': 100 * miou}, epoch + 1)
            trainer.finish_epoch(f'mIoU at {p.val_size} px {100 * miou:.2f} (best {100 * best:.2f})', best_miou=best)

    distributed.barrier()  # the best model is written
    load_strict(model, read_weights(best_path))
    if args.crf_postprocess:  # it needs all images as decoded, too many to travel with each validation
        val_loader = evaluation_loader(p, dataset, mean, std, originals=None)
    made = made_with(best_path, fingerprint(model), dataset, p.val_size)
    if maps is not None:
        made |= dict(zip(TRAINED_ON, (str(maps), train_set.digest, p.select), strict=True))
    score(model, val_loader, dataset, names, device, p, TITLES[task], AGREEMENT if dataset.truth == maps else task,
          made, args.crf_postprocess)


if __name__ == '__main__':
    run_script(main)
