"""Show what an embedding knows: pictures of a finished run of kmeans.py or retrieval.py, and a page of them.

    python segmentation/visualize.py --run results/kmeans_VOCSegmentation_supervised_saliency \\
        --method tsne --images 12

Reads the saved prototypes and, for pixels and masks, the checkpoint and the data set of the run. Writes
embedding.png (the three main directions of the pixel embeddings as red, green and blue), map.png (prototypes in two
dimensions), neighbours.png (objects beside the nearest ones of other images), clusters/ (the most typical objects of
each cluster, for a run of kmeans.py) and report.html.
"""
from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data.folder import ImageSet
from data.loaders import collate, evaluation_loader, has_ground_truth, unlabelled_loader
from models.build import build_prototype_model
from segmentation.neighbours import crop_object, evenly, fit
from segmentation.prototype_map import METHODS, POINTS, draw_map, project, spread
from segmentation.saved import ObjectFinder, SavedObjects, read_objects
from utils.config.cli import ArgumentParser
from utils.config.load import Config
from utils.config.saved import read_config
from utils.report import page
from utils.report.pictures import PART, montage, panel, pca_colours, thumbnail
from utils.report.plots import to_image
from utils.run.devices import DEVICES, pick_device, to_device
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.precision import allow_tf32
from utils.run.script import run_script

ROWS, NEIGHBOURS = 12, 5  # of neighbours.png
TYPICAL, COLUMNS = 12, 6  # objects of a cluster, and in a row


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--run', type=Path, required=True, help='output directory of kmeans.py or retrieval.py')
    parser.add_argument('--output', type=Path, help='folder for the pictures (default: visualize/ in that of the run)')
    parser.add_argument('--method', choices=METHODS, default='pca', help='how the map lays prototypes out')
    parser.add_argument('--images', type=int, default=12, help='images in embedding.png')
    parser.add_argument('--thumbnails', type=int, default=120, help='objects drawn in the map, at most')
    parser.add_argument('--seed', type=int, default=0, help='of t-SNE and of the choice of thumbnails')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where the network runs')
    args = parser.parse_args(argv)
    for name, value in (('--images', args.images), ('--thumbnails', args.thumbnails)):
        if value < 1:
            raise UserError(f'{name} is {value}; give 1 or more.')
    return args


def config_of(run: Path) -> Any:
    """The config that a run left. Raises UserError if there is none, or it is damaged."""
    content = read_config(run)
    if content is None:
        raise UserError(f'{run}/config.yml does not exist; give --run the output directory of kmeans.py or '
                        'retrieval.py.')
    return Config(content)


def open_images(p: Any, memory: bool, model: Any) -> ImageSet:
    """The images that the objects of a run are of."""
    db_name, split = (p.memory_db_name, p.memory_split) if memory else (p.val_db_name, p.val_split)
    masks = None if p.saliency == 'network' else p.saliency
    open_split = evaluation_loader if has_ground_truth(p, db_name) else unlabelled_loader
    return open_split(p, db_name, split, model.backbone.mean, model.backbone.std, masks)[1]  # type: ignore[operator]


def draw_embedding(model: Any, dataset: ImageSet, features: str, count: int, device: torch.device) -> Image.Image:
    """Some images, each beside its features' three main directions and its ground truth, if it has any."""
    chosen = evenly(np.arange(len(dataset)), count)
    maps = []
    with torch.inference_mode():
        for i in chosen:
            batch = to_device(collate([dataset[i]])['image'], device)
            maps.append(F.normalize(model.maps(batch)[features].float(), dim=1).cpu().numpy())
    panels = []
    for i, colours in zip(chosen, pca_colours(np.concatenate(maps)), strict=True):
        sample = dataset.load(i)
        image = thumbnail(sample['image'], PART)
        size = image.shape[1::-1]
        shown, captions = [image, cv2.resize(colours, size, interpolation=cv2.INTER_LINEAR)], ['image', 'embedding']
        if 'semseg' in sample:
            shown.append(sample['semseg'])
            captions.append('ground truth')
        panels.append(np.array(panel(shown, captions)))
    return montage(panels, 2)


