"""Masks of vision transformers against figures of the published code of MaskDistill."""
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import VisionTransformer

import saliency.predict as script
import saliency.transformer
from data.coco import annotation, outline_objects, write_coco
from data.images import read_mask, read_objects
from models.backbones import IMAGENET
from models.transformer import FrozenTransformer, load_transformer
from models.weights import read_weights
from saliency.transformer import TransformerSaliency, mask_cut, salient_patches, strongest, to_pixels
from tests import golden_transformers as inputs
from tests.golden_inputs import generator
from tests.golden_transformers import GOLDENS, rows_of_bits
from utils.run.devices import Precision
from utils.run.errors import UserError

TINY = GOLDENS['vit']


@pytest.fixture
def topk_of_torch(monkeypatch):
    """Equal scores in the order of torch.topk, with which these figures were taken; all else is as it is."""
    monkeypatch.setattr(saliency.transformer, 'largest', lambda scores, count: scores.topk(count).indices)


def tiny(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=6, num_classes=0, **kwargs)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_strongest(dtype):
    golden = GOLDENS['threshold_attention']
    positive = torch.from_numpy(np.abs(generator('attention/positive').standard_normal((3, 40)))).to(dtype)
    mixed = torch.from_numpy(generator('attention/mixed').standard_normal((2, 40)) + [[0.4], [-0.4]]).to(dtype)
    for mass in (0.5, 0.6):
        assert rows_of_bits(strongest(positive, mass) != 0) == golden[f'positive_{mass}']
    assert rows_of_bits(strongest(mixed, 0.5) != 0) == golden['mixed_0.5']
    kept = strongest(positive, 0.5)
    assert ((kept == positive) | (kept == 0)).all()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', GOLDENS['mask_generator'])
def test_salient_patches(name, dtype):
    golden = GOLDENS['mask_generator'][name]
    queries, keys = (torch.from_numpy(x).to(dtype) for x in inputs.queries_keys(name, **golden['what']))
    grid = golden['what']['rows'], golden['what']['cols']
    for heads, topk in ((5, 0.4), (5, 0.2), (6, 0.4)):
        found = salient_patches(queries[0, :, 0], keys[0, :, 1:], grid, heads, topk)
        assert rows_of_bits(found) == golden[f'heads{heads}_topk{topk}']['mask']


@pytest.mark.parametrize('name', [name for name in TINY if name not in ('what', 'state_dict')])
def test_tokens_of_a_tiny_transformer(name, topk_of_torch):
    golden, (height, width) = TINY[name], TINY[name]['size']
    network = inputs.fill(tiny()).double()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == TINY['state_dict']
    transformer = FrozenTransformer(network, 'tiny')
    picture = (inputs.normalised(inputs.photo(name, height, width)) if name.startswith('photo') else
               inputs.image(name, height, width).astype(np.float64))
    tokens = transformer(torch.from_numpy(picture)[None])
    positions = network.pos_embed.double()
    near = {'abs': 1e-7, 'rel': 1e-7}
    assert positions.sum().item() == pytest.approx(golden['pos_embed_sum'], **near)
    assert positions[0, 1, ::12].tolist() == pytest.approx(golden['pos_embed_at_1_0_12'], **near)
    assert tokens.queries[0, 0].tolist() == pytest.approx(golden['query_cls_head0'], **near)
    assert tokens.keys[0, 0, 0].tolist() == pytest.approx(golden['key_patch0_head0'], **near)
    assert tokens.keys[0, 5, -1].tolist() == pytest.approx(golden['key_last_head5'], **near)
    assert tokens.cls[0, ::6].tolist() == pytest.approx(golden['cls_feature'], **near)
    assert tokens.cls.norm().item() == pytest.approx(golden['cls_feature_norm'], **near)
    grid = height // 16, width // 16
    assert rows_of_bits(salient_patches(tokens.queries[0], tokens.keys[0], grid)) == golden['mask']
    again = FrozenTransformer(inputs.fill(tiny()).double(), 'tiny')
    again(torch.zeros(1, 3, 96, 32, dtype=torch.float64))  # another size before changes nothing
    assert torch.equal(again(torch.from_numpy(picture)[None]).keys, tokens.keys)


