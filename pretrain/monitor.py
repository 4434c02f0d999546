"""What training shows of itself, image grids and online K-means; it goes on in the same bits with them and without."""
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.image_set import ImageSet
from data.loaders import collate
from data.transforms import EvaluationTransform, denormalize
from models.segmentation import ContrastiveSegmentationModel
from segmentation.clustering import cluster, cluster_confusion, match_clusters, merge_clusters
from segmentation.figures import evenly
from segmentation.metrics import iou_of
from segmentation.objects import THRESHOLD, embed_split
from utils.report.pictures import montage, outline, pca_colours
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.log import MetricsWriter
from utils.run.precision import Precision

log = logging.getLogger(__name__)
VIEWS, IMAGES, COLUMNS = 8, 6, 3  # pairs of views; images with embeddings; of these in a row
SIDE = 160  # of a picture, pixels
BATCH = 8  # images a forward pass of online K-means


@contextmanager
def observed(model: nn.Module, compiled: bool = False) -> Iterator[None]:
    """A block with the model in eval mode, without gradients or compilation; after it every mode is as before.

    BatchNorm keeps its statistics and dropout draws nothing, so that training does not notice.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.compiler.set_stance('force_eager') if compiled else torch.no_grad(), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class ImageGrids:
    """Views with masks, and what the network makes of a few images, every few epochs, in the main process.

    Args:
        model: the query encoder.
        dataset: images, of which some spread over all of them are drawn, resized to ``size`` pixels.
        every: epochs between two grids; 0 draws none.
    """

    def __init__(self, writer: MetricsWriter, model: ContrastiveSegmentationModel, precision: Precision,
                 dataset: ImageSet, size: int, every: int, compiled: bool = False) -> None:
        self.writer, self.model, self.precision, self.dataset = writer, model, precision, dataset
        self.size, self.every, self.compiled = size, every if distributed.is_main() else 0, compiled
        self.mean, self.std = model.backbone.mean, model.backbone.std

    def draw_views(self, epoch: int, batch: dict[str, Any]) -> None:
        """The first pairs of views of a batch, query above key, with the outlines of their masks."""
        if self.every and epoch % self.every == 0:
            views = [_resized(outline(denormalize(image, self.mean, self.std), mask.numpy()))
                     for view in ('query', 'key')
                     for image, mask in zip(batch[view][:VIEWS], batch[f'{view}_mask'][:VIEWS], strict=True)]
            self.writer.add_picture('views', montage(views, len(views) // 2), epoch + 1)

    def draw_embedding(self, epochs: int, last: bool = False) -> None:
        """Images with the outlines of the predicted masks, each beside the PCA of its pixel embeddings.

        ``epochs`` are done; ``last`` draws them whatever their number, unless there are to be none.
        """
        if not self.every or (epochs % self.every and not last):
            return
        prepare = EvaluationTransform(self.size, self.mean, self.std)
        images = [prepare(self.dataset.load(i))['image'] for i in evenly(np.arange(len(self.dataset)), IMAGES)]
        with observed(self.model, self.compiled):
            maps = self.model.maps(self.precision.to_device(torch.stack(images)))
        embedding, scores = F.normalize(maps['embedding'].float(), dim=1).cpu().numpy(), maps.get('saliency')
        rows = []
        for i, (image, colours) in enumerate(zip(images, pca_colours(embedding), strict=True)):
            picture = denormalize(image, self.mean, self.std)
            if scores is not None:
                score = cv2.resize(scores[i, 0].float().cpu().numpy(), (self.size, self.size))
                picture = outline(picture, score > THRESHOLD)
            rows.append(np.hstack([_resized(picture), _resized(cv2.resize(colours, (self.size, self.size)))]))
        self.writer.add_picture('embedding', montage(rows, COLUMNS), epochs)


def _resized(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(image) > SIDE else cv2.INTER_NEAREST)


class OnlineKmeans:
    """The protocol of segmentation/kmeans.py on a subset: one run, as many clusters as classes without background.

    Args:
        dataset: images with ground truth, resized for the network, of which ``count`` spread over all are taken.
        seed: of PCA and K-means.

    Raises:
        UserError: there are fewer images than clusters.
    """

    def __init__(self, writer: MetricsWriter, model: ContrastiveSegmentationModel, precision: Precision,
                 dataset: ImageSet, count: int, seed: int, compiled: bool = False) -> None:
        self.writer, self.model, self.precision, self.dataset = writer, model, precision, dataset
        self.seed, self.compiled = seed, compiled
        self.chosen, self.clusters = evenly(np.arange(len(dataset)), count), len(dataset.classes) - 1
        if len(self.chosen) < self.clusters:
            raise UserError(f'online K-means has {len(self.chosen)} images for {self.clusters} clusters; raise '
                            'probe_images, or choose a larger probe_split.')

    def measure(self, epochs: int) -> None:
        """Log the mIoU, in percent, after so many epochs; in the main process alone."""
        if not distributed.is_main():
            return
        loader = (collate([self.dataset[i] for i in self.chosen[start:start + BATCH]])
                  for start in range(0, len(self.chosen), BATCH))
        with observed(self.model, self.compiled):
            split = embed_split(self.model, loader, self.precision.device, self.clusters + 1, shared=False)
        _, runs = cluster(split.prototypes, [self.clusters], 1, self.seed)
        confusion = cluster_confusion(split.inside, split.outside, runs[self.clusters][0].ids, self.clusters)
        miou = 100 * float(iou_of(merge_clusters(confusion, match_clusters(confusion))).mean())
        self.writer.add_scalars({'probe/mIoU': miou}, epochs)
        log.info('Online K-means: mIoU of %d images is %.2f', len(self.chosen), miou)
