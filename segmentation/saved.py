"""The objects that kmeans.py and retrieval.py save, and their masks, found again in their images."""
from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.folder import ImageSet
from data.loaders import collate
from data.transforms import resize_mask
from data.voc import VOID
from models.segmentation import BackboneModel, ContrastiveSegmentationModel
from segmentation.objects import find_objects
from utils.run.checkpoint import require_finite
from utils.run.devices import to_device
from utils.run.errors import UserError
from utils.run.log import progress

BATCH = 8
SAME = 0.99  # cosine of an object's saved prototype and the one that is found again


@dataclass
class SavedObjects:
    """N objects of a run that have a mask.

    prototypes: (N, D) float32 of unit length.
    images: (N,) the ID of each one's image.
    labels: (N,) class ids, -1 where unknown.
    classes: their names.
    clusters: (N,) cluster of each, from 0; None for a memory.
    """
    prototypes: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    clusters: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether any object has a class."""
        return bool((self.labels >= 0).any())

    def name(self, index: int) -> str:
        """The class of an object, or where no class is known its cluster."""
        if self.labels[index] >= 0:
            return self.classes[self.labels[index]]
        return 'no class' if self.labelled or self.clusters is None else f'cluster {self.clusters[index] + 1}'

    def colours(self) -> np.ndarray:
        """(N,) entry of the palette of each: its class, void without one; where no class is known its cluster + 1."""
        if self.labelled or self.clusters is None:
            return np.where(self.labels < 0, VOID, self.labels)
        return self.clusters + 1

    def nearest(self, index: int, count: int) -> np.ndarray:
        """The objects of other images whose prototypes have the greatest cosine, the nearest first."""
        order = (-(self.prototypes @ self.prototypes[index])).argsort(kind='stable')
        return order[self.images[order] != self.images[index]][:count]

    def members(self, cluster: int) -> np.ndarray:
        """The objects of a cluster, the most typical (nearest to their mean direction) first."""
        found = np.flatnonzero(self.clusters == cluster)
        return found[(-(self.prototypes[found] @ self.prototypes[found].sum(0))).argsort(kind='stable')]


def read_objects(run: Path) -> SavedObjects:
    """Read prototypes.npz of kmeans.py or memory.npz of retrieval.py, whichever the run left; as data, never as code.

    Raises:
        UserError: there is neither, or it is damaged or of an earlier version.
    """
    for name in ('prototypes.npz', 'memory.npz'):
        path = run / name
        if not path.is_file():
            continue
        try:
            with np.load(path, allow_pickle=False) as file:
                images = file['ids'][file['image']] if name == 'prototypes.npz' else file['images']
                saved = SavedObjects(file['prototypes'], images, file['labels'], tuple(map(str, file['classes'])),
                                     file['clusters'] if name == 'prototypes.npz' else None)
                require_finite({'prototypes': saved.prototypes}, path, 'values')
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f'{path} is damaged or of an earlier version; run its script again.') from error
        seen = saved.prototypes.any(1)
        return SavedObjects(saved.prototypes[seen], saved.images[seen], saved.labels[seen], saved.classes,
                            None if saved.clusters is None else saved.clusters[seen])
    raise UserError(f'{run} holds neither prototypes.npz of kmeans.py nor memory.npz of retrieval.py; give the output '
                    'directory of one of them.')


class ObjectFinder:
    """Finds the masks of saved objects again, with the network that they were saved with.

    Args:
        dataset: the images, prepared for the network, with 'sal' unless the network predicts the masks.
        features, from_network, min_component: as ``find_objects`` has them.
    """

    def __init__(self, model: ContrastiveSegmentationModel | BackboneModel, dataset: ImageSet, device: torch.device,
                 features: str, from_network: bool, min_component: float | None) -> None:
        self.model, self.dataset, self.device = model, dataset, device
        self.features, self.from_network, self.min_component = features, from_network, min_component
        self.number = {name: i for i, name in enumerate(dataset.ids)}

    def find(self, saved: SavedObjects, indices: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """{object: (image (H, W, 3) uint8, mask (H, W) bool)} at the images' own sizes.

        Raises:
            UserError: an image is not in the data set, or the network makes other objects of it.
        """
        of_image: dict[str, list[int]] = {}
        for index in indices:
            of_image.setdefault(str(saved.images[index]), []).append(index)
        missing = [name for name in of_image if name not in self.number]
        if missing:
            raise UserError(f'image {missing[0]} of the saved run is not in the split it was made of; restore it.')
        names, found = list(of_image), {}
        for start in progress(range(0, len(names), BATCH), 'objects'):
            chunk = names[start:start + BATCH]
            batch: dict[str, Any] = collate([self.dataset[self.number[name]] for name in chunk])
            objects = find_objects(self.model, to_device(batch['image'], self.device), self.features,
                                   None if self.from_network else batch['sal'], self.min_component)
            for name, of_this, shape in zip(chunk, objects, batch['shape'], strict=True):
                image = self.dataset.load(self.number[name])['image']
                prototypes = of_this.prototypes.float().cpu().numpy()
                for index in of_image[name]:
                    cosines = prototypes @ saved.prototypes[index]
                    if not len(cosines) or cosines.max() < SAME:
                        raise UserError(f'the network finds another object in image {name} than the run saved; its '
                                        'checkpoint or masks have changed since: run the script that saved it again.')
                    mask = of_this.ids == cosines.argmax() + 1
                    found[index] = image, resize_mask(mask.astype(np.uint8), shape[1], shape[0]).astype(bool)
        return found
