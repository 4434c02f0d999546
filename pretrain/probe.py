"""What K-means makes of the embedding while it is being trained, on a few labelled images."""
from __future__ import annotations

import logging

import numpy as np
import torch

from data.transforms import resize_mask
from data.voc import VOCSegmentation
from models.prototypes import weighted_prototypes
from models.segmentation import ContrastiveSegmentationModel, resize
from pretrain.panels import THRESHOLD, observed
from segmentation.clustering import Whitening, cluster_confusion, kmeans, match_clusters, score_clusters
from segmentation.metrics import confusion_matrix
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.log import MetricsWriter
from utils.run.precision import Precision

log = logging.getLogger(__name__)
BATCH = 8


class Probe:
    """The protocol of segmentation/kmeans.py on a subset: one run, as many clusters as classes without background.

    Args:
        dataset: images with ground truth, resized for the network.
        count: images taken, spread over all of them.
        seed: of PCA and K-means.

    Raises:
        UserError: there are fewer images than clusters.
    """

    def __init__(self, dataset: VOCSegmentation, count: int, precision: Precision, seed: int,
                 compiled: bool = False) -> None:
        self.dataset, self.precision, self.seed, self.compiled = dataset, precision, seed, compiled
        self.chosen = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset)))})
        self.clusters = len(dataset.classes) - 1
        if len(self.chosen) < self.clusters:
            raise UserError(f'the probe has {len(self.chosen)} images for {self.clusters} clusters; raise '
                            'probe_images, or choose a larger probe_split.')

    def measure(self, writer: MetricsWriter, model: ContrastiveSegmentationModel, epoch: int) -> None:
        """Log the mIoU, in per cent, in the main process; the model stays as it is. Epochs count from 0."""
        if not distributed.is_main():
            return
        prototypes, inside, outside = [], [], []
        with observed(model, self.compiled):
            for start in range(0, len(self.chosen), BATCH):
                samples = [self.dataset[i] for i in self.chosen[start:start + BATCH]]
                images = self.precision.to_device(torch.stack([sample['image'] for sample in samples]))
                maps = model.maps(images)
                scores = resize(maps['saliency'], images.shape[-2:])[:, 0]
                masks = scores > THRESHOLD
                prototypes.append(weighted_prototypes(maps['embedding'], masks * scores).float().cpu().numpy())
                for sample, mask in zip(samples, masks.to(torch.uint8).cpu().numpy(), strict=True):
                    semseg = sample['semseg']
                    counts = confusion_matrix(semseg, resize_mask(mask, semseg.shape[1], semseg.shape[0]),
                                              self.clusters + 1, 2)
                    outside.append(counts[:, 0])
                    inside.append(counts[:, 1])
        miou = self._score(np.concatenate(prototypes), np.stack(inside), np.stack(outside))
        writer.add_scalars({'probe/mIoU': miou}, epoch + 1)
        log.info('Probe: K-means mIoU of %d images is %.2f', len(self.chosen), miou)

    def _score(self, prototypes: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
        ids = np.zeros(len(prototypes), np.int64)  # of images without any mask
        if prototypes.any():
            ids = kmeans(Whitening.fit(prototypes, self.seed)(prototypes), self.clusters, self.seed).ids
        confusion = cluster_confusion(inside, outside, ids, self.clusters)
        return 100 * score_clusters(confusion, match_clusters(confusion)).scalars['mIoU']
