"""Masks of new images: of the source that the clusters' have, in a folder, or given; with and without saliency head."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import saliency.predict as saliency
import saliency.sources as saliency_sources
from data.images import read_image
from models.segmentation import ContrastiveSegmentationModel
from segmentation import kmeans, predict, segmenter
from segmentation.objects import Objects
from segmentation.segmenter import Segmenter, object_logits
from tests.colours import RGB, arguments
from utils.run.checkpoint import load_checkpoint, save_checkpoint
from utils.run.errors import UserError

NAMES = ('a.jpg', 'sub/b.png', 'c.jpg', 'd.jpg', 'e.jpg', 'f.jpg')
SIDE, BOX = 48, (slice(14, 34), slice(20, 44))  # of a photograph of 48 x 64


def photographs(folder: Path) -> None:
    """Boxes of three colours on grey noise."""
    draw = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        image = draw.normal(90, 6, (SIDE, SIDE + 16, 3))
        image[BOX] = RGB[1 + i % 3] + draw.normal(0, 6, (20, 24, 3))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> Path:
    """photos/ with unsupervised masks, and their clusters by a plain backbone, results/kmeans."""
    root = tmp_path_factory.mktemp('own')
    photographs(root / 'photos' / 'images')
    saliency.main(['--images', str(root / 'photos' / 'images'), '--output', str(root / 'photos' / 'saliency_masks'),
                   '--method', 'unsupervised', '--workers', '0'])
    torch.manual_seed(0)
    whole = torchvision.models.resnet18().state_dict()
    torch.save({'state_dict': {f'module.encoder_q.{name}': value for name, value in whole.items()}}, root / 'moco.pth')
    kmeans.main(arguments('kmeans', root, 'saliency=masks', 'features=backbone', 'val_db_name=photos', 'val_split=all',
                          'num_clusters=3', 'num_seeds=2', 'pretraining=imagenet_moco',
                          f'moco_state_dict={root / "moco.pth"}'))
    return root


def run(own: Path, output: Path, *more: str, model: Path | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """The report and the label maps of predict.py."""
    predict.main(['--images', str(own / 'photos' / 'images'), '--output', str(output), '--model',
                  str(model or own / 'results' / 'kmeans' / 'clusters.pth.tar'), '--device', 'cpu', '--workers', '2',
                  '--batch-size', '4', *more])
    return json.loads((output / 'report.json').read_text()), maps_in(output / 'predictions')


def maps_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.array(Image.open(path)) for path in sorted(folder.rglob('*.png'))}


def changed(own: Path, folder: Path, **network: object) -> Path:
    """A copy of the clusters that says something else of its network; None: nothing."""
    checkpoint = load_checkpoint(own / 'results' / 'kmeans' / 'clusters.pth.tar')
    kept = {name: value for name, value in (checkpoint['network'] | network).items() if value is not None}
    save_checkpoint({**checkpoint, 'network': kept}, folder / 'clusters.pth.tar')
    return folder / 'clusters.pth.tar'


def test_new_images_get_masks_as_those_of_the_clusters(own: Path, tmp_path: Path) -> None:
    network = load_checkpoint(own / 'results' / 'kmeans' / 'clusters.pth.tar')['network']
    assert (network['masks'], network['mask_method'], network['mask_iou']) == ('masks', 'unsupervised', None)
    assert network['pretraining'] == str(own / 'moco.pth')
    before = maps_in(own / 'results' / 'kmeans' / 'predictions')
    assert {labels.shape for labels in before.values()} == {(SIDE, SIDE + 16)}
    assert set(np.unique(np.stack([*before.values()]))) == {0, 1, 2, 3}
    folder = own / 'photos' / 'saliency_masks'
    for number, more in enumerate(((), ('--masks', 'unsupervised'), ('--masks', str(folder)))):
        report, now = run(own, tmp_path / str(number), *more)
        assert report['settings']['masks'] == (str(folder) if number == 2 else 'unsupervised')
        assert now.keys() == before.keys()
        for name, labels in before.items():
            np.testing.assert_array_equal(now[name], labels)
    with pytest.raises(UserError, match='made with other settings .masks .*saliency_masks then, unsupervised now'):
        run(own, tmp_path / '2')
    image, path = read_image(own / 'photos' / 'images' / 'a.jpg'), own / 'results' / 'kmeans' / 'clusters.pth.tar'
    np.testing.assert_array_equal(Segmenter.load(path, 'cpu')(image), before['a.png'])
    given = Segmenter.load(path, 'cpu', masks='given')
    mask = np.array(Image.open(folder / 'a.png'))
    np.testing.assert_array_equal(given(image, mask=mask), before['a.png'])
    assert not Segmenter.load(path, 'cpu')(np.full((40, 50, 3), 90, np.uint8)).any()  # nothing is salient
    with pytest.raises(UserError, match=r'^a mask of shape \(20, 64\) is not that of an image of shape \(48, 64, 3\)'):
        given(image, mask=mask[:20])
    with pytest.raises(UserError, match='^these clusters need the mask of each image; give mask=, or load them with'):
        given(image)


def test_what_is_older_than_its_image_or_mask_is_told(own: Path, tmp_path: Path, capsys) -> None:
    images, masks = shutil.copytree(own / 'photos' / 'images', tmp_path / 'images'), tmp_path / 'masks'
    shutil.copytree(own / 'photos' / 'saliency_masks', masks)

    def told() -> tuple[bool, list[str]]:
        predict.main(['--images', str(images), '--output', str(tmp_path / 'out'), '--masks', str(masks), '--device',
                      'cpu', '--model', str(own / 'results' / 'kmeans' / 'clusters.pth.tar')])
        return ('there already, 0 left out; 2 of those there are older than their image or mask, or lack it: delete'
                in capsys.readouterr().out), (tmp_path / 'out' / 'report.txt').read_text().splitlines()[1:]

    assert [told(), told()] == [(False, [])] * 2
    for path in (tmp_path / 'out' / 'predictions').rglob('*.png'):
        os.utime(path, (0, path.stat().st_mtime - 1000))
    for path in [*images.rglob('*.*'), *masks.rglob('*.*')]:
        if path.name not in ('c.png', 'b.png'):  # these two are as after a copy of another one
            os.utime(path, (0, path.stat().st_mtime - 2000))
    (images / 'sub' / 'b.png').touch()
    assert told() == (True, [f'older than its image or mask, or without it: {name}' for name in ('c.jpg', 'sub/b.png')])
    for name in ('c', 'sub/b'):
        (tmp_path / 'out' / 'predictions' / f'{name}.png').unlink()
    assert told() == (False, [])
    for name in ('d', 'e'):
        (masks / f'{name}.png').unlink()
    assert told() == (True, [f'older than its image or mask, or without it: {name}.jpg' for name in 'de'])


def test_results_of_others_are_not_taken_for_those_of_a_run(own: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(own / 'results' / 'kmeans', tmp_path / 'kmeans')
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match='kmeans holds predictions/.*png, and no report.json says how it was made'):
        run(own, folder)
    drawn = tmp_path / 'masks' / 'sub' / 'b.png'
    drawn.parent.mkdir(parents=True)
    Image.new('L', (SIDE + 16, SIDE), 255).save(drawn)
    before[drawn] = drawn.read_bytes()
    with pytest.raises(UserError, match='masks holds sub/b.png, and no report.json says how it was made'):
        saliency.main(['--images', str(own / 'photos' / 'images'), '--output', str(tmp_path / 'masks'), '--method',
                       'unsupervised', '--workers', '0'])
    assert before == {path: path.read_bytes() for path in before}


def test_a_mask_too_small_for_the_network_is_background(own: Path) -> None:
    given = Segmenter.load(own / 'results' / 'kmeans' / 'clusters.pth.tar', 'cpu', masks='given')
    image, mask = np.full((900, 900, 3), 90, np.uint8), np.zeros((900, 900), np.uint8)
    mask[1, 1] = 1
    assert not given(image, mask=mask).any()
    mask[200:700, 200:700] = 1
    assert given(image, mask=mask)[450, 450]


@pytest.mark.parametrize('lost', ['size', 'fingerprint', 'centres'])
def test_clusters_made_by_hand_are_one_sentence(own: Path, tmp_path: Path, lost: str) -> None:
    path = changed(own, tmp_path, **{lost: None})
    if lost == 'centres':
        save_checkpoint({**load_checkpoint(path), 'centres': [[0.0]]}, path)
    with pytest.raises(UserError, match=f'^{path} must hold the tensors .*{lost}.*; run kmeans.py again.$'):
        Segmenter.load(path, 'cpu')


def test_precomputed_masks_are_as_sure_as_those_of_the_crf() -> None:
    objects = Objects(np.array([[0, 1]]), np.zeros((1, 2)), torch.ones(1, 1))
    logits, _ = object_logits(np.array([[0, 1]]), objects, 0)
    assert 1 / (1 + np.exp(logits[0, 0, 1] - logits[1, 0, 1])) == pytest.approx(saliency_sources.SURE, abs=1e-6)


def test_what_to_give_where_nothing_tells(own: Path, tmp_path: Path, monkeypatch) -> None:
    for network, text in (({'mask_method': None}, 'the precomputed masks masks, and'),
                          ({'mask_method': 'basnet'}, 'the precomputed masks masks of --method basnet, and')):
        with pytest.raises(UserError, match=f'was made with {text} its network predicts none; give --masks unsup'):
            run(own, tmp_path / 'out', model=changed(own, tmp_path, **network))
    with pytest.raises(UserError, match='and its network predicts none; give --masks unsupervised, or --masks FOLDER'):
        run(own, tmp_path / 'out', '--masks', 'network')
    with pytest.raises(UserError, match='^there are no masks supervised; choose network, unsupervised, given.$'):
        Segmenter.load(changed(own, tmp_path), 'cpu', masks='supervised')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='^--masks ./network is no folder; give'):
        run(own, tmp_path / 'out', '--masks', './network')
    (tmp_path / 'network').mkdir()
    with pytest.raises(UserError, match='^none of the 6 images has a mask in network; a mask needs the relative path'):
        run(own, tmp_path / 'out', '--masks', './network')


def test_images_without_a_mask_are_named_and_stored_orientation_counts(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'masks'
    for name in ('a', 'c', 'sub/b'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(own / 'photos' / 'saliency_masks' / f'{name}.png').save(folder / f'{name}.png')
    report, maps = run(own, tmp_path / 'out', '--masks', str(folder))
    assert sorted(maps) == ['a.png', 'c.png', 'sub/b.png']
    assert report['left_out'] == dict.fromkeys(('d.jpg', 'e.jpg', 'f.jpg'), f'no mask in {folder}')
    Image.new('L', (30, 64)).save(folder / 'd.png')
    (folder / 'e.png').write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'^2 of 6 images cannot be read: d.jpg \(its mask is 30 x 64, .*; replace'):
        run(own, tmp_path / 'out', '--masks', str(folder))

    turned, exif = tmp_path / 'turned' / 'photos' / 'images', Image.Exif()
    turned.mkdir(parents=True)
    exif[0x0112] = 6  # stored lying: a viewer turns it by 90 degrees
    image, mask = np.rot90(read_image(own / 'photos' / 'images' / 'sub' / 'b.png')), np.zeros((64, SIDE), np.uint8)
    mask[30:50, 10:20] = 255
    Image.fromarray(image).save(turned / 'x.png', exif=exif)
    Image.fromarray(mask).save(tmp_path / 'turned' / 'x.png')
    model = own / 'results' / 'kmeans' / 'clusters.pth.tar'
    _, maps = run(tmp_path / 'turned', tmp_path / 'upright', '--masks', str(tmp_path / 'turned'), model=model)
    np.testing.assert_array_equal(maps['x.png'] > 0, np.rot90(mask, -1) > 0)


def test_a_head_that_predicts_other_masks(own: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    network = ContrastiveSegmentationModel('resnet18', ndim=8)
    network.classification_head.weight.data.zero_()  # a score of 0 everywhere: no object
    save_checkpoint(network.state_dict(), tmp_path / 'trained.pth.tar')
    kmeans.main(arguments('kmeans', own, 'saliency=masks', 'val_db_name=photos', 'val_split=all', 'num_clusters=3',
                          'num_seeds=2', f'pretraining={tmp_path / "trained.pth.tar"}', f'output_dir={tmp_path}/found'))
    saved = load_checkpoint(tmp_path / 'found' / 'clusters.pth.tar')
    assert saved['network']['mask_iou'] == 0
    printed = capsys.readouterr().out
    assert f'with those of {own}/photos/saliency_masks is 0.000' in printed
    assert 'The network predicts other masks than those that these clusters are of: segment new images' in printed
    # of masks that nothing tells the network's are taken, and a warning says how good they are
    network = {name: value for name, value in saved['network'].items() if name != 'mask_method'}
    save_checkpoint({**saved, 'network': network}, tmp_path / 'clusters.pth.tar')
    said: list[str] = []
    monkeypatch.setattr(segmenter.log, 'warning', lambda text, *values: said.append(text % values))
    assert Segmenter.load(tmp_path / 'clusters.pth.tar', 'cpu').masks == 'network'
    assert 'that the network predicts, whose mean IoU with those was 0.00: their objects may differ' in said.pop()
    assert Segmenter.load(tmp_path / 'clusters.pth.tar', 'cpu', masks='network').masks == 'network'
    assert said == []


def test_the_crf_takes_a_precomputed_mask_as_certain() -> None:
    ids = np.zeros((8, 9), np.uint8)
    ids[2:5, 3:6] = 1
    logits, channels = object_logits(ids * 7, Objects(ids, np.empty(0), torch.ones(1, 1)), 0)
    np.testing.assert_array_equal(channels[logits.argmax(0)], ids * 7)
    certain = np.exp(logits).max(0) / np.exp(logits).sum(0)
    np.testing.assert_allclose(certain, 0.999, atol=1e-4)
