"""Clusters as a file: what gives an object of a new image its label, and the names that users give to clusters."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from segmentation.clustering import Whitening, nearest_centre
from utils.run.checkpoint import load_checkpoint, require_finite, save_checkpoint
from utils.run.errors import UserError
from utils.run.files import write_text

NAMES = 'clusters.yml'
BACKGROUND = 'background'
MAX_CLUSTERS = 254  # label maps hold a byte a pixel, 0 is the background and 255 void


@dataclass
class ClusterModel:
    """What kmeans.py found, and the network that it found it with.

    whitening: of prototypes.
    centres: (K, d) in the whitened space.
    labels: (K + 1,) label of the background and of each cluster.
    classes: name of each label; None: names are read from clusters.yml beside the file.
    network: 'backbone', 'model_kwargs', 'pretraining' and 'root_dir' (where its checkpoint is), 'fingerprint' of its
        weights, 'features', 'masks' (those that the clusters were found with), 'min_component' and 'size' (side of
        its input, pixels).
    """
    whitening: Whitening
    centres: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None
    network: dict[str, Any]

    def assign(self, prototypes: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,) the cluster of the nearest centre."""
        return nearest_centre(self.whitening(prototypes), self.centres)

    def label(self, prototypes: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,) label of each object."""
        return self.labels[1 + self.assign(prototypes)]

    def named(self, names: Sequence[str]) -> ClusterModel:
        """With a name for the background and each cluster; clusters of one name become one label, the first's."""
        labels = np.array([names.index(name) for name in names])
        return replace(self, labels=labels, classes=tuple(names))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        arrays = {'mean': self.whitening.mean, 'projection': self.whitening.projection, 'centres': self.centres,
                  'labels': self.labels}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        classes = None if self.classes is None else list(self.classes)
        save_checkpoint({**tensors, 'classes': classes, 'network': self.network}, path)

    @staticmethod
    def holds(checkpoint: dict[str, Any]) -> bool:
        """Whether the contents of a checkpoint file are those of ``save``."""
        return {'centres', 'projection', 'network'} <= checkpoint.keys()

    @classmethod
    def of(cls, checkpoint: dict[str, Any], path: Path) -> ClusterModel:
        """From the contents of the file at ``path``. Raises UserError when its numbers are not finite."""
        mean, projection, centres, labels = (checkpoint[name].numpy()
                                             for name in ('mean', 'projection', 'centres', 'labels'))
        require_finite({'mean': mean, 'projection': projection, 'centres': centres}, path, 'clusters')
        classes = checkpoint['classes']
        return cls(Whitening(mean, projection), centres, labels, None if classes is None else tuple(classes),
                   checkpoint['network'])

    def with_names_beside(self, path: Path) -> ClusterModel:
        """With the names of clusters.yml in the folder of ``path``, unless it has names; placeholders without one."""
        if self.classes is not None:
            return self
        file, count = path.with_name(NAMES), len(self.centres)
        return self.named(read_names(file, count) if file.is_file() else placeholders(count))


def placeholders(count: int) -> list[str]:
    return [BACKGROUND, *(f'cluster_{k}' for k in range(1, count + 1))]


def read_names(path: Path, count: int) -> list[str]:
    """The names of the background and ``count`` clusters.

    Raises:
        UserError: the file does not hold as many names.
    """
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), yaml.BaseLoader)  # all text: 'no' and 'on' are names
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'{path} is not valid YAML ({str(error).splitlines()[0]}); mend it.') from error
    names = content.get('classes') if isinstance(content, dict) else None
    if (not isinstance(names, list) or len(names) != count + 1
            or any(isinstance(name, (dict, list)) or not name for name in names)):
        raise UserError(f'{path} must hold "classes:" with {count + 1} names, {BACKGROUND} first and then one a '
                        f'cluster; mend it, or delete it to have {count} placeholders.')
    return names


def write_names(path: Path, sizes: Sequence[int]) -> None:
    """Placeholders for the user to edit; ``sizes``: objects in each cluster."""
    first, *others = placeholders(len(sizes))
    lines = ['# Names of the clusters, for you to edit: clusters/ shows what is in each. Clusters of one name become',
             f'# one class, and one that is named {BACKGROUND} goes into it. segmentation/predict.py reads this file.',
             'classes:', f'- {first}']
    lines += [f'- {name}  # objects: {size}' for name, size in zip(others, sizes, strict=True)]
    write_text(path, '\n'.join(lines) + '\n')


def put_names_aside(path: Path) -> Path | None:
    """Rename a file of names to one that is free, so that nothing a user wrote is lost; returns its new path.

    None, and nothing is done, where there is no file or it holds placeholders alone.
    """
    if not path.is_file():
        return None
    try:
        names = yaml.safe_load(path.read_text(encoding='utf-8'))['classes']
        if names == placeholders(len(names) - 1):
            return None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        pass  # a user was there
    free = (path.with_stem(f'{path.stem}_before_{number}') for number in itertools.count(1))
    return path.replace(next(place for place in free if not place.exists()))


def same_clusters(path: Path, model: ClusterModel) -> bool:
    """Whether a file holds the clusters of ``model`` already, so that the names given to them still hold.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return False
    checkpoint = load_checkpoint(path)
    if not ClusterModel.holds(checkpoint):
        raise UserError(f'{path} holds no clusters, and the names in {NAMES} belong to those it had; move both away.')
    before = ClusterModel.of(checkpoint, path)
    return before.centres.shape == model.centres.shape and np.allclose(before.centres, model.centres, atol=1e-6)
