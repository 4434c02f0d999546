"""Reading the folder layout, and what is said when it is broken."""
import errno
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.files import lies_instead
from data.images import read_image
from data.voc import VOC_CLASSES, VOCSegmentation, read_classes, read_ids, scored_classes
from utils.run.checkpoint import load_checkpoint
from utils.run.errors import UserError
from utils.run.script import run_script, sentence


def test_sample(shapes: Path) -> None:
    data = VOCSegmentation(shapes, 'val', semseg=True, saliency='supervised_model')
    sample = data[0]
    height, width = sample['image'].shape[:2]
    assert sample['image'].dtype == sample['semseg'].dtype == sample['sal'].dtype == np.uint8
    assert sample['semseg'].shape == sample['sal'].shape == (height, width)
    assert set(np.unique(sample['sal'])) <= {0, 1}
    assert sample['id'] == data.ids[0]
    assert len(data.classes) == len(read_classes(shapes)) == 8


def test_voc_needs_no_class_list(tmp_path: Path) -> None:
    assert read_classes(tmp_path) == VOC_CLASSES
    assert len(VOC_CLASSES) == 21


@pytest.mark.parametrize('content', ['classes: cat', 'classes: [a, a]', 'names: [a]', 'classes: [', ''])
def test_bad_class_list(tmp_path: Path, content: str) -> None:
    (tmp_path / 'dataset.yml').write_text(content)
    with pytest.raises(UserError, match=r'dataset\.yml'):
        read_classes(tmp_path)


def test_ground_truth_of_another_size_is_resized(shapes: Path) -> None:
    data = VOCSegmentation(shapes, 'val', semseg=True)
    path = shapes / 'SegmentationClass' / f'{data.ids[0]}.png'
    image = Image.open(path)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
    assert data[0]['semseg'].shape == data[0]['image'].shape[:2]
    assert np.array_equal(data[0]['semseg'], np.array(image))


def test_trainaug_has_its_own_masks(shapes: Path) -> None:
    assert VOCSegmentation(shapes, 'trainaug', semseg=True).truth.name == 'SegmentationClassAug'
    assert VOCSegmentation(shapes, 'train', semseg=True).truth.name == 'SegmentationClass'


def test_missing_parts_are_named(shapes: Path) -> None:
    with pytest.raises(UserError, match='db_root'):
        VOCSegmentation(shapes / 'nowhere', 'val')
    with pytest.raises(UserError, match=r'sets.test\.txt'):
        VOCSegmentation(shapes, 'test')
    with pytest.raises(UserError, match='saliency_other'):
        VOCSegmentation(shapes, 'val', saliency='other')
    ids = VOCSegmentation(shapes, 'trainaug').ids
    for name in ids[:7]:
        (shapes / 'images' / f'{name}.jpg').unlink()
    with pytest.raises(UserError, match=rf'7 of 12 IDs .* no image .*: there is no images.{ids[0]}.jpg, .* and 2 more'):
        VOCSegmentation(shapes, 'trainaug')
    (shapes / 'SegmentationClass' / f'{ids[8]}.png').unlink()
    (shapes / 'sets' / 'train.txt').write_text(f'{ids[8]}\n')
    with pytest.raises(UserError, match=f'no ground truth .*{ids[8]}'):
        VOCSegmentation(shapes, 'train', semseg=True)
    (shapes / 'sets' / 'train.txt').write_text('\n')
    with pytest.raises(UserError, match='empty'):
        VOCSegmentation(shapes, 'train')


def test_pretraining_leaves_out_and_counts(shapes: Path) -> None:
    ids = VOCSegmentation(shapes, 'trainaug').ids
    (shapes / 'images' / f'{ids[0]}.jpg').unlink()
    (shapes / 'saliency_supervised_model' / f'{ids[1]}.png').unlink()
    data = VOCSegmentation(shapes, 'trainaug', saliency='supervised_model', skip_without_saliency=True)
    assert data.ids == ids[2:]
    assert data.left_out == 2
    for path in (shapes / 'saliency_supervised_model').iterdir():
        path.unlink()
    with pytest.raises(UserError, match='12 of 12 IDs'):
        VOCSegmentation(shapes, 'trainaug', saliency='supervised_model', skip_without_saliency=True)


