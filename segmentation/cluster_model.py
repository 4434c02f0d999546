"""Clusters as a file: what gives an object of a new image its label, and the names that users give to clusters."""
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.label_maps import read_names
from segmentation.clustering import BACKGROUND, Whitening, nearest_centre, placeholders
from utils.run.checkpoint import load_checkpoint, require_finite, save_checkpoint
from utils.run.errors import UserError
from utils.run.files import set_aside, write_text

log = logging.getLogger(__name__)
CLUSTERS, NAMES = 'clusters.pth.tar', 'clusters.yml'
ARRAYS = 'mean', 'projection', 'centres', 'labels'
NETWORK = 'backbone', 'model_kwargs', 'features', 'size', 'pretraining', 'root_dir', 'fingerprint'


@dataclass
class ClusterModel:
    """What kmeans.py found, and the network that it found it with."""
    whitening: Whitening  # of prototypes
    centres: np.ndarray  # (K, d) in the whitened space
    labels: np.ndarray  # (K + 1,) label of the background and of each cluster
    classes: tuple[str, ...] | None  # name of each label; None: names are read from clusters.yml beside the file
    network: Mapping[str, Any]  # see ``models.build.prototype_network``

    def label(self, prototypes: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,) label of each object: that of the nearest centre."""
        return self.labels[1 + nearest_centre(self.whitening(prototypes), self.centres)[0]]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        arrays = self.whitening.mean, self.whitening.projection, self.centres, self.labels
        save_checkpoint({**{name: torch.tensor(array) for name, array in zip(ARRAYS, arrays, strict=True)},
                         'classes': self.classes and list(self.classes), 'network': dict(self.network)}, path)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: Path) -> 'ClusterModel | None':
        """From the contents of ``path``; None if ``save`` wrote none. Raises UserError for a part of it, nan or inf."""
        if not {*ARRAYS, 'classes', 'network'} <= checkpoint.keys():
            return None
        if not all(map(torch.is_tensor, map(checkpoint.get, ARRAYS))) or not {*NETWORK} <= {*checkpoint['network']}:
            raise UserError(f'{path} must hold the tensors {", ".join(ARRAYS)}, and of its network '
                            f'{", ".join(NETWORK)}; run kmeans.py again.')
        arrays = {name: checkpoint[name].numpy() for name in ARRAYS}
        require_finite(arrays, path, 'clusters')
        mean, projection, centres, labels = arrays.values()
        classes = checkpoint['classes']
        return cls(Whitening(mean, projection), centres, labels, classes and tuple(classes), checkpoint['network'])

    def with_names_beside(self, path: Path) -> 'ClusterModel':
        """Without classes: with the names of clusters.yml beside ``path``, or placeholders; one name is one label."""
        if self.classes is not None:
            return self
        count = len(self.centres)
        names = read_names(path.with_name(NAMES), count + 1) or placeholders(count)
        return replace(self, labels=np.array([names.index(name) for name in names]), classes=tuple(names))


def renew_names(folder: Path, model: ClusterModel, sizes: Sequence[int]) -> None:
    """Write placeholders for the user to edit, unless the names in ``folder`` are those of the same clusters.

    ``sizes``: objects in each. Names of other clusters are moved. Raises UserError if nobody can tell whose they are.
    """
    names, clusters = folder / NAMES, folder / CLUSTERS
    if names.is_file() and clusters.is_file():
        before = ClusterModel.of(load_checkpoint(clusters), clusters)
        if before is None:
            raise UserError(f'{clusters} holds no clusters, and the names in {NAMES} belong to those it had; move both '
                            'away.')
        if before.centres.shape == model.centres.shape and np.allclose(before.centres, model.centres, atol=1e-6):
            return
    if names.is_file() and not _untouched(names):
        log.info('The clusters are not those of before: their names are now in %s', set_aside(names))
    first, *others = placeholders(len(sizes))
    lines = ['# Names of the clusters, for you to edit: clusters/ shows what is in each. Clusters of one name become',
             f'# one class, and one that is named {BACKGROUND} goes into it. segmentation/predict.py reads this file.',
             'classes:', f'- {first}']
    lines += [f'- {name}  # objects: {size}' for name, size in zip(others, sizes, strict=True)]
    write_text(names, '\n'.join(lines) + '\n')


def _untouched(path: Path) -> bool:
    with suppress(UserError):
        names = read_names(path) or ()
        return list(names) == placeholders(len(names) - 1)
    return False
