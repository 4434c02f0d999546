"""The one reader of photographs, and of the masks and label maps that were drawn on them."""
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from data.transforms import resize_mask
from utils.run.errors import UserError
from utils.run.files import DRAWN_UPRIGHT, PALETTE

BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF: bits a sample, what 0 is
ORIENTATION = 0x0112  # the EXIF tag, and what makes an array of pixels upright for each of its values
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr, 3: lambda pixels: np.rot90(pixels, 2), 4: np.flipud, 5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1), 7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90}
BROKEN = (OSError, SyntaxError, ValueError, EOFError, MemoryError, RuntimeError, struct.error)
IGNORE, LAST_ID = 255, 40  # of masks that hold ids
GREY_SPREAD = 10  # levels between the channels of a colour that still counts as grey: compression leaves such traces


class ImageFileError(UserError):
    """An image file that cannot be used: the whole sentence, and for lists of files the reason without the name."""

    def __init__(self, message: str, reason: str = '') -> None:
        super().__init__(message)
        self.reason = reason or message


class Photograph(NamedTuple):
    pixels: np.ndarray  # (H, W, 3) uint8 as it is seen
    orientation: int  # EXIF's, which says how the stored pixels were turned


class Drawn(NamedTuple):
    values: np.ndarray  # (h, w) of a mask or label map
    upright: bool  # its writer notes that it was drawn on the image as seen


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turns what goes wrong with a file into an ImageFileError."""
    whose = '' if what == 'image file' else f'its {what} '  # in a list of images

    def error(problem: str, hint: str = 'replace it or take it out') -> ImageFileError:
        return ImageFileError(f'{what} {path} {problem}; {hint}.', whose + problem)

    try:
        yield
    except FileNotFoundError as reason:
        raise error('does not exist', 'restore it or take its ID out of the list') from reason
    except PermissionError as reason:
        raise error('cannot be read (permission denied)', 'change its permissions') from reason
    except UnidentifiedImageError as reason:
        raise error('cannot be read (it is no image, or its start is damaged)') from reason
    except Image.DecompressionBombError as reason:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise error(f'has more than {most:.0f} million pixels', 'make it smaller or cut it into tiles') from reason
    except BROKEN as reason:
        text = ' '.join(str(reason).replace(str(path), path.name).split()) or type(reason).__name__
        raise error(f'cannot be read ({text})') from reason


def read_photograph(path: Path) -> Photograph:
    """A photograph of any kind that Pillow reads, the first picture of several.

    Turned by its EXIF orientation; transparency over white; grey of 16 bits (or float, 0..1) scaled by its range.
    Raises ImageFileError for a file that is missing, no image, damaged, may not be read, or is too large to be safe.
    """
    with _reading(path, 'image file'):
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as file:
            turned = stored = _orientation(file)  # Pillow turns a TIFF itself, while it decodes it
            pixels = _decode_jpeg(content) if file.format == 'JPEG' else None
            if pixels is None:
                file.load()
                turned = _orientation(file)
                pixels = _to_rgb(file)
    upright = UPRIGHT.get(turned, np.asarray)(pixels)
    return Photograph(np.ascontiguousarray(upright), stored if stored in UPRIGHT else turned)


def read_image(path: Path) -> np.ndarray:
    """The pixels of ``read_photograph``, (H, W, 3) uint8."""
    return read_photograph(path).pixels


def _orientation(file: Image.Image) -> int:
    try:
        return int(file.getexif().get(ORIENTATION, 1))
    except (*BROKEN, TypeError):  # of EXIF data that cannot be read no viewer takes an orientation
        return 1


def _decode_jpeg(content: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8, by torchvision: faster than Pillow, to the same pixels. None: Pillow shall say what is wrong."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
        planes = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, AttributeError, ImportError):  # the latter two without its decoders, which are to go
        return None
    return planes.permute(1, 2, 0).numpy()  # lies as rows of pixels already


def _to_rgb(file: Image.Image) -> np.ndarray:
    if file.mode.startswith('I') or file.mode == 'F':  # deep grey, which Pillow would cut at 255
        tags = getattr(file, 'tag_v2', {})  # of a TIFF, which may have 12 bits, or 0 as white
        grey, top = np.asarray(file, np.float64), 1 if file.mode == 'F' else 65535
        if file.mode.startswith('I;16'):
            top = 2 ** tags.get(BITS, (16,))[0] - 1
            grey = top - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey
        if not (grey.min(initial=0) >= 0 and grey.max(initial=0) <= top):
            raise ValueError(f'its grey values are not within 0..{top}')
        return np.repeat(np.rint(grey * (255 / top)).astype(np.uint8)[..., None], 3, axis=2)
    if file.has_transparency_data:
        transparent = file.convert('RGBA')
        file = Image.alpha_composite(Image.new('RGBA', file.size, 'white'), transparent)
    return np.array(file.convert('RGB'))


def read_labels(path: Path) -> Drawn:
    """Stored values of one channel, such as class ids; of a palette its indices. Errors as ``read_photograph``."""
    with _reading(path, 'label map'), Image.open(path) as image:
        values = np.array(image)
        if values.ndim != 2:
            raise ValueError(f'it has {len(image.getbands())} channels, and class ids lie in one')
        if values.dtype.kind not in 'biu':
            raise ValueError('it holds fractions, and class ids are whole numbers')
        values = values.astype(np.uint8) if values.dtype == bool else values
        return Drawn(values, image.info.get(DRAWN_UPRIGHT[0]) == DRAWN_UPRIGHT[1])


def palette_conflict(paths: Sequence[Path]) -> str:
    """'id 3 is (255, 0, 0) in a.png and (0, 0, 255) in b.png', where editors made a palette for each file; else ''."""
    seen: dict[int, tuple[list[int], Path]] = {}
    for path in paths:
        with suppress(ImageFileError), _reading(path, 'label map'), Image.open(path) as image:  # a loader names it
            colours = np.reshape(image.getpalette() or [], (-1, 3)).tolist() if image.mode == 'P' else []
            used = [label for label in np.unique(np.asarray(image)).tolist() if label < len(colours)]
            for label in used:
                colour, first = seen.setdefault(label, (colours[label], path))
                if colour != colours[label]:
                    return f'id {label} is {tuple(colour)} in {first.name} and {tuple(colours[label])} in {path.name}'
    return ''


def read_mask(path: Path) -> Drawn:
    """An object mask, (h, w) uint8 in {0, 1}, by what the file shows.

    In this order: the alpha of a cut-out, if it is not opaque; of a palette its colours; black and one other value or
    colour; ids of at most 40 (255: background), which the colours of the VOC palette stand for too; grey at half of
    its range. Raises ImageFileError as ``read_photograph``, and for a file that is none of these.
    """
    with _reading(path, 'mask'), Image.open(path) as image:
        image.load()
        return Drawn(_objects(image).view(np.uint8), image.info.get(DRAWN_UPRIGHT[0]) == DRAWN_UPRIGHT[1])


def read_objects(path: Path) -> Drawn:
    """The objects of a mask, (h, w) numbers from 1 on, 0 outside, as ``save_mask`` wrote them; of other masks one."""
    with _reading(path, 'mask'), Image.open(path) as image:
        ours, values = image.mode == 'L' and DRAWN_UPRIGHT[0] in image.info, np.asarray(image)
    if not ours:
        return read_mask(path)
    return Drawn(-values, True)  # of bytes: 255 is 1, 254 is 2, ...


def _objects(image: Image.Image) -> np.ndarray:
    """(h, w) bool."""
    grey = image.mode.startswith('I') or image.mode in ('1', 'L')
    if image.has_transparency_data and not image.mode.startswith('I'):
        alpha = np.asarray(image.convert('RGBA'))[..., 3]
        if alpha.min(initial=255) < 255:
            return alpha > 127
    values = np.asarray(image) if grey else _values_of_colours(np.asarray(image.convert('RGB')))
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > 65535:
        raise ValueError(f'its values go from {low} to {high}, outside 0..65535')
    if ((values == 0) | (values == high)).all():
        return values > 0
    if ((values <= LAST_ID) | (values == IGNORE)).all():
        return (values > 0) & (values != IGNORE)
    return values > (127 if high <= 255 else 32767)


def _values_of_colours(colours: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (h, w): grey levels, 0 and 1 for black and one colour, or ids of the VOC palette."""
    if (colours.max(2) - colours.min(2)).max(initial=0) <= GREY_SPREAD:
        return colours.max(2) if colours.max(initial=0) <= LAST_ID else cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    codes, palette = (values.astype(np.int32) @ (1 << 16, 1 << 8, 1) for values in (colours, PALETTE))
    if ((codes == 0) | (codes == codes.max())).all():
        return codes > 0
    ids = {code: label for label, code in enumerate(palette.tolist()) if label <= LAST_ID or label == IGNORE}
    distinct, where = np.unique(codes, return_inverse=True)
    if not set(distinct.tolist()) <= ids.keys():
        raise ValueError(f'it holds {len(distinct)} colours, and masks are black with one colour, grey or ids; store '
                         '255 on the object and 0 elsewhere')
    return np.array([ids[code] for code in distinct.tolist()])[where].reshape(codes.shape)