def draw_neighbours(saved: SavedObjects, rows: Sequence[int], crops: dict[int, np.ndarray]) -> Image.Image:
    """A row an object, then the nearest objects of other images, each under its class."""
    strips = []
    for index in rows:
        shown = [index, *saved.nearest(index, NEIGHBOURS)]
        strips.append(np.array(panel([fit(crops[i]) for i in shown], [saved.name(i) for i in shown])))
    return montage(strips, 1)


def cluster_caption(saved: SavedObjects, members: np.ndarray, cluster: int) -> str:
    """'Cluster 3: 40 objects, 80% cat'."""
    labels = saved.labels[members]
    text = f'Cluster {cluster + 1}: {len(members)} objects'
    if (labels < 0).all():
        return text
    most = np.bincount(labels[labels >= 0]).argmax()
    return f'{text}, {np.mean(labels == most):.0%} {saved.classes[most]}'


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, 'PNG')
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    p = config_of(args.run)
    saved = read_objects(args.run)
    if len(saved) < 3 or saved.prototypes.shape[1] < 2:
        raise UserError(f'{args.run} saved {len(saved)} objects of dimension {saved.prototypes.shape[1]}; a map needs '
                        'at least 3 of dimension 2: run it on more images.')
    output = args.output or args.run / 'visualize'
    device = pick_device(args.device)
    allow_tf32(p.get('val_tf32', False))
    model = build_prototype_model(p)
    dataset = open_images(p, saved.clusters is None, model)
    to_device(model, device)
    finder = ObjectFinder(model, dataset, device, p.features, p.saliency == 'network',
                          p.min_component if p.components else None)

    points = np.arange(len(saved))
    if args.method == 'tsne' and len(points) > POINTS:
        points = np.sort(np.random.default_rng(args.seed).choice(points, POINTS, replace=False))
    places, axes = project(saved.prototypes[points], args.method, args.seed)
    drawn = spread(places, args.thumbnails, args.seed)  # of the points
    rows = [int(i) for i in evenly(np.arange(len(saved)), ROWS)]
    members = {} if saved.clusters is None else {int(k): saved.members(k) for k in np.unique(saved.clusters)}
    needed = {*points[drawn].tolist(), *rows, *(int(i) for row in rows for i in saved.nearest(row, NEIGHBOURS)),
              *(int(i) for found in members.values() for i in found[:TYPICAL])}
    crops = {index: crop_object(image, mask) for index, (image, mask) in finder.find(saved, sorted(needed)).items()}

    names = [saved.name(int(i)) for i in points]
    pictures = {
        'map': to_image(partial(draw_map, places, axes, saved.colours()[points], names,
                                {i: crops[points[i]] for i in drawn}, 'class' if saved.labelled else 'cluster')),
        'embedding': draw_embedding(model, dataset, p.features, args.images, device),
        'neighbours': draw_neighbours(saved, rows, crops)}
    sheets = {k: montage([fit(crops[int(i)]) for i in found[:TYPICAL]], COLUMNS) for k, found in members.items()}
    for name, picture in (*pictures.items(), *((f'clusters/cluster_{k + 1}', sheet) for k, sheet in sheets.items())):
        save_image(picture, output / f'{name}.png')
    texts = {'map': ('Map of the prototypes', 'Objects with like embeddings stand near each other; one mean direction '
                     'of the pixels of its mask an object.'),
             'embedding': ('Pixel embeddings as colours', 'The three main directions of all of them as red, green and '
                           'blue.'),
             'neighbours': ('Nearest neighbours', 'A row an object, first, and those of other images whose prototypes '
                            'have the greatest cosine.')}
    truth = page.class_colours(dataset.classes) | page.VOID if 'semseg' in dataset.load(0) else {}
    blocks = [page.pictures(texts[name][0], [(f'{name}.png', png(picture))], texts[name][1],
                            truth if name == 'embedding' else {}) for name, picture in pictures.items()]
    if sheets:
        blocks.append(page.pictures('Clusters, the most typical objects first', [
            (cluster_caption(saved, members[k], k), png(sheet)) for k, sheet in sheets.items()]))
    page.write_page(output, 'What the embedding knows', str(args.run), blocks)
    print(f'Written to {output}: report.html and {len(pictures) + len(sheets)} pictures')


if __name__ == '__main__':
    run_script(main)
