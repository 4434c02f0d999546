"""A mask source from the method itself: what the saliency head of a pretrained encoder takes for an object."""
from collections.abc import Sequence

import numpy as np
import torch

from data.transforms import EvaluationTransform
from models.segmentation import ContrastiveSegmentationModel, resize
from utils.run.devices import Precision, pin, tf32, to_float32


class EncoderSaliency:
    """A mask source, see ``saliency.sources``, around an encoder with a saliency head.

    The encoder sees images resized to ``size`` x ``size`` pixels. The map is the sigmoid of the raw score: an object is
    where this exceeds 0, and not 0.5 as in the published protocols.
    """

    def __init__(self, encoder: ContrastiveSegmentationModel, precision: Precision, size: int) -> None:
        self.encoder, self.precision = precision.to_device(encoder.eval()), precision
        self.transform = EvaluationTransform(size, encoder.backbone.mean, encoder.backbone.std)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB images -> (H, W) float32 maps in 0..1."""
        batch = torch.stack([self.transform({'image': image})['image'] for image in images])
        with tf32(False), self.precision.autocast():
            scores = self.encoder.maps(self.precision.to_device(pin(batch, self.precision.device)))['saliency']
        maps = to_float32(scores).cpu()  # N x 1 x h x w
        return [torch.sigmoid(resize(one[None], image.shape[:2]))[0, 0].numpy()
                for one, image in zip(maps, images, strict=True)]
