"""Show what an embedding knows: pictures of a finished run of kmeans.py or retrieval.py, and a page of them.

    python segmentation/visualize.py --run results/kmeans_VOCSegmentation_supervised_saliency \\
        --method tsne --images 12

Reads the saved prototypes and masks, the images of the data set and, for embedding.png, the checkpoint. Writes
embedding.png (the three main directions of the pixel embeddings as red, green and blue), map.png (prototypes in two
dimensions), neighbours.png (objects beside the nearest ones of other images), clusters/ (the most typical objects of
each cluster, for a run of kmeans.py) and report.html.
"""
import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data.image_set import ImageSet
from data.label_maps import VOID
from data.loaders import open_images
from data.transforms import EvaluationTransform, resize_mask
from models.build import build_prototype_model
from models.weights import fingerprint
from segmentation.feature_index import search
from segmentation.figures import METHODS, POINTS, crop_object, draw_map, draw_rows, evenly, fit, project, spread
from segmentation.objects import DAMAGED, KEPT, MASKS, read_masks, unpack
from utils.config.cli import ArgumentParser, at_least
from utils.config.load import Config
from utils.config.reader import read_config
from utils.config.schema import DEVICES, Prototypes
from utils.report import page
from utils.report.pictures import PART, montage, panel, pca_colours, thumbnail, to_image
from utils.report.results import read_results
from utils.run.checkpoint import read_arrays
from utils.run.devices import allow_tf32, pick_device, to_device
from utils.run.errors import UserError
from utils.run.files import save_image
from utils.run.script import run_script

ROWS, NEIGHBOURS = 12, 5  # of neighbours.png
TYPICAL, COLUMNS = 12, 6  # objects of a cluster, and in a row
NO_CLASS = 'no class'  # of an object whose mask covers ignored pixels alone
TEXTS = (
    ('map', 'Map of the prototypes', 'Objects with like embeddings, mean directions over their masks, stand near.'),
    ('embedding', 'Pixel embeddings as colours', 'Their three main directions as red, green and blue.'),
    ('neighbours', 'Nearest neighbours', 'A row an object, first, and those of other images of greatest cosine.'))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument('--run', type=Path, required=True, help='output directory of kmeans.py or retrieval.py')
    parser.add_argument('--output', type=Path, help='folder for the pictures (default: visualize/ in that of the run)')
    parser.add_argument('--method', choices=METHODS, default='pca', help='how the map lays prototypes out')
    parser.add_argument('--images', type=at_least(1), default=12, help='images in embedding.png')
    parser.add_argument('--thumbnails', type=at_least(1), default=120, help='objects drawn in the map, at most')
    parser.add_argument('--seed', type=int, default=0, help='of t-SNE and of the choice of thumbnails')
    parser.add_argument('--device', choices=DEVICES, default='auto', help='where the network runs')
    return parser.parse_args(argv)


class SavedObjects(NamedTuple):
    """N objects of a run that have a mask."""
    prototypes: np.ndarray  # (N, D) float32 of unit length
    images: np.ndarray  # (N,) the ID of each one's image
    labels: np.ndarray  # (N,) class ids, -1 where unknown
    classes: tuple[str, ...]
    clusters: np.ndarray | None  # (N,) cluster of each, from 0; None for a feature index
    masks: list[bytes] | None  # packed; None if the run kept none

    def captions(self) -> tuple[list[str], np.ndarray, str]:
        """Name and palette entry of each object, and what they are of: 'class', or where none is known 'cluster'."""
        if self.clusters is not None and (self.labels < 0).all():
            return [f'cluster {k + 1}' for k in self.clusters], self.clusters + 1, 'cluster'
        names = [self.classes[k] if k >= 0 else NO_CLASS for k in self.labels]
        return names, np.where(self.labels < 0, VOID, self.labels), 'class'

    def members(self, cluster: int) -> np.ndarray:
        """The objects of a cluster, the most typical (nearest to their mean direction) first."""
        found = np.flatnonzero(self.clusters == cluster)
        return found[(-(self.prototypes[found] @ self.prototypes[found].sum(0))).argsort(kind='stable')]


def read_objects(run: Path) -> SavedObjects:
    """The objects in prototypes.npz of kmeans.py or memory.npz of retrieval.py, and the masks beside it.

    Raises UserError if there is neither, a file is damaged, or the masks are of other objects.
    """
    path = next((run / name for name in ('prototypes.npz', 'memory.npz') if (run / name).is_file()), None)
    if path is None:
        raise UserError(f'{run} holds neither prototypes.npz of kmeans.py nor memory.npz of retrieval.py; give the '
                        'output directory of one of them.')
    clustered = path.name == 'prototypes.npz'
    names = ('ids', 'image', 'clusters') if clustered else ('images',)
    file = read_arrays(path, ('prototypes', 'labels', 'classes', *names), DAMAGED)
    prototypes, masks = file['prototypes'], read_masks(run / MASKS, file['prototypes'])
    images = file['ids'][file['image']] if clustered else file['images']
    seen = np.flatnonzero(prototypes.any(1))
    return SavedObjects(prototypes[seen], images[seen], file['labels'][seen], tuple(map(str, file['classes'])),
                        file['clusters'][seen] if clustered else None, masks and [masks[i] for i in seen])