def test_corrupt_files_are_named(shapes: Path) -> None:
    data = VOCSegmentation(shapes, 'val', semseg=True, saliency='supervised_model')
    name = data.ids[0]
    for path in (shapes / 'images' / f'{name}.jpg', shapes / 'SegmentationClass' / f'{name}.png',
                 shapes / 'saliency_supervised_model' / f'{name}.png'):
        whole = path.read_bytes()
        for broken in (whole[:len(whole) // 2], b'', b'text'):
            path.write_bytes(broken)
            with pytest.raises(UserError, match=path.name):
                data[0]
        path.write_bytes(whole)
    data[0]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    path, denied = tmp_path / 'file', PermissionError(errno.EACCES, 'Permission denied', str(tmp_path / 'file'))
    path.write_bytes(b'some')

    def deny(*_, **__):
        raise denied

    monkeypatch.setattr(Path, 'read_bytes', deny)
    monkeypatch.setattr(torch, 'load', deny)
    for read in (lambda: read_image(path), lambda: load_checkpoint(path)):
        with pytest.raises(UserError, match=rf'{path} cannot be read \(permission denied\); change its permissions'):
            read()
    with pytest.raises(SystemExit):  # wherever else it happens
        run_script(deny)
    assert capsys.readouterr().err.startswith(f'error: cannot read or write: Permission denied ({path}); change its')


def test_lists_in_other_encodings(shapes: Path) -> None:
    ids, classes = read_ids(shapes, 'val'), read_classes(shapes)
    names, yml = shapes / 'sets' / 'val.txt', shapes / 'dataset.yml'
    for path in (names, yml):
        path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())  # as Windows' Notepad marks UTF-8
    assert (read_ids(shapes, 'val'), read_classes(shapes)) == (ids, classes)
    names.write_bytes('café\n'.encode('latin-1'))
    yml.write_bytes('classes: [none, café]\n'.encode('latin-1'))
    with pytest.raises(UserError, match=rf'^{names} is not in UTF-8 \(byte 3\); save it in that encoding'):
        read_ids(shapes, 'val')
    with pytest.raises(UserError, match=rf'^{yml} is not valid YAML in UTF-8 \('):
        read_classes(shapes)


def test_an_image_that_is_listed_twice_is_named(shapes: Path) -> None:
    names = shapes / 'sets' / 'val.txt'
    ids = read_ids(shapes, 'val')
    names.write_text('\n'.join([*ids, ids[2], ids[0], ids[2]]))
    with pytest.raises(UserError, match=rf'^list of image IDs {names} names {ids[0]}, {ids[2]} more than once'):
        read_ids(shapes, 'val')


def test_class_id_outside_the_list(shapes: Path) -> None:
    data = VOCSegmentation(shapes, 'val', semseg=True)
    path = shapes / 'SegmentationClass' / f'{data.ids[0]}.png'
    labels = np.array(Image.open(path))
    labels[0, 0] = 8
    Image.fromarray(labels).save(path)
    with pytest.raises(UserError, match=rf'{path.name} holds class id 8, outside 0\.\.7'):
        data[0]


def test_classes_that_are_not_scored_are_void(shapes: Path) -> None:
    stored = VOCSegmentation(shapes, 'train', semseg=True)
    chosen = [stored.classes[5], stored.classes[2]]
    data = VOCSegmentation(shapes, 'train', semseg=True, eval_classes=chosen)
    assert data.classes == (stored.classes[0], stored.classes[2], stored.classes[5])  # in the data set's order
    seen = set()
    for before, after in zip(stored, data, strict=True):
        expected = [[{0: 0, 2: 1, 5: 2}.get(label, 255) for label in row] for row in before['semseg'].tolist()]
        assert after['semseg'].tolist() == expected
        assert after['semseg'].dtype == np.uint8
        seen |= set(np.unique(after['semseg']))
    assert seen == {0, 1, 2, 255}


def test_every_class_is_scored_unless_some_are_named() -> None:
    names, table = scored_classes(VOC_CLASSES, ())
    assert names == VOC_CLASSES
    assert table.tolist() == [*range(21), *[255] * 235]
    assert scored_classes(VOC_CLASSES, ['background', 'cat'])[0] == ('background', 'cat')
    with pytest.raises(UserError, match='eval_classes names bat, hat, which .* its classes are background, aeroplane'):
        scored_classes(VOC_CLASSES, ['bat', 'cat', 'hat'])


def rename(shapes: Path, old: str, new: str) -> None:
    for folder, suffix in (('images', '.jpg'), ('SegmentationClassAug', '.png'), ('saliency_supervised_model', '.png')):
        (shapes / folder / new).parent.mkdir(exist_ok=True)
        (shapes / folder / (old + suffix)).rename(shapes / folder / (new + suffix))


def test_lists_hold_names_with_blanks_folders_and_comments(shapes: Path) -> None:
    names = shapes / 'sets' / 'trainaug.txt'
    ids = read_ids(shapes, 'trainaug')
    chosen = ['my cat', 'folder/dog 2', ids[2]]
    for old, new in zip(ids, chosen, strict=False):
        rename(shapes, old, new)
    names.write_text('# the first two\n' + '\n'.join([*chosen[:2], '', f'  {ids[2]} ']) + '\n#end')
    data = VOCSegmentation(shapes, 'trainaug', semseg=True, saliency='supervised_model', skip_without_saliency=True)
    assert data.ids == [data[i]['id'] for i in range(3)] == chosen
    assert data.left_out == 0
    for name in ('/etc/a', '../a'):
        names.write_text(name)
        with pytest.raises(UserError, match=rf'^list of image IDs {names} holds "{name}", which is no image below im'):
            read_ids(shapes, 'trainaug')


def test_what_lies_there_instead_is_named(shapes: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    ids = read_ids(shapes, 'trainaug')
    names = shapes / 'sets' / 'trainaug.txt'
    for line, there in ((f'{ids[0]}.jpg', ids[0]), (f'{ids[0]}  1', ids[0]), ('CAT', 'cat'),
                        ('caf\u00e9', 'cafe\u0301')):
        (shapes / f'images/{there}.jpg').write_bytes(b'')
        names.write_text(line)
        what = f'images/{line}.jpg (there is {there}.jpg'
        for skip in (False, True):
            with pytest.raises(UserError, match=re.escape(what)):
                VOCSegmentation(shapes, 'trainaug', saliency='supervised_model', skip_without_saliency=skip)
    assert lies_instead(shapes / 'images' / 'other.jpg') == ''
    names.write_text('\n'.join(ids))
    (shapes / f'images/{ids[1]}.jpg').rename(shapes / f'images/{ids[1]}.JPG')
    data = VOCSegmentation(shapes, 'trainaug', saliency='supervised_model', skip_without_saliency=True)
    assert data.left_out == 1
    assert re.search(r'1 of 12 IDs of trainaug have no image or no saliency mask in \S+: there is no '
                     rf'images/{ids[1]}.jpg \(there is {ids[1]}.JPG\); left out', caplog.text)


def test_what_a_loader_worker_finds_is_one_sentence(shapes: Path) -> None:
    data = VOCSegmentation(shapes, 'val')
    data.image_path(0).write_bytes(b'')
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(data, 1, num_workers=1)))
    assert sentence(caught.value).startswith(f'image file {data.image_path(0)} cannot be read (')


