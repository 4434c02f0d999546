"""The script that masks a folder of images, run as its users run it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saliency.predict as script
from data.images import read_image
from saliency.predict import main
from tests.golden_inputs import photo
from tests.test_utils_report_run import Page
from utils.run.errors import UserError
from utils.run.script import run_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    """Images of every kind the script takes, and some that it must leave out."""
    images = tmp_path / 'images'
    (images / 'sub' / 'deep').mkdir(parents=True)
    colour = Image.fromarray(photo('predict', 60, 80))
    colour.save(images / 'a.jpg')
    colour.save(images / 'sub' / 'b.WEBP')
    colour.convert('L').save(images / 'sub' / 'deep' / 'grey.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, seen standing
    colour.save(images / 'turned.jpeg', exif=exif)
    alpha = np.zeros((60, 80, 4), np.uint8)
    alpha[20:40, 20:60] = 30, 30, 30, 255
    Image.fromarray(alpha).save(images / 'alpha.png')
    Image.new('RGB', (30, 20), 'blue').save(images / 'empty.png')
    colour.save(images / 'a.webp')  # would have the mask of a.jpg
    (images / 'broken.jpg').write_bytes((images / 'a.jpg').read_bytes()[:700])
    (images / 'notes.txt').write_text('no image')
    (images / '.hidden.jpg').write_text('no image')
    return images


def run(images, output, *more):
    main(['--images', str(images), '--output', str(output), '--method', 'unsupervised', *more])
    return json.loads((output / 'report.json').read_text())


@pytest.mark.parametrize('workers', ['0', '1'])
def test_masks_and_report(folder, tmp_path, workers, capsys):
    output = tmp_path / 'masks'
    report = run(folder, output, '--workers', workers)
    expected = {'a.png': (80, 60), 'sub/b.png': (80, 60), 'sub/deep/grey.png': (80, 60), 'turned.png': (60, 80),
                'alpha.png': (80, 60)}
    assert {path.relative_to(output).as_posix() for path in output.rglob('*.png')} == set(expected)
    for name, size in expected.items():
        mask = Image.open(output / name)
        assert mask.size == size
        assert mask.mode == 'L'
        assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert (report['images'], report['masks_written'], report['masks_existing']) == (8, 5, 0)
    assert report['left_out']['broken.jpg'].startswith('cannot be read')
    assert report['left_out']['empty.png'].startswith('no object')
    assert report['left_out']['a.webp'] == 'its mask would have the name of that of a.jpg'
    assert 'left out: broken.jpg: cannot be read' in (output / 'report.txt').read_text()
    assert Image.open(output / 'contact_sheet.jpg').width > 500
    shown = Page(output / 'report.html').text
    for text in ('masks written', 'broken.jpg', 'no object: less than 1%', 'contact_sheet.jpg', 'unsupervised'):
        assert text in shown, text
    assert [path.name for path in output.rglob('.*')] == ['.lock']  # nothing unfinished
    assert '8 images: 5 masks written' in capsys.readouterr().out


def test_no_mask_at_all_is_a_mistake(tmp_path):
    (tmp_path / 'images').mkdir()
    for name in 'abcd':
        Image.new('RGB', (30, 20), 'blue').save(tmp_path / 'images' / f'{name}.png')
    with pytest.raises(UserError, match=r'^none of the 4 images has a mask: a.png \(no object.* and 1 more; replace'):
        run(tmp_path / 'images', tmp_path / 'masks', '--workers', '0')
    assert '4 left out' in (tmp_path / 'masks' / 'report.txt').read_text()


def test_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    output = tmp_path / 'masks'
    written, write = [], script.save_mask

    def stop_at_the_third(mask, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(mask, path)

    monkeypatch.setattr(script, 'save_mask', stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(folder, output, '--workers', '0')
    monkeypatch.setattr(script, 'save_mask', write)
    before = {path: path.stat().st_mtime_ns for path in written}
    report = run(folder, output, '--workers', '0')
    assert (report['masks_written'], report['masks_existing']) == (3, 2)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert run(folder, output, '--workers', '0')['masks_existing'] == 5


def test_other_settings_need_another_folder(folder, tmp_path):
    output = tmp_path / 'masks'
    output.mkdir()
    (output / 'report.json').write_text(json.dumps({'settings': {'method': 'basnet', 'weights': '/w.pth'}}))
    with pytest.raises(UserError, match='method basnet then, unsupervised now'):
        run(folder, output)
    (output / 'report.json').write_text('[]')
    with pytest.raises(UserError, match='not a report of this script'):
        run(folder, output)
    run(folder / 'sub', tmp_path / 'others', '--workers', '0')
    (folder / 'b.webp').write_bytes((folder / 'a.webp').read_bytes())
    with pytest.raises(UserError, match=r'made with other settings \(images \S+/sub then, \S+/images now\)'):
        run(folder, tmp_path / 'others')


def test_basnet(folder, tmp_path):
    from saliency.basnet import BASNet
    torch.manual_seed(0)
    torch.save(BASNet().state_dict(), tmp_path / 'basnet.pth')
    output = tmp_path / 'masks'
    main(['--images', str(folder / 'sub'), '--output', str(output), '--method', 'basnet', '--weights',
          str(tmp_path / 'basnet.pth'), '--workers', '1', '--batch-size', '2', '--device', 'cpu', '--input-size', '64'])
    report = json.loads((output / 'report.json').read_text())
    assert report['masks_written'] + len(report['left_out']) == report['images'] == 2

    (tmp_path / 'basnet.pth').rename(tmp_path / 'moved.pth')
    flags = ['--images', str(folder / 'sub'), '--output', str(output), '--method', 'basnet', '--workers', '1',
             '--device', 'cpu', '--input-size', '64', '--weights']
    main([*flags, str(tmp_path / 'moved.pth')])  # the same weights
    torch.manual_seed(1)
    torch.save(BASNet().state_dict(), tmp_path / 'moved.pth')
    with pytest.raises(UserError, match=r'made with other settings \(weights \w{16} then, \w{16} now\)'):
        main([*flags, str(tmp_path / 'moved.pth')])


class Coarse:
    """A map of a box that is larger than the object."""

    def __call__(self, images):
        maps = [np.full(image.shape[:2], 0.1, np.float32) for image in images]
        for one in maps:
            one[10:50, 14:66] = 0.7
        return maps


@pytest.mark.parametrize('workers', ['0', '1'])
def test_crf_finds_the_outline(tmp_path, monkeypatch, workers):
    pytest.importorskip('pydensecrf', reason='the CRF is optional')
    images = tmp_path / 'images'
    images.mkdir()
    object_ = np.zeros((60, 80), bool)
    object_[16:44, 22:58] = True
    Image.fromarray(np.where(object_[..., None], [200, 60, 40], [40, 90, 60]).astype(np.uint8)).save(images / 'a.png')
    monkeypatch.setattr(script, 'build_source', lambda *_, **__: Coarse())
    flags = ['--images', str(images), '--method', 'basnet', '--workers', workers, '--output']
    main([*flags, str(tmp_path / 'plain')])
    main([*flags, str(tmp_path / 'refined'), '--crf-postprocess'])
    assert (np.asarray(Image.open(tmp_path / 'plain' / 'a.png')) > 0).sum() == 40 * 52
    refined = np.asarray(Image.open(tmp_path / 'refined' / 'a.png')) > 0
    assert (refined != object_).sum() <= 0.05 * object_.sum()
    with pytest.raises(UserError, match='crf_postprocess True then, None now'):
        main([*flags, str(tmp_path / 'refined')])


def test_unsupervised_has_no_crf(folder, tmp_path):
    with pytest.raises(UserError, match='has GrabCut in place of the CRF; leave out --crf-postprocess'):
        run(folder, tmp_path / 'masks', '--crf-postprocess')
    assert not (tmp_path / 'masks').exists()


def test_names_that_are_hard_to_write(folder, tmp_path):
    odd = Path(os.fsdecode(str(tmp_path / 'odd').encode() + b'\xff'))
    (odd / 'sub').mkdir(parents=True)
    for name in (b'good\xff.jpg', b'two\nlines.jpg'):
        (odd / 'sub' / os.fsdecode(name)).write_bytes((folder / 'a.jpg').read_bytes())
    for name in (b'bad\xfe.jpg', b'bad\nlines.jpg'):
        (odd / os.fsdecode(name)).write_bytes(b'nothing')
    command = [sys.executable, 'saliency/predict.py', '--images', str(odd), '--output', f'{odd}_masks', '--method',
               'unsupervised', '--workers', '0']
    for there in (0, 2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f'4 images: {2 - there} masks written, {there} there already, 2 left out' in done.stdout
    lines = Path(f'{odd}_masks', 'report.txt').read_text(encoding='utf-8').splitlines()
    assert [line.partition(' cannot')[0] for line in lines[1:]] == [
        r'left out: bad\nlines.jpg:', r'left out: bad\udcfe.jpg:']


def test_a_full_disk_is_one_sentence(folder, tmp_path, monkeypatch, capsys):
    def full(mask, path):
        raise OSError(28, 'No space left on device', str(path))

    monkeypatch.setattr(script, 'save_mask', full)
    with pytest.raises(SystemExit):
        run_script(lambda: run(folder, tmp_path / 'masks', '--workers', '0'))
    assert capsys.readouterr().err.endswith('a.png); free some space or choose another folder.\n')


def test_workers_are_the_cores_that_may_be_used(monkeypatch, parsed):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {3})
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    flags = ['--images', 'a', '--output', 'b', '--method', 'unsupervised']
    assert parsed(main, flags).workers == 1
    assert parsed(main, [*flags, '--workers', '5']).workers == 5


def test_mistakes_are_one_sentence(folder, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    (tmp_path / 'file').write_text('')
    for arguments, sentence in (((empty, tmp_path / 'out'), 'holds no image'),
                                ((tmp_path / 'none', tmp_path / 'out'), 'not a folder'),
                                ((folder, folder / 'masks'), 'one inside the other'),
                                ((folder, tmp_path), 'one inside the other'),
                                ((folder, tmp_path / 'file'), 'cannot write to output folder'),
                                ((folder, tmp_path / 'out', '--workers', '-1'), '--workers'),
                                ((folder, tmp_path / 'out', '--batch-size', '0'), '--batch-size'),
                                ((folder, tmp_path / 'out', '--weights', 'w.pth'), 'takes no --weights; leave it out')):
        with pytest.raises(UserError, match=sentence):
            run(*arguments)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('place', ['.', 'saliency'])
def test_as_a_command(folder, tmp_path, place):
    path = Path('predict.py') if place == 'saliency' else Path('saliency/predict.py')
    command = [sys.executable, str(path), '--images', str(folder / 'sub'), '--output', str(tmp_path / 'out')]
    done = subprocess.run([*command, '--method', 'unsupervised', '--workers', '1'], cwd=ROOT / place,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out' / 'b.png').is_file()
    failed = subprocess.run([*command, '--method', 'basnet'], cwd=ROOT / place, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith('error: --method basnet needs --weights')
    assert len(failed.stderr.splitlines()) == 1


def test_deep_grey_and_transparency(tmp_path):
    Image.fromarray(np.array([[0, 65535], [32768, 100]], np.uint16)).save(tmp_path / 'deep.png')
    assert read_image(tmp_path / 'deep.png')[..., 0].tolist() == [[0, 255], [128, 0]]
    Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)).save(tmp_path / 'alpha.png')
    assert read_image(tmp_path / 'alpha.png')[0].tolist() == [[255] * 3, [9] * 3]


def test_contact_sheet_skips_damaged_images(folder, tmp_path):
    output = tmp_path / 'masks'
    run(folder, output, '--workers', '0')
    (folder / 'a.jpg').write_bytes(b'')
    (output / 'contact_sheet.jpg').unlink()
    run(folder, output, '--workers', '0')
    assert (output / 'contact_sheet.jpg').is_file()