def same_shape(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two (height, width) agree in the ratio of their sides to 5 %."""
    sides = first[0] * second[1], first[1] * second[0]
    return max(sides) <= 1.05 * min(sides)


def turn_upright(drawn: Drawn, size: tuple[int, int], orientation: int, stored: bool) -> np.ndarray:
    """The values of a mask or label map as its photograph, of (height, width) ``size``, is seen.

    What it was drawn on is told by its writer's note, else by its size: that of the photograph as seen or as stored. If
    neither tells, ``stored``: the pixels as they are stored, as annotation tools have it.
    """
    if drawn.upright or orientation not in UPRIGHT:
        return drawn.values
    if orientation in (5, 6, 7, 8):  # these exchange width and height
        for fits in (tuple.__eq__, same_shape):
            as_seen, as_stored = fits(drawn.values.shape, size), fits(drawn.values.shape, size[::-1])
            if as_seen != as_stored:
                stored = as_stored
                break
    return np.ascontiguousarray(UPRIGHT[orientation](drawn.values)) if stored else drawn.values


def fit_to_photograph(drawn: Drawn, photograph: Photograph, path: Path, stored: bool) -> np.ndarray:
    """See ``turn_upright``; resized (nearest), (H, W). Raises UserError if the ratios of sides differ by over 5 %."""
    height, width = size = photograph.pixels.shape[:2]
    values = turn_upright(drawn, size, photograph.orientation, stored)
    if values.shape == size:
        return values
    if not same_shape(values.shape, size):
        problem = f'is {values.shape[1]} x {values.shape[0]}, its image {width} x {height}: another ratio of sides'
        raise ImageFileError(f'{path} {problem}; make it again from this image, or take it out.', f'its mask {problem}')
    return resize_mask(values, width, height)