def test_the_layout_of_the_devkit_is_named(shapes: Path) -> None:
    (shapes / 'images').rename(shapes / 'JPEGImages')
    with pytest.raises(UserError, match='has the layout of the VOC devkit .*rename or link JPEGImages/ as images/ and'):
        read_ids(shapes, 'val')


def test_class_names_that_yaml_takes_for_something_else(tmp_path: Path) -> None:
    (tmp_path / 'dataset.yml').write_text('classes: [background, no, on, 1, 1e3, ~]')
    assert read_classes(tmp_path) == ('background', 'no', 'on', '1', '1e3', '~')


def test_palettes_that_differ_are_said(shapes: Path, caplog) -> None:
    VOCSegmentation(shapes, 'val', semseg=True)
    assert 'palettes' not in caplog.text
    path = shapes / 'SegmentationClass' / f'{read_ids(shapes, "val")[1]}.png'
    with Image.open(path) as stored:
        labels = Image.fromarray(np.array(stored), 'P')
    labels.putpalette([9, 9, 9] * 256)
    labels.save(path)
    VOCSegmentation(shapes, 'val', semseg=True)
    assert 'the palettes of the ground truth in' in caplog.text
    assert f'id 0 is (0, 0, 0) in {read_ids(shapes, "val")[0]}.png and (9, 9, 9) in {path.name}' in caplog.text
