"""Pictures that training takes of itself; it goes on in the same bits with them and without."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.image_set import ImageSet
from data.transforms import EvaluationTransform, denormalize
from models.segmentation import ContrastiveSegmentationModel
from utils.report.pictures import montage, outline, pca_colours
from utils.run import distributed
from utils.run.log import MetricsWriter
from utils.run.precision import Precision

VIEWS, IMAGES, COLUMNS = 8, 6, 3  # pairs of views; images with embeddings; of these in a row
SIDE = 160  # of a picture, pixels
THRESHOLD = 0.5  # of the raw saliency score


@contextmanager
def observed(model: nn.Module, compiled: bool = False) -> Iterator[None]:
    """A block with the model in eval mode, without gradients or compilation; after it every mode is as before.

    BatchNorm keeps its statistics and dropout draws nothing, so that training does not notice.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    before = torch.compiler.set_stance('force_eager') if compiled else torch.no_grad()
    try:
        with before, torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Panels:
    """Draws views with masks, and what the network makes of a few images, every few epochs, in the main process.

    Args:
        model: the query encoder.
        dataset: images, of which some spread over all of them are drawn.
        size: side to which these are resized, pixels.
        every: epochs between two panels; 0 draws none.
        compiled: the model is compiled for training.
    """

    def __init__(self, writer: MetricsWriter, model: ContrastiveSegmentationModel, precision: Precision,
                 dataset: ImageSet, size: int, every: int, compiled: bool = False) -> None:
        self.writer, self.model, self.precision, self.compiled = writer, model, precision, compiled
        self.dataset, self.size, self.every = dataset, size, every
        self.mean, self.std = model.backbone.mean, model.backbone.std

    def _due(self, epoch: int) -> bool:
        return self.every > 0 and epoch % self.every == 0 and distributed.is_main()

    def draw_views(self, epoch: int, batch: dict[str, Any]) -> None:
        """The first pairs of views of a batch, query above key, with the outlines of their masks."""
        if self._due(epoch):
            rows = [_enlarged(outline(denormalize(image, self.mean, self.std), mask.numpy()))
                    for view in ('query', 'key')
                    for image, mask in zip(batch[view][:VIEWS], batch[f'{view}_mask'][:VIEWS], strict=True)]
            self.writer.add_picture('views', montage(rows, len(rows) // 2), epoch + 1)

    def draw_embedding(self, epochs: int, last: bool = False) -> None:
        """Images with the outlines of the predicted masks, each beside the PCA of its pixel embeddings.

        Args:
            epochs: that are done.
            last: draw them in any case, unless there are to be none.
        """
        if not (self._due(epochs) or (last and self.every > 0 and distributed.is_main())):
            return
        prepare = EvaluationTransform(self.size, self.mean, self.std)
        chosen = sorted({round(i) for i in np.linspace(0, len(self.dataset) - 1, IMAGES)})
        images = [prepare(self.dataset.load(i))['image'] for i in chosen]
        with observed(self.model, self.compiled):
            maps = self.model.maps(self.precision.to_device(torch.stack(images)))
        colours = pca_colours(F.normalize(maps['embedding'].float(), dim=1).cpu().numpy())
        scores = maps.get('saliency')
        pictures = []
        for i, image in enumerate(images):
            picture = denormalize(image, self.mean, self.std)
            if scores is not None:
                score = cv2.resize(scores[i, 0].float().cpu().numpy(), (self.size, self.size))
                picture = outline(picture, score > THRESHOLD)
            colour = cv2.resize(colours[i], (self.size, self.size), interpolation=cv2.INTER_LINEAR)
            pictures.append(np.hstack([_enlarged(picture), _enlarged(colour)]))
        self.writer.add_picture('embedding', montage(pictures, COLUMNS), epochs)



def _enlarged(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(image) > SIDE else cv2.INTER_NEAREST)
