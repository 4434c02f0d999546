"""Segment retrieval: each object takes the class of its nearest neighbour in a labelled memory.

    python segmentation/retrieval.py --config_env configs/env.yml \\
        --config_exp configs/retrieval/retrieval_VOCSegmentation_unsupervised_saliency.yml

Votes and scores count pixels at val_size x val_size. Where ignore_classes is set, one run gives two results:
'retrieval' on all classes, printed first, and 'retrieval_<n>' on the n that are left. With --memory it takes the
memory.npz that an earlier run left in its output directory, whatever its ignore_classes.
"""
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import numpy as np

from data.image_set import ImageSet
from data.images import read_image
from data.loaders import evaluation_loader, open_images
from data.voc import check_names
from models.build import build_prototype_model, prototype_network
from segmentation.feature_index import FeatureIndex, build_index, load_index
from segmentation.figures import crop_object, draw_rows, evenly, fit
from segmentation.metrics import iou_of, made_with_network, warn_of_shared
from segmentation.objects import KEPT, EmbeddedSplit, embed_split
from utils.config.cli import ConfigParser
from utils.config.paths import find_file
from utils.config.schema import Retrieval
from utils.report.results import iou_entry, log_iou, save_results
from utils.report.run import NEIGHBOURS, NEIGHBOURS_FILE, write_run_report
from utils.run import distributed
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.log import warn_of_failure
from utils.run.script import run_script
from utils.run.setup import start

log = logging.getLogger(__name__)
SHOWN = 5  # neighbours in a row of neighbours.png, or more if more vote


def protocols_of(classes: Sequence[str], ignored: Sequence[str]) -> dict[str, tuple[list[int], list[int]]]:
    """{task: ids of the classes that are ignored, in the memory and in val, and of those in the mean}.

    'retrieval' is on all classes and, where some are ignored, 'retrieval_<n>' on the n others, without background.
    Raises UserError for a name that is no class, or if no class is left.
    """
    check_names(ignored, classes, 'ignore_classes')
    protocols: dict[str, tuple[list[int], list[int]]] = {'retrieval': ([], list(range(len(classes))))}
    if ignored:
        scored = [i for i, name in enumerate(classes) if i > 0 and name not in ignored]
        if not scored:
            raise UserError('ignore_classes leaves no class to retrieve; take some out.')
        protocols[f'retrieval_{len(scored)}'] = [classes.index(name) for name in ignored], scored
    return protocols


def draw_neighbours(p: Retrieval, val: EmbeddedSplit, val_set: ImageSet, predicted: np.ndarray, index: FeatureIndex,
                    own: np.ndarray | None) -> list[tuple[str, Path]]:
    """Write ``neighbours.png``, if there is anything to draw and the index's images are here; its name and path.

    A row an object: its crop under its true and its predicted class, then the images of its neighbours.
    """
    path = Path(p.output_dir) / NEIGHBOURS_FILE
    path.unlink(missing_ok=True)  # of an earlier run
    shown = evenly(np.flatnonzero(val.prototypes.any(1) & val.inside.any(1)), p.num_visualizations)
    images = Path(p.db_root) / index.db_name / 'images'
    if not len(shown) or not images.is_dir():
        log.info('No %s: %s', NEIGHBOURS_FILE, f'no folder {images}' if len(shown) else 'no object to draw')
        return []
    near = index.search(val.prototypes[shown], max(SHOWN, p.num_neighbours), None if own is None else own[shown])
    rows = []
    for i, neighbours in zip(shown, near, strict=True):
        image = read_image(val_set.image_path(int(val.image[i])))
        caption = f'{index.classes[val.inside[i].argmax()]} > {index.classes[predicted[i]]}'
        rows.append([(crop_object(image, val.mask(i)), caption)] + [
            (fit(read_image(images / f'{index.images[k]}.jpg')), index.classes[index.labels[k]])
            for k in neighbours[neighbours >= 0]])
    save_image(draw_rows(rows), path)
    return [(NEIGHBOURS_FILE, path)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ConfigParser(__doc__, Retrieval)
    parser.add_argument('--memory', metavar='PATH', help='memory.npz of an earlier run, used instead of memory_split')
    args = parser.parse_args(argv)
    p = parser.load(args)
    device = start(p, args.nproc, __file__, argv)

    masks = None if p.saliency == 'network' else p.saliency
    val_set = open_images(p, p.val_db_name, p.val_split, True, masks)
    model = to_device(build_prototype_model(p), device)
    classes, protocols = val_set.classes, protocols_of(val_set.classes, p.ignore_classes)
    network = prototype_network(p, model)

    def embed(images: ImageSet, keep_masks: bool) -> EmbeddedSplit:
        loader = evaluation_loader(p, images, model.backbone.mean, model.backbone.std)
        return embed_split(model, loader, device, len(classes), p.features, masks is None, keep_masks,
                           p.min_component if p.components else None, p.val_size).require_masks()

    if p.memory is not None:
        index = load_index(find_file(p.memory, p.root_dir), classes, network)
    else:
        dataset = open_images(p, p.memory_db_name, p.memory_split, True, masks, skip=True)
        if dataset.classes != classes:
            raise UserError(f'{p.memory_db_name} and {p.val_db_name} have different classes; retrieve within one list.')
        made_by = f'{p.features} of {p.pretraining} on {p.memory_db_name} {p.memory_split}, masks: {p.saliency}'
        index = build_index(embed(dataset, len(dataset) <= KEPT), dataset.ids, classes, p.memory_db_name, made_by,
                            network)
        if distributed.is_main():
            index.save(Path(p.output_dir) / 'memory.npz')
    log.info('The memory holds %d objects of dimension %d (%s)', len(index), index.prototypes.shape[1], index.made_by)
    indices = {task: index.without(ignored) for task, (ignored, _) in protocols.items()}
    val = embed(val_set, True)
    if not distributed.leave():
        return
    own = np.array(val_set.ids)[val.image] if index.db_name == p.val_db_name else None
    if own is not None:
        warn_of_shared(val_set.ids, index.images, f'{p.val_db_name} {p.val_split}', 'the memory; an object takes no '
                       'class of its own image')
    results, confusions = {}, {}
    predicted = {task: found.vote(found.search(val.prototypes, p.num_neighbours, own))
                 for task, found in indices.items()}
    for task, (ignored, scored) in protocols.items():
        confusion = confusions[task] = val.confusion(predicted[task], len(classes), ignored)
        log.info('%s: %d classes ignored, the mean of %d%s; %d objects in the memory', task, len(ignored), len(scored),
                 ' without background' if ignored else '', len(indices[task]))
        entry = iou_entry(iou_of(confusion)[scored], [classes[i] for i in scored], confusion.sum(1)[scored] > 0)
        log_iou(entry)
        results[task] = {**entry, 'memory': len(indices[task]), 'num_neighbours': p.num_neighbours,
                         'made_with': {**made_with_network(network, val_set), 'memory': index.made_by}}
    results, drawn = save_results(results, Path(p.output_dir)), []
    with warn_of_failure(NEIGHBOURS_FILE):
        drawn = draw_neighbours(p, val, val_set, predicted['retrieval'], index, own)
    write_run_report(p, 'Retrieval', results, classes, confusions, {NEIGHBOURS: drawn})


if __name__ == '__main__':
    run_script(main)
