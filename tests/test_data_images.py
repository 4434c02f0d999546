"""One reader of photographs and masks: every kind of file, orientation, and what is refused."""
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.files import SUFFIXES
from data.folder import FolderDataset
from data.images import (
    ImageFileError,
    fit_to_photograph,
    read_image,
    read_labels,
    read_mask,
    read_photograph,
)
from data.voc import VOCSegmentation
from tests.golden_inputs import photo
from utils.run.errors import UserError
from utils.run.files import PALETTE, save_label_map, save_mask

OBJECT = np.zeros((40, 60), bool)
OBJECT[10:30, 20:50] = True
ONES = OBJECT.astype(np.uint8)


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def stored_as(upright: np.ndarray, value: int) -> Image.Image:
    """The picture that is seen as ``upright`` when its EXIF orientation is ``value``."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[value]  # Pillow's numbers of transpositions
    image = Image.fromarray(upright)
    return image if undo is None else image.transpose(Image.Transpose(undo))


@pytest.mark.parametrize('stored', [[0, 255], [0, 1], [60, 200]])
def test_saliency_is_binarised_at_half_of_its_range(tmp_path: Path, stored: list[int]) -> None:
    path = tmp_path / 'mask.png'
    Image.fromarray(np.array([stored, stored[::-1]], np.uint8)).save(path)
    assert read_mask(path).values.tolist() == [[0, 1], [1, 0]]


def colour(*rgb: int) -> np.ndarray:
    return np.where(OBJECT[..., None], np.array(rgb, np.uint8), np.uint8(0))


def with_border(inside: np.ndarray, border: int | tuple[int, ...]) -> np.ndarray:
    wide = np.zeros(OBJECT.shape, bool)
    wide[8:32, 18:52] = True
    wide &= ~OBJECT
    result = inside.copy()
    result[wide] = border
    return result


def two_instances() -> np.ndarray:
    ids = ONES.copy()
    ids[:, 35:] *= 2
    return ids


def palette_png(ids: np.ndarray, colours: list[tuple[int, ...]]) -> Image.Image:
    image = Image.fromarray(ids, 'P')
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


MASKS = {
    'one bit': Image.fromarray(ONES * 255).convert('1'),
    '0 and 100': ONES * 100,
    '16 bit, 0 and 256': ONES.astype(np.uint16) * 256,
    '16 bit, 0 and 65535': ONES.astype(np.uint16) * 65535,
    'instances': two_instances(),
    'class id with its border': with_border(ONES * 15, 255),
    'anti-aliased': with_border(ONES * 255, 100),
    '16 bit soft': with_border(ONES.astype(np.uint16) * 60000, 9000),
    'red': colour(255, 0, 0),
    'blue': colour(0, 0, 255),
    'number in red': colour(1, 0, 0),
    'numbers in blue': np.dstack([0 * two_instances()] * 2 + [two_instances()]),
    'grey as RGBA': Image.fromarray(ONES * 255).convert('RGBA'),
    'cut-out': np.dstack([photo('cut', 40, 60), ONES * 255]),
    'white with alpha': np.dstack([np.full((40, 60, 3), 255, np.uint8), ONES * 255]),
    'white first in its palette': palette_png(1 - ONES, [(255, 255, 255), (0, 0, 0)]),
    'VOC palette with its border': palette_png(with_border(two_instances(), 255), PALETTE.tolist()),
    'VOC colours with their border': with_border(colour(192, 0, 128), (224, 224, 192)),
    'grey with traces of compression': np.clip(colour(255, 255, 255).astype(int) - (0, 3, 5), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize('name', MASKS)
def test_a_mask_means_what_it_shows(tmp_path: Path, name: str) -> None:
    picture = MASKS[name]
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(tmp_path / 'mask.png')
    drawn = read_mask(tmp_path / 'mask.png')
    assert drawn.values.dtype == np.uint8
    np.testing.assert_array_equal(drawn.values, ONES)
    assert not drawn.upright


def test_empty_and_full_masks(tmp_path: Path) -> None:
    for value in (0, 1, 255):
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(tmp_path / 'mask.png')
        np.testing.assert_array_equal(read_mask(tmp_path / 'mask.png').values, np.full((4, 6), value > 0))


def test_what_is_no_mask_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / 'photo.png'
    for picture in (photo('p', 40, 60), with_border(colour(255, 0, 0), (0, 255, 0))):
        Image.fromarray(picture).save(path)
        with pytest.raises(UserError, match=r'^mask \S+photo\.png .*it holds \d+ colours, .*store 255 on the object'):
            read_mask(path)
    Image.fromarray(np.array([[0, 5, 1 << 20]], np.int32)).save(path, format='TIFF')
    with pytest.raises(UserError, match='its values go from 0 to 1048576, outside'):
        read_mask(path)


@pytest.mark.parametrize(('mode', 'options', 'levels'), [
    ('RGB', {}, 0), ('RGB', {'progressive': True, 'subsampling': 0}, 0), ('L', {}, 0), ('CMYK', {}, 1)])
def test_photographs_are_read_as_pillow_reads_them(tmp_path: Path, mode: str, options: dict, levels: int) -> None:
    path = tmp_path / 'photo.jpg'
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize((97, 61)).convert(mode).save(path, exif=turned(6), **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)).convert('RGB'))
    found = read_image(path)
    assert found.shape == expected.shape == (97, 61, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= levels


def test_a_photograph_with_a_stray_marker_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / 'photo.jpg'
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2:len(whole) // 2 + 2] = b'\xff\xc8'
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r'photo\.jpg cannot be read'):
        read_image(path)


def test_every_orientation(tmp_path: Path) -> None:
    seen = photo('turn', 33, 51)
    for value in range(1, 9):
        for suffix in ('png', 'tif', 'jpg', 'webp'):
            path = tmp_path / f'{value}.{suffix}'
            stored_as(seen, value).save(path, exif=turned(value), **({'lossless': True} if suffix == 'webp' else {}))
            found = read_photograph(path)
            assert found.pixels.shape == seen.shape
            assert found.orientation == value
            assert np.abs(found.pixels.astype(int) - seen).mean() < (20 if suffix == 'jpg' else 1e-9)
            with Image.open(path) as image:
                np.testing.assert_array_equal(found.pixels, np.array(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGBA', 'P'])  # those that Pillow maps into memory, by their path alone
def test_a_turned_tiff_that_is_mapped_into_memory(mode: str, tmp_path: Path) -> None:
    path = tmp_path / 'a.tif'
    seen = photo('turn', 33, 51)
    stored_as(seen, 6).convert(mode).save(path, exif=turned(6))
    assert read_photograph(path).pixels.shape[:2] == seen.shape[:2]


def test_exif_that_cannot_be_written_again(tmp_path: Path) -> None:
    width_as_text = struct.pack('<HHI4s', 0x0100, 2, 4, b'abc\0')
    lying = struct.pack('<HHIHH', 0x0112, 3, 1, 6, 0)
    exif = b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + width_as_text + lying + struct.pack('<I', 0)
    path = tmp_path / 'a.jpg'
    Image.fromarray(photo('a', 33, 51)).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.rot90(np.array(image), -1))
    Image.fromarray(photo('a', 33, 51)).save(path, exif=b'Exif\0\0nonsense')
    assert read_image(path).shape == (33, 51, 3)


def test_deep_grey_transparency_and_many_pictures(tmp_path: Path) -> None:
    grey = np.array(Image.fromarray(photo('grey', 20, 30)).convert('L'))
    alpha = np.full_like(grey, 255)
    alpha[:, :10] = 0
    seen = np.where(alpha > 0, grey, 255)
    animation = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    for path, image, expected, options in (
            ('16.png', Image.fromarray(grey.astype(np.uint16) * 257), grey, {}),
            ('16.tif', Image.fromarray(grey.astype(np.uint16) * 257), grey, {}),
            ('float.tif', Image.fromarray(grey.astype(np.float32) / 255), grey, {}),
            ('alpha.png', Image.fromarray(np.dstack([grey, grey, grey, alpha])), seen, {}),
            ('grey.png', Image.fromarray(np.dstack([grey, alpha]), 'LA'), seen, {}),
            ('a.gif', animation[0], grey, {'save_all': True, 'append_images': animation[1:]}),
            ('a.bmp', animation[0], grey, {})):
        image.save(tmp_path / path, **options)
        np.testing.assert_array_equal(read_image(tmp_path / path), np.repeat(expected[..., None], 3, 2), path)
    Image.fromarray(4095 - grey.astype(np.uint16) * 16).save(tmp_path / '16.tif', tiffinfo={262: 0})  # 0 is white
    assert (read_image(tmp_path / '16.tif') >= 239).all()
    deep = [(256, 3, 3), (257, 3, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 2),
            (279, 4, 10)]  # 12 bits, which Pillow does not write: two rows of 0, 2048 and 4095
    entries = b''.join(struct.pack('<HHIHxx' if kind == 3 else '<HHII', tag, kind, 1, value)
                       for tag, kind, value in deep)
    (tmp_path / '12.tif').write_bytes(b'II*\0' + struct.pack('<I', 18) + 2 * bytes.fromhex('000800fff0')
                                      + struct.pack('<H', len(deep)) + entries + bytes(4))
    assert read_image(tmp_path / '12.tif')[..., 0].tolist() == 2 * [[0, 128, 255]]
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / 'float.tif')
    with pytest.raises(ImageFileError, match=r'float\.tif .*its grey values are not within 0\.\.1'):
        read_image(tmp_path / 'float.tif')


def test_a_huge_image_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    Image.fromarray(photo('huge', 40, 60)).save(tmp_path / 'huge.jpg')
    for read in (read_image, read_mask):
        with pytest.raises(ImageFileError, match='^.*huge.jpg has more than 0 million pixels; make it smaller or cut'):
            read(tmp_path / 'huge.jpg')


def voc_with(root: Path, image: Image.Image, value: int, mask: np.ndarray | None = None) -> VOCSegmentation:
    """A data set of one image; its mask and ground truth as another tool writes them, unless there are some."""
    for folder in ('images', 'SegmentationClass', 'saliency_x', 'sets'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image.save(root / 'images/a.jpg', exif=turned(value), quality=95)
    if mask is not None:
        Image.fromarray(mask * 255).save(root / 'saliency_x/a.png')
        Image.fromarray(mask).save(root / 'SegmentationClass/a.png')
    (root / 'sets/val.txt').write_text('a\n')
    return VOCSegmentation(root, 'val', semseg=True, saliency='x')


@pytest.mark.parametrize('value', [1, 3, 6, 7])
def test_masks_go_with_the_pixels_they_were_drawn_on(tmp_path: Path, value: int) -> None:
    image = stored_as(np.repeat(ONES[..., None] * 255, 3, 2), value)
    drawn_stored = np.asarray(stored_as(ONES, value))
    cases = [voc_with(tmp_path / 'stored', image, value, drawn_stored).load(0)]
    if value != 3:  # the size does not tell
        cases.append(voc_with(tmp_path / 'seen', image, value, ONES).load(0))
    half = ONES[::2, ::2] if value != 3 else drawn_stored[::2, ::2]
    cases.append(voc_with(tmp_path / 'half', image, value, np.ascontiguousarray(half)).load(0))
    save_mask(OBJECT, tmp_path / 'noted/saliency_x/a.png')
    save_label_map(ONES, tmp_path / 'noted/SegmentationClass/a.png')
    cases.append(voc_with(tmp_path / 'noted', image, value).load(0))
    cases.append({'semseg': ONES, **FolderDataset(tmp_path / 'noted/images', tmp_path / 'noted/saliency_x').load(0)})
    for sample in cases:
        np.testing.assert_array_equal(sample['image'][..., 0] > 127, OBJECT)
        for kind in ('sal', 'semseg'):
            assert (sample[kind] != ONES).mean() < (0.05 if sample is cases[-3] else 1e-9), (kind, cases.index(sample))


def test_square_images_and_other_folders(tmp_path: Path) -> None:
    square = np.zeros((40, 40), np.uint8)
    square[:20, :10] = 1
    image = stored_as(np.repeat(square[..., None] * 255, 3, 2), 6)
    sample = voc_with(tmp_path, image, 6, np.asarray(stored_as(square, 6))).load(0)
    np.testing.assert_array_equal(sample['sal'], square)  # drawn on the stored pixels, where nothing tells
    Image.fromarray(square * 255).save(tmp_path / 'saliency_x/a.png')
    plain = FolderDataset(tmp_path / 'images', tmp_path / 'saliency_x').load(0)
    np.testing.assert_array_equal(plain['sal'], square)  # of an unlabelled image folder masks are upright
    Image.fromarray(ONES).save(tmp_path / 'a.png')
    assert not read_labels(tmp_path / 'a.png').upright


def test_another_shape_is_named_in_both_layouts(tmp_path: Path) -> None:
    image = Image.fromarray(photo('shape', 40, 60))
    data = voc_with(tmp_path, image, 1, np.ascontiguousarray(ONES.T))
    with pytest.raises(UserError, match=r'^\S+SegmentationClass/a\.png is 40 x 60, its image 60 x 40: another ratio'):
        data.load(0)
    data.layers.pop(0)
    with pytest.raises(UserError, match=r'^\S+saliency_x/a\.png is 40 x 60, its image 60 x 40'):
        data.load(0)
    with pytest.raises(UserError, match='its mask is 40 x 60, its image 60 x 40'):
        FolderDataset(tmp_path / 'images', tmp_path / 'saliency_x')
    photograph = read_photograph(tmp_path / 'images/a.jpg')
    for width, fits in ((62, True), (64, False)):
        Image.fromarray(np.ones((40, width), np.uint8)).save(tmp_path / 'm.png')
        if fits:
            assert fit_to_photograph(read_mask(tmp_path / 'm.png'), photograph, tmp_path / 'm.png', True).all()
        else:
            with pytest.raises(UserError, match=r'm\.png is 64 x 40'):
                fit_to_photograph(read_mask(tmp_path / 'm.png'), photograph, tmp_path / 'm.png', True)


def test_damaged_files_of_every_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in SUFFIXES:
        path = tmp_path / f'a{suffix}'
        Image.fromarray(photo('a', 24, 32)).save(path)
        whole = path.read_bytes()
        for length in (0, len(whole) // 3, len(whole) // 2):
            path.write_bytes(whole[:length])
            with pytest.raises(ImageFileError, match=f'{path.name} '):
                read_image(path)
        for _ in range(12):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(150, len(whole)), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            for read in (read_image, read_mask):
                with suppress(ImageFileError):
                    read(path)


def test_a_torchvision_without_decoders_leaves_jpegs_to_pillow(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / 'x.jpg'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    before = read_image(path)

    def missing(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'image' object has no attribute 'decode_jpeg'")
    monkeypatch.setattr('torchvision.io.decode_jpeg', missing)
    np.testing.assert_array_equal(read_image(path), before)
    monkeypatch.delattr('torchvision.io.decode_jpeg')  # a later version
    np.testing.assert_array_equal(read_image(path), before)
