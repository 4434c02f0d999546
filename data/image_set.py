"""What all data sets are: photographs in order, each with its object mask if masks are asked for."""
import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from pathlib import Path

from torch.utils.data import Dataset

from data.images import Drawn, fit_to_photograph, read_mask, read_photograph
from data.transforms import Sample, seeded


def random_rank(text: str) -> bytes:
    """For draws, of those of lowest rank, that depend on a seed and each name alone."""
    return hashlib.sha256(os.fsencode(text)).digest()


class ImageSet(Dataset):
    """Photographs of any size. A subclass fills ``ids``; ``left_out`` counts those that cannot be used.

    A sample is a dict: 'image' (H, W, 3) uint8, as it is seen; 'sal' (H, W) uint8 in {0, 1}, if a folder of ``masks``
    (ID.png each) is given; 'id'. It is taken by index or, where the transform draws at random, by (index, seed).
    """

    classes: tuple[str, ...] = ('background',)
    truth: Path | None = None  # folder of the ground truth, if it is read
    digest = ''  # of label maps that are read in its place
    left_out = 0
    drawn_on_stored = True  # masks, where neither size nor note tells, lie on the pixels as stored, not as seen
    transform: Callable[[Sample], Sample] | None = None

    def __init__(self, images: Path, split: str, masks: Path | None) -> None:
        self.root, self.images, self.split, self.masks = images.parent, images, split, masks
        self.ids: list[str] = []
        # what is drawn on a photograph: key in the sample, folder of its ID.png, reader
        self.layers: list[tuple[str, Path, Callable[[Path], Drawn]]] = [('sal', masks, read_mask)] if masks else []

    def image_path(self, index: int) -> Path:
        return self.images / f'{self.ids[index]}.jpg'

    def transformed(self, transform: Callable[[Sample], Sample]) -> 'ImageSet':
        """The same images with a transform, which samples go through, but those of ``load``."""
        other = copy(self)
        other.transform = transform
        return other

    def __str__(self) -> str:
        text = f'split {self.split}, {len(self)} images of {self.images}'
        return text if self.masks is None else f'{text} with masks of {self.masks}, {self.left_out} left out'

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index, seed = item if isinstance(item, tuple) else (item, None)
        with nullcontext() if seed is None else seeded(seed):
            sample = self.load(index)
            return sample if self.transform is None else self.transform(sample)

    def drawn_digest(self) -> str:
        """Of the names and sizes of what is drawn on the photographs, without reading it: others' are another."""
        sizes = [f'{key}/{name} {(folder / f"{name}.png").stat().st_size}'
                 for key, folder, _ in self.layers for name in self.ids]
        return hashlib.sha256(os.fsencode('\n'.join(sizes))).hexdigest()

    def load(self, index: int) -> Sample:
        """Read one sample, without the transform. Raises UserError for a file that is damaged or of another shape."""
        photograph = read_photograph(self.image_path(index))
        sample: Sample = {'id': self.ids[index], 'image': photograph.pixels}
        for key, folder, read in self.layers:
            path = folder / f'{self.ids[index]}.png'
            sample[key] = fit_to_photograph(read(path), photograph, path, self.drawn_on_stored)
        return sample
