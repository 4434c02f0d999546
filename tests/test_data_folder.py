"""An unlabelled image folder as a data set: every kind of file, random splits, and what does not fit."""
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from PIL import Image

from data import loaders as build
from data.files import find_images
from data.folder import FolderDataset, is_folder
from data.images import ImageFileError, read_image
from data.views import ContrastivePair, ContrastiveView
from models.backbones import IMAGENET
from tests.golden_inputs import photo
from utils.run.errors import UserError


def write(root: Path, name: str, mask: bool = True, size: tuple[int, int] = (40, 60), **options) -> Path:
    """An image of (height, width), and a mask of its left half as it is stored."""
    path = root / 'images' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(name, *size)).save(path, **options)
    if mask:
        halves = np.zeros(size, np.uint8)
        halves[:, :size[1] // 2] = 255
        write_mask(root, name, halves)
    return path


def write_mask(root: Path, name: str, mask: np.ndarray) -> None:
    path = (root / 'saliency_masks' / name).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(20):
        write(tmp_path, f'{"ab"[i % 2]}/{i:02}.jpg')
    return tmp_path


def test_every_kind_of_image(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, seen standing
    write(tmp_path, 'deep/er/turned.jpg', mask=False, exif=exif)
    standing = np.zeros((60, 40), np.uint8)
    standing[:30] = 255
    write_mask(tmp_path, 'deep/er/turned.jpg', standing)
    write(tmp_path, 'photo.JPEG')
    write(tmp_path, 'photo.webp', mask=False)  # would share a mask with photo.JPEG
    write(tmp_path, 'a.b.webp', size=(30, 90))
    Image.fromarray(photo('grey', 40, 60)).convert('L').save(write(tmp_path, 'grey.png'))
    transparent = np.zeros((40, 60, 4), np.uint8)
    transparent[10:20] = 9, 9, 9, 255
    Image.fromarray(transparent).save(write(tmp_path, 'transparent.png'))
    write_mask(tmp_path, 'photo.JPEG', np.eye(20, 30, dtype=np.uint8))  # half the size, stored as 0/1
    data = FolderDataset(tmp_path / 'images', tmp_path / 'saliency_masks')
    assert data.ids == ['a.b', 'deep/er/turned', 'grey', 'photo', 'transparent']
    shapes = {sample['id']: sample['image'].shape for sample in data}
    assert shapes == {'a.b': (30, 90, 3), 'deep/er/turned': (60, 40, 3), 'grey': (40, 60, 3), 'photo': (40, 60, 3),
                      'transparent': (40, 60, 3)}
    for sample in data:
        assert sample['image'].dtype == sample['sal'].dtype == np.uint8
        assert sample['sal'].shape == sample['image'].shape[:2]
        assert set(np.unique(sample['sal'])) == {0, 1}
    assert data[1]['sal'][:30].all()  # the mask of a turned image is upright
    assert not data[1]['sal'][30:].any()
    np.testing.assert_array_equal(data[1]['image'], np.rot90(read_pixels(tmp_path / 'images/deep/er/turned.jpg'), -1))
    assert data[4]['image'][0, 0].tolist() == [255] * 3
    assert 'differ from those of others in the suffix alone: photo.webp' in caplog.text


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_splits_are_random_and_stay_when_images_join(root: Path) -> None:
    everything, train, val = (FolderDataset(root / 'images', split=split, seed=5).ids
                              for split in ('all', 'train', 'val'))
    assert len(everything) == 20
    assert len(val) == 2
    assert sorted(train + val) == everything == sorted(everything)
    assert FolderDataset(root / 'images', split='val', seed=5).ids == val
    draws = {tuple(FolderDataset(root / 'images', split='val', seed=seed).ids) for seed in range(6)}
    assert len(draws) > 3
    write(root, 'c/new.jpg')
    assert len(set(FolderDataset(root / 'images', split='val', seed=5).ids) & set(val)) >= 1
    with pytest.raises(UserError, match='^an unlabelled image folder has no split trainaug; choose all, '):
        FolderDataset(root / 'images', split='trainaug')
    for path in sorted((root / 'images').rglob('*.jpg'))[1:]:
        path.unlink()
    assert len(FolderDataset(root / 'images', split='val')) == 1
    with pytest.raises(UserError, match='^1 images are too few for split train'):
        FolderDataset(root / 'images', split='train')


def test_damaged_files_are_named_and_left_out(root: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    broken = root / 'images' / 'a' / '04.jpg'
    broken.write_bytes(broken.read_bytes()[:-200])  # its header is whole
    with pytest.raises(ImageFileError, match='cannot be read'):
        read_image(broken)
    mask = root / 'saliency_masks' / 'b' / '05.png'
    mask.write_bytes(mask.read_bytes()[:60])
    write_mask(root, 'a/06.jpg', np.full((60, 40), 255, np.uint8))  # lies where the image stands
    data = FolderDataset(root / 'images', root / 'saliency_masks')
    assert data.left_out == 3
    assert not {'a/04', 'b/05', 'a/06'} & set(data.ids)
    assert f'3 of 20 images in {root}/images cannot be used and are left out: a/04.jpg (' in caplog.text
    assert 'b/05.jpg (its mask cannot be read (' in caplog.text
    assert 'a/06.jpg (its mask is 40 x 60, its image 60 x 40: another ratio of sides)' in caplog.text
    assert len(FolderDataset(root / 'images')) == 19  # without masks only the image matters
    for path in sorted((root / 'images').rglob('*.jpg'))[:11]:
        path.write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'^1\d of 20 images in .*images cannot be used: a/00.jpg \(.* and \d+ more; '):
        FolderDataset(root / 'images')


def test_a_file_damaged_later_is_one_sentence(root: Path) -> None:
    data = FolderDataset(root / 'images', root / 'saliency_masks')
    data.image_path(0).write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'^image file \S+00.jpg cannot be read \('):
        data.load(0)


def test_masks_that_do_not_match(root: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    for i in range(0, 14, 2):
        (root / 'saliency_masks' / 'a' / f'{i:02}.png').unlink()
    write_mask(root, 'stray.png', np.zeros((4, 4), np.uint8))
    data = FolderDataset(root / 'images', root / 'saliency_masks')
    assert (len(data), data.left_out) == (13, 7)
    assert f'7 of 20 images in {root}/images have no mask in {root}/saliency_masks: there is no a/00.png' in caplog.text
    assert 'a/02.png, a/04.png, a/06.png, a/08.png and 2 more; left out' in caplog.text
    assert '1 masks in' in caplog.text
    with pytest.raises(UserError, match=r'^folder \S+saliency_other does not exist; make the masks with saliency/pred'):
        FolderDataset(root / 'images', root / 'saliency_other')
    (root / 'saliency_masks').rename(root / 'saliency_moved')
    (root / 'saliency_masks').mkdir()
    with pytest.raises(UserError, match=r'^20 of 20 images in \S+ have no mask in \S+: there is no a/00.png.* '
                                        'and 15 more; '):
        FolderDataset(root / 'images', root / 'saliency_masks')


def test_folders_that_are_none(tmp_path: Path, shapes: Path) -> None:
    with pytest.raises(UserError, match=r'^folder \S+images does not exist; put the images there'):
        FolderDataset(tmp_path / 'images')
    (tmp_path / 'images').mkdir()
    with pytest.raises(UserError, match=r'^folder \S+images holds no image'):
        FolderDataset(tmp_path / 'images')
    assert is_folder(tmp_path)
    assert not is_folder(shapes)
    assert not is_folder(tmp_path / 'nowhere')


def test_pairs_and_loaders(root: Path, shapes: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    data = FolderDataset(root / 'images', root / 'saliency_masks')
    pair = data.transformed(ContrastivePair(data, ContrastiveView(32, scale=(0.9, 1.0))))[3, 7]
    assert pair['id'] == 'a/06'
    assert pair['query'].shape == (3, 32, 32)
    assert 0.3 < pair['query_mask'].float().mean() < 0.7
    (root / 'images' / 'a' / '00.jpg').write_bytes(b'nothing')
    p = EasyDict(db_root=str(root), train_db_name='.', train_split='all', saliency='masks', seed=1, num_workers=0,
                 backbone='resnet18',
                 cache='none', device='cpu', train_batch_size=4, augmentation_kwargs={'size': 32},
                 model_kwargs={'upsample': True}, val_size=24, val_batch_size=8, output_dir=str(root / 'results'))
    images = build.open_images(p, '.', 'all', saliency='masks', skip=True)
    loader = build.train_loader(p, images.transformed(ContrastivePair(images, ContrastiveView(32))))
    assert len(loader.sampler) == 16
    assert torch.stack([batch['query'] for batch in loader]).shape == (4, 4, 3, 32, 32)
    said = f'Training on split all, 19 images of {images.images} with masks of {images.masks}, 1 left out'
    assert said in caplog.text
    data = build.open_images(p, '.', 'all', truth=None)
    assert data.truth is None
    batches = list(build.evaluation_loader(p, data, *IMAGENET))
    assert [len(batch['id']) for batch in batches] == [8, 8, 3]
    assert batches[0]['shape'][0] == (40, 60)
    assert 'semseg' not in batches[0]
    for originals, kept in ((0, 0), (3, 3), (None, 19)):
        loader = build.evaluation_loader(p, data, *IMAGENET, originals=originals)
        travelled = [image for batch in loader for image in batch['original']]
        assert [image is not None for image in travelled] == [i < kept for i in range(19)]
        assert all(np.array_equal(image, data.load(i)['image']) for i, image in enumerate(travelled[:kept]))
    with pytest.raises(UserError, match='is an unlabelled image folder without ground truth'):
        build.open_images(p, '.', 'all', truth=True)
    inside = EasyDict(p, output_dir=str(root / 'images' / 'results'))
    with pytest.raises(UserError, match=r'^output_dir \S+results lies inside \S+images, so that results would be'):
        build.open_images(inside, '.', 'all')
    labelled = EasyDict(p, db_root=str(shapes.parent))
    assert build.open_images(labelled, shapes.name, 'train', truth=None).truth == shapes / 'SegmentationClass'
    assert build.open_images(labelled, shapes.name, 'train').truth is None
    with pytest.raises(UserError, match='db_root'):
        build.open_images(p, 'nowhere', 'all')


def test_the_folder_says_which_run_it_is(root: Path, shapes: Path) -> None:
    assert build.identity(EasyDict(db_root=str(root)), '.') == ('db_root',)
    assert build.identity(EasyDict(db_root=str(shapes.parent)), shapes.name) == ()  # told by its name, may move


def test_links_around_a_folder_list_it_once(tmp_path: Path) -> None:
    write(tmp_path, 'sub/a.png')
    images = tmp_path / 'images'
    (images / 'sub' / 'loop').symlink_to('..')
    (tmp_path / 'elsewhere').mkdir()
    write(tmp_path, '../elsewhere/b.png', mask=False)
    (images / 'link').symlink_to('../elsewhere')
    assert find_images(images) == [Path('link/b.png'), Path('sub/a.png')]


def test_a_subfolder_that_cannot_be_listed_is_named(root: Path, monkeypatch) -> None:
    listed = os.scandir

    def scandir(path):
        if str(path).endswith('/b'):
            raise PermissionError(13, 'Permission denied', str(path))
        return listed(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(UserError, match=r'^folder \S+images/b cannot be listed \(Permission denied\); change its perm'):
        find_images(root / 'images')


def test_names_that_are_not_utf8(root: Path) -> None:
    odd = os.fsdecode(b'caf\xe9.jpg')
    (root / 'images/a/00.jpg').rename(root / 'images/a' / odd)
    assert len(FolderDataset(root / 'images', split='train', seed=3)) == 18


def test_links_among_the_masks_are_followed(root: Path) -> None:
    (root / 'saliency_masks/a').rename(root / 'elsewhere')
    (root / 'saliency_masks/a').symlink_to(root / 'elsewhere')
    assert len(FolderDataset(root / 'images', root / 'saliency_masks')) == 20


def test_files_of_other_kinds_are_counted(root: Path, caplog) -> None:
    for name in ('a.heic', 'sub/b.HEIC', 'notes', '.hidden'):
        (root / 'images' / name).parent.mkdir(exist_ok=True)
        (root / 'images' / name).write_bytes(b'')
    for name in ('c.bmp', 'c2.TIF', 'c3.gif'):
        Image.fromarray(photo(name, 20, 30)).save(root / 'images' / name)
    assert len(find_images(root / 'images')) == 23
    assert f'3 files in {root}/images are of kinds that are not read: 2 .heic, 1 no suffix' in caplog.text
    (root / 'raw').mkdir()
    (root / 'raw/a.heic').write_bytes(b'')
    with pytest.raises(UserError, match=r'holds no image \(.jpg, .*\), but 1 .heic; give the folder'):
        find_images(root / 'raw')


def test_masks_that_are_all_empty_or_full(root: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    for i, path in enumerate(sorted((root / 'saliency_masks').rglob('*.png'))[1:]):
        Image.new('L', (60, 40), 255 * (i % 2)).save(path)
    assert len(FolderDataset(root / 'images', root / 'saliency_masks')) == 20
    assert '19 of 20 masks in' in caplog.text
    Image.new('L', (60, 40)).save(root / 'saliency_masks/a/00.png')
    with pytest.raises(UserError, match=r'^all 20 masks in \S+saliency_masks are empty or full: nothing can be learnt'):
        FolderDataset(root / 'images', root / 'saliency_masks')


def test_what_lies_in_place_of_a_mask_and_other_layouts(root: Path) -> None:
    masks = root / 'saliency_masks/a'
    (masks / '00.png').rename(masks / '00.jpg')
    for name in sorted(masks.glob('*.png')):
        name.unlink()
    for name in sorted((root / 'saliency_masks/b').glob('*.png')):
        name.unlink()
    with pytest.raises(UserError, match=r'there is no a/00.png \(there is 00.jpg\), a/02.png, '):
        FolderDataset(root / 'images', root / 'saliency_masks')
    (root / 'images').rename(root / 'JPEGImages')
    with pytest.raises(UserError, match='has the layout of the VOC devkit'):
        FolderDataset(root / 'images')