@pytest.mark.parametrize(('name', 'registers'), [('vit_small_patch14_reg4_dinov2', 4), ('vit_small_patch16_dinov3', 4)])
def test_registers_and_rotary_positions(name, registers):
    network = timm.create_model(name, num_classes=0, depth=2)
    transformer = FrozenTransformer(network, name)
    assert network.num_prefix_tokens == 1 + registers
    side = transformer.patch[0]
    for rows, columns in ((3, 5), (4, 2)):
        tokens = transformer(torch.rand(2, 3, rows * side, columns * side))
        assert tokens.keys.shape[:3] == (2, tokens.queries.shape[1], rows * columns)
        assert tokens.cls.shape == (2, network.embed_dim)


@pytest.mark.parametrize('name', ['vit_base_patch16_siglip_224', 'resnet18', 'swin_tiny_patch4_window7_224',
                                  'cait_xxs24_224', 'eva02_tiny_patch14_224', 'vit_tiny_r_s16_p8_224'])
def test_networks_without_such_an_attention_are_refused(name):
    with pytest.raises(UserError, match='choose (a|another) vision transformer'):
        TransformerSaliency(FrozenTransformer(timm.create_model(name), name), Precision(torch.device('cpu')))


@pytest.mark.parametrize(('name', 'mean'), [('vit_tiny_patch16_224', IMAGENET[0]),
                                            ('vit_tiny_patch16_224.augreg_in21k', (0.5, 0.5, 0.5))])
def test_weights_of_a_file_get_the_colours_of_dino_or_of_the_tag(name, mean, tmp_path: Path):
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / 'vit.pth')
    loaded = load_transformer(f'timm/{name}', read_weights(tmp_path / 'vit.pth', timm=True))
    assert loaded.mean == mean
    assert load_transformer(f'timm/{name}', None).mean == (0.5, 0.5, 0.5)


def test_an_image_of_too_many_patches_gets_no_mask(caplog):
    network = timm.create_model('test_vit', num_classes=0)
    source = TransformerSaliency(FrozenTransformer(network, 'timm/test_vit'), Precision(torch.device('cpu')), 64, 1)
    images = [np.zeros((8, 80_000, 3), np.uint8), np.zeros((30, 40, 3), np.uint8)]
    wide, usual = source(images)
    assert (wide.shape, usual.shape) == ((8, 80_000), (30, 40))
    assert not wide.any()
    assert '80000 x 8 px make more than 32768 patches' in caplog.text
    assert (usual == source(images[1:])[0]).all()


def photo_masks(precision='fp32', **kwargs):
    network = inputs.fill(timm.create_model('vit_small_patch16_224', num_classes=0))
    transformer = FrozenTransformer(network, 'timm/vit_small_patch16_224')
    source = TransformerSaliency(transformer, Precision(torch.device('cpu'), precision), resize=160, **kwargs)
    sizes = GOLDENS['gen_masks']['sizes']
    return source(list(map(inputs.photo, sizes, *zip(*sizes.values(), strict=True)))), source


def test_masks_and_annotations_of_the_published_script(topk_of_torch, tmp_path):
    golden = GOLDENS['gen_masks']
    drawn, source = photo_masks()
    assert [objects.shape for objects in drawn] == [*map(tuple, golden['sizes'].values())]
    rows = [(f'{name}.jpg', *outline_objects(objects)) for name, objects in zip(golden['sizes'], drawn, strict=True)]
    assert not write_coco(tmp_path / 'coco.json', rows)
    coco = json.loads((tmp_path / 'coco.json').read_text())
    assert coco['images'] == golden['images']
    for found, expected in zip(coco['annotations'], golden['annotations'], strict=True):
        outlines, theirs = found.pop('segmentation'), expected.pop('segmentation')
        assert found == expected
        assert [pytest.approx(line, abs=1e-9) for line in theirs] == outlines
    one = source([inputs.photo('2008_000003', 64, 64)])  # alone, as in the batch
    assert (one[0] == drawn[2]).all()


