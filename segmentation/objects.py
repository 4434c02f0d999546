"""The objects of images: those that the network finds in a batch, and one pass over a split."""
import hashlib
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise, zip_longest
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.transforms import mask_iou, resize_mask, split_mask
from models.segmentation import BackboneModel, ContrastiveSegmentationModel, resize, weighted_prototypes
from segmentation.metrics import confusion_matrix
from utils.report.pictures import PART, thumbnail
from utils.run import distributed
from utils.run.checkpoint import read_arrays
from utils.run.devices import to_device, to_float32
from utils.run.errors import UserError
from utils.run.files import save_arrays
from utils.run.log import progress

THRESHOLD = 0.5  # of the raw saliency score
DAMAGED = 'is damaged or of an earlier version; run its script again.'
Item = TypeVar('Item')
BATCHES = 100  # whose masks travel between processes at a time
MASKS, KEPT = 'masks.npz', 20_000  # file of the masks of a run, and how many images it is written for at most


class Objects(NamedTuple):
    """The n objects of one image, which the network gets at size S."""
    ids: np.ndarray  # (h, w) integers, 0 outside and 1..n in the objects; (S, S), or as a precomputed mask
    prototypes: np.ndarray  # (n, D) of unit length, zero where the mask is empty
    scores: Tensor  # (S, S) raw saliency scores, or a single 1 for a precomputed mask
    iou: float = float('nan')  # of the mask that the network predicts with the precomputed one, if there are both


@torch.inference_mode()
def find_objects(model: ContrastiveSegmentationModel | BackboneModel, images: Tensor, features: str = 'embedding',
                 masks: Sequence[np.ndarray] | None = None, min_component: float | None = None,
                 autocast: Callable[[], AbstractContextManager] = nullcontext) -> list[Objects]:
    """Run the network, under ``autocast``, on images (B, 3, S, S), normalised, on its device (paper, section 4.2).

    ``features`` is the map that is pooled, 'embedding' or 'backbone'. The pixels of ``masks``, (H, W) uint8 in {0, 1}
    each, weigh 1; without them the mask is where the saliency score exceeds 0.5, and each of its pixels weighs its
    score. ``min_component``: see ``split_mask``.
    """
    size, device = images.shape[-1], images.device
    with autocast():
        maps = {name: to_float32(values) for name, values in model.maps(images).items()}
    predicted: list[np.ndarray] = []
    if 'saliency' in maps:
        scores = resize(maps['saliency'], (size, size))[:, 0]  # B x S x S
        predicted = list((scores > THRESHOLD).to(torch.uint8).cpu().numpy())
    if masks is not None:
        scores = images.new_ones(len(images), 1, 1)
    objects = [split_mask(mask, min_component) for mask in (predicted if masks is None else masks)]
    pooled, ious = [], []
    for i, (ids, count) in enumerate(objects):
        small = resize_mask(ids, size, size)
        ious.append(mask_iou(predicted[i] > 0, small > 0) if predicted and masks is not None else float('nan'))
        at_network = torch.from_numpy(small.astype(np.int32)).to(device)
        weights = (at_network == torch.arange(1, count + 1, device=device)[:, None, None]) * scores[i]  # n x S x S
        pooled.append(weighted_prototypes(maps[features][i:i + 1], weights[None])[0])  # n x D
    prototypes = np.split(torch.cat(pooled).cpu().numpy(), np.cumsum([count for _, count in objects])[:-1])
    return [Objects(ids, *of_image) for (ids, _), *of_image in zip(objects, prototypes, scores, ious, strict=True)]


def pack(mask: np.ndarray) -> bytes:
    """A (H, W) mask, compressed: some 3 kB at 512 x 512; ``unpack`` gives it back as uint8."""
    return zlib.compress(np.array(mask.shape, np.int32).tobytes() + np.packbits(mask).tobytes(), 1)


def unpack(packed: bytes) -> np.ndarray:
    content = np.frombuffer(zlib.decompress(packed), np.uint8)
    height, width = content[:8].view(np.int32)
    return np.unpackbits(content[8:], count=height * width).reshape(height, width)


class MaskFile(Sequence[bytes]):
    """Packed masks in a temporary file, in the folder TMPDIR: those of a million images are gigabytes."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._lock, self._ends = Lock(), array('q', [0])

    def extend(self, masks: Iterable[bytes]) -> None:
        self._file.seek(self._ends[-1])
        for mask in masks:
            self._file.write(mask)
            self._ends.append(self._ends[-1] + len(mask))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[i] for i in place]
        with self._lock:  # threads share the position
            self._file.seek(self._ends[place])
            return self._file.read(self._ends[place + 1] - self._ends[place])


@dataclass
class EmbeddedSplit:
    """The N objects of M images."""
    prototypes: np.ndarray  # (N, D) float32 of unit length, zero where the mask is empty
    inside: np.ndarray  # (N, classes) pixels of each true class inside the object
    outside: np.ndarray  # (M, classes) pixels of each true class of the image outside all of its objects
    image: np.ndarray  # (N,) index of each object's image, ascending; one whole mask an image: 0, 1, 2, ...
    shapes: list[tuple[int, int]]  # height, width of each image
    masks: Sequence[bytes]  # of each object as it was found, packed; none if they are not kept
    pictures: list[list[np.ndarray]]  # thumbnails of each image and its ground truth, if it travelled with its batch
    mask_iou: float = float('nan')  # mean of ``Objects.iou``

    def __len__(self) -> int:
        return len(self.image)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: an object at its image's own size."""
        height, width = self.shapes[self.image[index]]
        return resize_mask(unpack(self.masks[index]), width, height).astype(bool)

    def paint(self, image: int, labels: np.ndarray, background: int) -> np.ndarray:
        """The label map of an image, (H, W) uint8: each object has its entry of ``labels`` (N,)."""
        painted = np.full(self.shapes[image], background, np.uint8)
        for index in range(*np.searchsorted(self.image, [image, image + 1])):
            painted[self.mask(index)] = labels[index]
        return painted

    def confusion(self, labels: np.ndarray, num_labels: int, ignored: Sequence[int] = ()) -> np.ndarray:
        """(classes, num_labels) pixel counts where objects have labels (N,), and all else 0; none of ``ignored``."""
        counts = np.zeros((num_labels, self.inside.shape[1]), np.int64)
        counts[0] = self.outside.sum(0)
        np.add.at(counts, labels, self.inside)
        counts[:, list(ignored)] = 0
        return counts.T

    def require_masks(self) -> 'EmbeddedSplit':
        """The split itself. Raises UserError if all of its masks are empty."""
        if not self.prototypes.any():
            raise UserError(f'none of the {len(self.shapes)} images has a mask; check the saliency masks, or train the '
                            'saliency head longer.')
        return self


