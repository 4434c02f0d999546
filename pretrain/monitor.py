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
from torch.utils.data import DataLoader, Subset

from data.image_set import ImageSet
from data.loaders import collate
from data.transforms import EvaluationTransform, denormalize
from models.segmentation import ContrastiveSegmentationModel
from segmentation.clustering import cluster, match_clusters, merge_clusters
from segmentation.figures import evenly
from segmentation.metrics import iou_of
from segmentation.objects import THRESHOLD, embed_split
from utils.report.pictures import montage, outline, pca_colours, thumbnail
from utils.run import distributed
from utils.run.errors import UserError
from utils.run.trainer import Trainer

log = logging.getLogger(__name__)
VIEWS, IMAGES, COLUMNS = 8, 6, 3  # pairs of views; images with embeddings; of these in a row
SIDE = 160  # of a picture at most, pixels
BATCH = 8  # images a forward pass of online K-means


@contextmanager
def observed(model: nn.Module) -> Iterator[None]:
    """A block with the model in eval mode, without gradients, which training does not notice."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe_of(dataset: ImageSet, count: int) -> Subset:
    """``count`` images, spread over all, for ``Monitor.measure``. Raises UserError if they are fewer than clusters."""
    chosen, clusters = evenly(np.arange(len(dataset)), count), len(dataset.classes) - 1
    if len(chosen) < clusters:
        raise UserError(f'online K-means has {len(chosen)} images for {clusters} clusters; raise probe_images, or '
                        'choose a larger probe_split.')
    return Subset(dataset, chosen.tolist())


class Monitor:
    """Views with masks, what the query encoder makes of a few images, and online K-means; in the main process alone.

    Images spread over the data set are drawn, resized to ``size`` pixels, every so many epochs; 0 draws none.
    """

    def __init__(self, trainer: Trainer, model: ContrastiveSegmentationModel, dataset: ImageSet, size: int,
                 every: int) -> None:
        self.trainer, self.model, self.dataset, self.size = trainer, model, dataset, size
        self.every = every if distributed.is_main() else 0
        self.colours = model.backbone.mean, model.backbone.std

    def _begins(self) -> bool:
        """Whether an epoch begins that has image grids."""
        return bool(self.every) and self.trainer.step == 0 and self.trainer.epoch % self.every == 0

    def draw_views(self, batch: dict[str, Any]) -> None:
        """The first pairs of views of a batch, query above key, with the outlines of their masks."""
        if self._begins():
            views = [thumbnail(outline(np.ascontiguousarray(image.permute(1, 2, 0)), mask.numpy()), SIDE)
                     for view in ('query', 'key')
                     for image, mask in zip(batch[view][:VIEWS], batch[f'{view}_mask'][:VIEWS], strict=True)]
            self.trainer.writer.add_picture('views', montage(views, len(views) // 2), self.trainer.epoch + 1)

    def draw_embedding(self, last: bool = False) -> None:
        """Images with the outlines of predicted masks, each beside the PCA of its embeddings; ``last``: in any case."""
        if not (self._begins() or (last and self.every)):
            return
        prepare = EvaluationTransform(self.size, *self.colours)
        images = [prepare(self.dataset.load(i))['image'] for i in evenly(np.arange(len(self.dataset)), IMAGES)]
        with observed(self.model):
            maps = self.model.maps(self.trainer.precision.to_device(torch.stack(images)))
        embedding, scores = F.normalize(maps['embedding'].float(), dim=1).cpu().numpy(), maps.get('saliency')
        rows = []
        for i, (image, colours) in enumerate(zip(images, pca_colours(embedding), strict=True)):
            picture = denormalize(image, *self.colours)
            if scores is not None:
                score = cv2.resize(scores[i, 0].float().cpu().numpy(), (self.size, self.size))
                picture = outline(picture, score > THRESHOLD)
            picture = thumbnail(picture, SIDE)
            rows.append(np.hstack([picture, cv2.resize(colours, picture.shape[1::-1])]))
        self.trainer.writer.add_picture('embedding', montage(rows, COLUMNS), self.trainer.epoch)

    def measure(self, probe: Subset, seed: int) -> None:
        """Log the mIoU of labelled images at the end of an epoch, in percent: the protocol of segmentation/kmeans.py.

        One run, with as many clusters as classes without background; ``seed`` is of PCA and K-means.
        """
        if not distributed.is_main():
            return
        clusters = len(probe.dataset.classes) - 1  # type: ignore[attr-defined]
        loader = DataLoader(probe, BATCH, collate_fn=collate, generator=torch.Generator())  # no number of training's
        with observed(self.model):
            split = embed_split(self.model, loader, self.trainer.precision.device, clusters + 1, shared=False)
        _, runs = cluster(split.prototypes, [clusters], 1, seed)
        confusion = split.confusion(runs[clusters][0].ids + 1, clusters + 1)
        miou = 100 * float(iou_of(merge_clusters(confusion, match_clusters(confusion))).mean())
        self.trainer.writer.add_scalars({'probe/mIoU': miou}, self.trainer.epoch + 1)
        log.info('Online K-means: mIoU of %d images is %.2f', len(probe), miou)
