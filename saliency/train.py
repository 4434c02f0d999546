"""Train BASNet on precomputed masks, for example on those of ``saliency/predict.py --method unsupervised``.

    python saliency/train.py --config_env configs/env.yml --config_exp configs/saliency/basnet.yml \\
        --images photos/images --masks photos/saliency_masks

Noisy masks bootstrap themselves (paper, supplementary material): the network learns what they have in common.
Leaves basnet.pth, which predict.py --method basnet takes as --weights.
"""
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

from data.loaders import identity, loader_in_order, open_masks, train_loader
from models.build import initial_weights
from saliency.basnet import BASNet, BASNetSaliency, TrainingView, compute_losses, load_initial_weights
from saliency.sources import validate
from utils.config.cli import ConfigParser
from utils.config.schema import TrainSaliency
from utils.report.results import save_results
from utils.report.run import write_run_report
from utils.run import distributed
from utils.run.checkpoint import save_checkpoint
from utils.run.errors import UserError
from utils.run.script import run_script
from utils.run.setup import start
from utils.run.trainer import Trainer

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, TrainSaliency)
    parser.add_argument('--images', type=Path, help='folder of the images, instead of the key images')
    parser.add_argument('--masks', '--pseudo-labels', type=Path, dest='masks',
                        help='folder of their masks, instead of the key masks')
    args = parser.parse_args(argv)
    given = None if args.images is None or args.masks is None else args.images.resolve().parent
    p = parser.load(args, root_of_data=given)
    below = [str(Path(folder).parent) for folder in (p.images, p.masks) if not Path(folder).is_absolute()]
    device = start(p, args.nproc, __file__, argv, identity(p, *below))
    path = Path(p.output_dir) / 'basnet.pth'
    images = open_masks(p, p.images, p.masks).transformed(TrainingView(p.resize, p.crop, p.flip_probability))
    loader = train_loader(p, images)
    val_loader = None if p.val_images is None else loader_in_order(p, open_masks(p, p.val_images, p['val_masks']))
    if p.pretraining == 'imagenet_moco':
        raise UserError('pretraining: imagenet_moco is a ResNet-50 and BASNet is built on a ResNet-34; choose none, '
                        'imagenet_classification or the path of a ResNet-34 or a BASNet.')
    network, weights = BASNet(), initial_weights(p, 'resnet34')
    if weights is not None:
        load_initial_weights(network, weights)
    if p.compile:
        network.compile()
    trainer = Trainer(p, network, device, loader, images.ids)
    trainer.began_with('masks', images.drawn_digest(), images.masks)
    source = BASNetSaliency(network, device, p.resize, p.val_tf32)

    with trainer.stoppable():
        for epoch in trainer.epochs():
            network.train()
            trainer.train_one_epoch(compute_losses)
            scores: dict[str, float] = {}
            if val_loader is not None:
                with trainer.at_once():
                    scores = validate(source, val_loader)
                trainer.writer.add_scalars({f'val/{name}': value for name, value in scores.items()}, epoch + 1)
            trainer.finish_epoch(', '.join(f'{name} {value:.2f}' for name, value in scores.items()), figures=scores)

    results = {}
    if distributed.is_main():
        save_checkpoint(network.state_dict(), path)
        if trainer.extra.get('figures'):
            results = save_results({'saliency': trainer.extra['figures']}, path.parent)
    write_run_report(p, 'Training of BASNet', results)
    log.info('Training is complete: %s', path)


if __name__ == '__main__':
    run_script(main)