def crop_objects(saved: SavedObjects, dataset: ImageSet, indices: Iterable[int]) -> dict[int, np.ndarray]:
    """{object: its outlined crop (h, w, 3) uint8, or without masks its image}. Raises UserError for a lost image."""
    numbers, crops = {name: i for i, name in enumerate(dataset.ids)}, {}
    for name, members in groupby(sorted(set(indices)), key=lambda i: str(saved.images[i])):  # saved image by image
        if name not in numbers:
            raise UserError(f'image {name} of the saved run is not in the split it was made of; restore it.')
        image = dataset.load(numbers[name])['image']
        for index in members:
            crops[index] = thumbnail(image, PART) if saved.masks is None else crop_object(
                image, resize_mask(unpack(saved.masks[index]), *image.shape[1::-1]))
    return crops


@torch.inference_mode()
def draw_embedding(p: Prototypes, model: Any, dataset: ImageSet, count: int, device: torch.device) -> Image.Image:
    """Some images, each beside its features' three main directions and its ground truth, if it has any."""
    prepare = EvaluationTransform(p.val_size, model.backbone.mean, model.backbone.std)
    samples, panels = [dataset.load(i) for i in evenly(np.arange(len(dataset)), count)], []
    maps = [model.maps(to_device(prepare(sample)['image'][None], device))[p.features].cpu() for sample in samples]
    directions = F.normalize(torch.cat(maps).float(), dim=1).numpy()
    for sample, colours in zip(samples, pca_colours(directions), strict=True):
        image = thumbnail(sample['image'], PART)
        parts = [image, cv2.resize(colours, image.shape[1::-1]), *([sample['semseg']] if 'semseg' in sample else [])]
        panels.append(np.array(panel(parts, ('image', 'embedding', 'ground truth')[:len(parts)])))
    return montage(panels, 2)


def cluster_caption(cluster: int, names: Sequence[str], kind: str) -> str:
    """'Cluster 3: 40 objects, 80% cat', of the names of its objects, if they are those of classes."""
    known = Counter(name for name in names if name != NO_CLASS).most_common(1) if kind == 'class' else []
    return ', '.join([f'Cluster {cluster + 1}: {len(names)} objects',
                      *(f'{count / len(names):.0%} {name}' for name, count in known)])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    config = read_config(args.run)
    if config is None:
        raise UserError(f'{args.run}/config.yml does not exist; give --run the output directory of kmeans.py or '
                        'retrieval.py.')
    p: Any = Config(config)
    saved = read_objects(args.run)
    count, dim = saved.prototypes.shape
    if count < 3 or dim < 2:
        raise UserError(f'{args.run} saved {count} objects of dimension {dim}, and a map needs 3 of dimension 2: run '
                        'it on more images.')
    if saved.masks is None:
        print(f'No {MASKS}: whole images are shown in place of objects; runs on at most {KEPT} images write it')
    output = args.output or args.run / 'visualize'
    device = pick_device(args.device)
    allow_tf32(p.get('val_tf32', False))
    torch.manual_seed(p.seed)  # as in the run, for random weights
    model = to_device(build_prototype_model(p), device)
    made = {entry['made_with'].get('fingerprint') for entry in read_results(args.run).values() if 'made_with' in entry}
    if made and fingerprint(model) not in made:
        raise UserError(f'{args.run} was made with other weights than {p.pretraining} holds now; run its script again.')
    name, split = (p.memory_db_name, p.memory_split) if saved.clusters is None else (p.val_db_name, p.val_split)
    dataset = open_images(p, name, split, None)

    points = np.arange(count)
    if args.method == 'tsne' and count > POINTS:
        points = np.sort(np.random.default_rng(args.seed).choice(points, POINTS, replace=False))
    places, axes = project(saved.prototypes[points], args.method, args.seed)
    drawn = spread(places, args.thumbnails, args.seed)  # of the points
    first = evenly(np.arange(count), ROWS)
    near = search(saved.prototypes[first], saved.prototypes, NEIGHBOURS, saved.images[first], saved.images)
    rows = [[index, *others[others >= 0]] for index, others in zip(first, near, strict=True)]
    members = {} if saved.clusters is None else {int(k): saved.members(k) for k in np.unique(saved.clusters)}
    crops = crop_objects(saved, dataset, chain(points[drawn], *rows, *(found[:TYPICAL] for found in members.values())))

    names, colours, kind = saved.captions()
    pictures = {
        'map': to_image(partial(draw_map, places, axes, colours[points], [names[i] for i in points],
                                {i: crops[points[i]] for i in drawn}, kind)),
        'embedding': draw_embedding(p, model, dataset, args.images, device),
        'neighbours': draw_rows([[(crops[i], names[i]) for i in row] for row in rows])}
    pictures |= {f'clusters/cluster_{k + 1}': montage([fit(crops[i]) for i in found[:TYPICAL]], COLUMNS)
                 for k, found in members.items()}
    for old in (output / 'clusters').glob('cluster_*.png'):
        old.unlink()
    for name, picture in pictures.items():
        save_image(picture, output / f'{name}.png')
    truth = {} if dataset.truth is None else page.class_colours(dataset.classes) | page.IGNORED
    blocks = [page.pictures(title, [(f'{name}.png', output / f'{name}.png')], text,
                            truth if name == 'embedding' else {}) for name, title, text in TEXTS]
    blocks.append(page.pictures('Clusters, the most typical objects first', [
        (cluster_caption(k, [names[i] for i in found], kind), output / f'clusters/cluster_{k + 1}.png')
        for k, found in members.items()]))
    page.write_page(output, 'What the embedding knows', str(args.run), blocks)
    print(f'Written to {output}: report.html and {len(pictures)} pictures')


if __name__ == '__main__':
    run_script(main)