def embed_split(model: ContrastiveSegmentationModel | BackboneModel, loader: Iterable[dict[str, Any]],
                device: torch.device, num_classes: int, features: str = 'embedding', from_network: bool = True,
                keep_masks: bool = False, min_component: float | None = None, size: int | None = None,
                shared: bool = True) -> EmbeddedSplit:
    """Run the network once over a split, see ``find_objects``.

    Batches hold 'image' (B, 3, S, S) and, at the images' own sizes, 'shape', 'semseg' (without it no pixel has a true
    class), 'original' (may be missing) and 'sal', the masks that are taken unless they are ``from_network``. Masks and
    ground truth are scored at ``size`` x ``size``, both resized to it (nearest); None: at the image's own size.
    ``shared``: processes have taken the batches in turn, and each gets the whole split; else this one is alone.
    """
    def describe(objects: Objects, shape: tuple[int, int], semseg: np.ndarray | None,
                 original: np.ndarray | None) -> tuple:
        count = len(objects.prototypes)
        pixels = np.zeros((num_classes, count + 1), np.int64)  # of each true class outside and in each object
        if semseg is not None:
            height, width = shape if size is None else (size, size)
            pixels = confusion_matrix(resize_mask(semseg, width, height), resize_mask(objects.ids, width, height),
                                      num_classes, count + 1)
        if kept is not None:
            kept.extend(pack(objects.ids == k) for k in range(1, count + 1))
        picture = [] if original is None else [thumbnail(x, PART) for x in (original, semseg) if x is not None]
        inside, outside = pixels[:, 1:].T.copy(), pixels[:, 0].copy()  # not views, which would keep all 256 x 256
        return objects.prototypes, inside, outside, shape, picture, objects.iou

    kept, batches = MaskFile() if keep_masks else None, []
    for batch in progress(loader, 'embedding'):
        found = find_objects(model, to_device(batch['image'], device), features, None if from_network else batch['sal'],
                             min_component)
        semsegs, originals = (batch.get(name) or [None] * len(found) for name in ('semseg', 'original'))
        batches.append(list(map(describe, found, batch['shape'], semsegs, originals)))
    parts = distributed.gather_objects(batches, patient=True) if shared else [batches]
    images = in_turn(parts)
    prototypes, inside, outside, shapes, pictures, ious = zip(*images, strict=True)
    return EmbeddedSplit(np.concatenate(prototypes), np.concatenate(inside), np.stack(outside),
                         np.repeat(np.arange(len(images)), [*map(len, prototypes)]), list(shapes),
                         [] if kept is None else gather_masks(kept, parts), list(pictures), float(np.mean(ious)))


def in_turn(parts: Sequence[Sequence[Sequence[Item]]]) -> list[Item]:
    """The items of the batches that processes took in turn, in the order of one process."""
    return list(chain(*chain(*zip_longest(*parts, fillvalue=()))))


def gather_masks(own: MaskFile, parts: Sequence[Sequence[Sequence[tuple]]]) -> MaskFile:
    """The masks of all processes' images, of ``parts``, some batches at a time, in the main process; none elsewhere."""
    if len(parts) == 1:
        return own
    of_batch = [sum(len(prototypes) for prototypes, *_ in batch) for batch in parts[distributed.rank()]]
    ends, masks = [0, *accumulate(of_batch)], MaskFile()
    for first in range(0, max(map(len, parts)), BATCHES):
        some = ends[first:first + BATCHES + 1]
        gathered = distributed.gather_objects([own[start:end] for start, end in pairwise(some)])
        if distributed.is_main():
            masks.extend(in_turn(gathered))
    return masks


def save_masks(path: Path, prototypes: np.ndarray, masks: Sequence[bytes]) -> None:
    """Write the packed masks of the objects with these prototypes; of none, remove those of before."""
    if masks:
        save_arrays(path, masks=np.frombuffer(b''.join(masks), np.uint8), lengths=np.array([*map(len, masks)]),
                    prototypes=np.array(hashlib.sha256(prototypes.tobytes()).hexdigest()))
    else:
        path.unlink(missing_ok=True)


def read_masks(path: Path, prototypes: np.ndarray) -> list[bytes] | None:
    """What ``save_masks`` wrote; None if there is no file. Raises UserError for a damaged one, or of other objects."""
    if not path.is_file():
        return None
    file = read_arrays(path, ('masks', 'lengths', 'prototypes'), DAMAGED)
    if str(file['prototypes']) != hashlib.sha256(prototypes.tobytes()).hexdigest():
        raise UserError(f'{path} holds the masks of other objects than those saved beside it; run the script again.')
    content, lengths = file['masks'].tobytes(), file['lengths']
    return [content[end - length:end] for end, length in zip(lengths.cumsum(), lengths, strict=True)]