IDS = 'id', 'image_id'  # which ``write_coco`` gives


@pytest.mark.parametrize('name', GOLDENS['annotation_entry'])
def test_annotation(name):
    golden = GOLDENS['annotation_entry'][name]
    masks = {'empty': np.zeros((20, 30), bool), 'full': np.ones((20, 30), bool),
             'single_pixel': np.zeros((20, 30), bool), 'two_by_two': np.zeros((20, 30), bool)}
    masks['single_pixel'][4, 5] = masks['two_by_two'][4:6, 5:7] = True
    if name in masks:
        entry = annotation(masks[name])
        assert entry == (golden and {key: golden[key] for key in golden if key not in IDS})
        return
    height, width = (48, 64) if name == 'd' else (60, 80)
    mask = inputs.mask(name, height, width, shapes=3) if name == 'd' else inputs.mask(name, height, width, 2, 1)
    size = tuple(golden['image_size_wh'][::-1])
    resized = to_pixels(mask.astype(np.uint8), (1, 1), (height, width), size)
    assert (mask.sum(), resized.shape) == (golden['area_before'], tuple(golden['resized_shape']))
    assert resized.sum() == golden['resized_area']
    assert (resized.sum(1) * np.arange(len(resized))).sum() == golden['resized_rows_sum']
    entry, expected = annotation(resized > 0), golden['entry']
    assert {key: value for key, value in entry.items() if key != 'segmentation'} == {
        key: value for key, value in expected.items() if key not in ('segmentation', *IDS)}
    assert entry['segmentation'] == [pytest.approx(line, abs=1e-9) for line in expected['segmentation']]


def boxes(rows, columns, *places):
    """Keys (1, N, d), a direction of its own for each box (y, x, height, width) and for the ground, and the boxes."""
    objects = np.zeros((rows, columns), np.uint8)
    for number, (y, x, height, width) in enumerate(places, 1):
        objects[y:y + height, x:x + width] = number
    directions = np.eye(len(places) + 1, dtype=np.float32)[objects.ravel()]
    noise = 0.05 * generator('boxes').standard_normal(directions.shape).astype(np.float32)
    return torch.from_numpy(directions + noise)[None], objects


def test_several_masks_of_one_image():
    keys, objects = boxes(14, 18, (1, 2, 5, 5), (8, 10, 5, 6))
    found = mask_cut(keys, (14, 18), 3)
    assert {tuple(np.unique(found[objects == number])) for number in (1, 2)} == {(1,), (2,)}
    assert (found[objects == 0] == 0).all()
    assert (mask_cut(keys, (14, 18), 1) > 0).sum() in (25, 30)
    assert not mask_cut(torch.ones(1, 12, 4), (3, 4), 3).any()  # nothing to tell apart


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file of ViT-Ti/16 with the weights of its names and, as DINO's own files may, a projection head."""
    network = inputs.fill(timm.create_model('vit_tiny_patch16_224', num_classes=0))
    path = tmp_path_factory.mktemp('weights') / 'dino.pth'
    torch.save(network.state_dict() | {'head.mlp.0.weight': torch.zeros(3, 3)}, path)
    return path


def predict(images, output, weights, *flags):
    script.main(['--images', str(images), '--output', str(output), '--method', 'transformer', '--backbone',
                 'timm/vit_tiny_patch16_224', '--weights', str(weights), '--resize', '80', '--device', 'cpu',
                 '--workers', '1', '--heads', '3', *flags])
    return json.loads((output / 'report.json').read_text())


def test_script_masks_and_coco_file(tmp_path, weights, topk_of_torch):
    (tmp_path / 'images' / 'sub').mkdir(parents=True)
    for name, size in (('a', (60, 80)), ('sub/b', (75, 50)), ('c', (60, 80))):
        Image.fromarray(inputs.photo(name, *size)).save(tmp_path / 'images' / f'{name}.png')
    (tmp_path / 'truth.json').write_text('{"images": []}')
    with pytest.raises(UserError, match='truth.json is a folder or a file of something else'):
        predict(tmp_path / 'images', tmp_path / 'masks', weights, '--coco', str(tmp_path / 'truth.json'))
    report = predict(tmp_path / 'images', tmp_path / 'masks', weights, '--coco', str(tmp_path / 'first.json'))
    assert (report['masks_written'], report['left_out']) == (3, {})
    coco = json.loads((tmp_path / 'first.json').read_text())
    assert [image['file_name'] for image in coco['images']] == ['a.png', 'c.png', 'sub/b.png']
    for image, entry in zip(coco['images'], coco['annotations'], strict=True):
        mask = np.asarray(Image.open(tmp_path / 'masks' / image['file_name'])) > 0
        assert mask.shape == (image['height'], image['width'])
        assert mask.sum() == entry['area']
    (tmp_path / 'masks' / 'c.png').unlink()
    report = predict(tmp_path / 'images', tmp_path / 'masks', weights, '--coco', str(tmp_path / 'again.json'))
    assert (report['masks_written'], report['masks_existing']) == (1, 2)
    assert (tmp_path / 'again.json').read_text() == (tmp_path / 'first.json').read_text()
    with pytest.raises(UserError, match='topk None then, 0.3 now'):
        predict(tmp_path / 'images', tmp_path / 'masks', weights, '--topk', '0.3')
    state = torch.load(weights)
    state.pop('norm.weight')
    torch.save(state, tmp_path / 'cut.pth')
    with pytest.raises(UserError, match='missing: network.norm.weight'):
        predict(tmp_path / 'images', tmp_path / 'other', tmp_path / 'cut.pth')


def test_script_writes_several_objects(tmp_path, weights, monkeypatch):
    (tmp_path / 'images').mkdir()
    Image.fromarray(inputs.photo('a', 60, 80)).save(tmp_path / 'images' / 'a.png')
    objects = np.zeros((60, 80), np.uint8)
    objects[5:25, 5:25], objects[30:55, 40:70], objects[2, 2] = 1, 2, 3
    monkeypatch.setattr(TransformerSaliency, '__call__', lambda self, images: [objects])
    report = predict(tmp_path / 'images', tmp_path / 'masks', weights, '--masks-per-image', '3', '--coco',
                     str(tmp_path / 'coco.json'))
    stored = np.asarray(Image.open(tmp_path / 'masks' / 'a.png'))
    assert np.unique(stored).tolist() == [0, 253, 254, 255]
    assert (read_objects(tmp_path / 'masks' / 'a.png').values == objects).all()
    assert (read_mask(tmp_path / 'masks' / 'a.png').values == (objects > 0)).all()
    assert [entry['area'] for entry in json.loads((tmp_path / 'coco.json').read_text())['annotations']] == [400, 750]
    assert 'a mask without an outline' in report['left_out']['a.png']


def test_settings_that_the_network_has_not():
    with pytest.raises(UserError, match='--heads 7 is more than the 6 of'):
        photo_masks(heads=7)
    for share in ({'topk': 1.1}, {'mass': 0.0}, {'mass': float('nan')}):
        with pytest.raises(UserError, match='--topk .* and --mass .* must be shares'):
            photo_masks(**share)
    with pytest.raises(UserError, match='--topk 0.001 of the 100 patches of a square image is none'):
        photo_masks(topk=0.001)
    drawn, _ = photo_masks('bf16')
    for exact, rounded in zip(photo_masks()[0], drawn, strict=True):
        assert ((exact > 0) == (rounded > 0)).mean() > 0.95
