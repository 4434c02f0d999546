"""Pseudo labels: features of boxes and clusters of the published script, and the script on flat colours."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.cluster import MiniBatchKMeans

from data.coco import read_instances
from models.transformer import FrozenTransformer
from segmentation import clustering, kmeans
from segmentation import pseudo_labels as script
from segmentation.mask_labels import classes_of_clusters, standardise
from segmentation.pseudo_labels import box_feature, read_clusters
from tests import golden_transformers as inputs
from tests.colours import MIDDLE, ColourModel, results, runner, write_image, write_lists
from tests.golden_inputs import generator
from tests.golden_transformers import GOLDENS
from utils.run.errors import UserError
from utils.run.files import save_mask


@pytest.fixture(scope='module')
def transformer() -> FrozenTransformer:
    network = inputs.fill(timm.create_model('vit_small_patch8_224', num_classes=0))
    return FrozenTransformer(network, 'timm/vit_small_patch8_224')


def test_features_of_boxes(transformer: FrozenTransformer) -> None:
    golden, draw = GOLDENS['crop_features'], generator('crops')
    sizes = {'2008_000001': (60, 80), '2008_000002': (75, 50), '2008_000003': (64, 64), '2008_000004': (96, 125)}
    photos = {name: inputs.photo(name, *size) for name, size in sizes.items()}
    boxes, found = [], []
    for i in range(40):
        name, (h, w) = list(sizes.items())[i % 4]
        width, height = int(draw.integers(12, w // 2)), int(draw.integers(12, h // 2))
        box = [int(draw.integers(0, w - width)), int(draw.integers(0, h - height)), width, height]
        boxes.append([2.5, 3.5, 20, 17] if i == 0 else box)
        found.append(box_feature(transformer, photos[name], boxes[-1]))
    assert boxes == golden['boxes']
    features = np.stack(found)
    assert list(features.shape) == golden['shape']
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), golden['norms'], atol=1e-3)
    for row, values in ((features[0], 'first'), (features[1], 'second'), (features[-1], 'last')):
        assert any(np.allclose(row[::step][:8], golden[values], atol=1e-4) for step in range(1, 49))
    with pytest.raises(UserError, match='holds no pixel'):
        box_feature(transformer, photos['2008_000001'], (5, 5, 0.2, 3))


def test_clusters_of_the_published_script(transformer: FrozenTransformer, monkeypatch) -> None:
    golden = GOLDENS['cluster_script']
    sizes = [(40 + i % 5, 48 + i % 7) for i in range(60)]
    features = np.stack([box_feature(transformer, inputs.colour_photo(f'2009_{i:06d}', 7 * i % 20, h, w),
                                     (4, 4, w - 8, h - 8)) for i, (h, w) in enumerate(sizes)])
    np.testing.assert_allclose(np.linalg.norm(features[:10], axis=1), golden['feature_norms'], atol=1e-3)
    steps = [features[0, ::step][:8] for step in range(1, 49)]
    assert any(np.allclose(values, golden['feature_0'], atol=1e-4) for values in steps)
    monkeypatch.setattr(clustering, 'MiniBatchKMeans', lambda *args, n_init, **kwargs: MiniBatchKMeans(
        *args, n_init=1, **kwargs))  # what the script's call means to the scikit-learn of its figures
    found = clustering.kmeans(standardise(features), 20, 1234)
    labels = classes_of_clusters(found.ids, np.array(golden['true_ids']), 20, 20)
    assert labels[found.ids].tolist() == golden['category_ids']


COLOURS = [(label, f'{name}_{i}') for label, name in ((1, 'red'), (2, 'green'), (3, 'blue')) for i in range(3)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(overrides, flags=...): the script on three training images of each colour; returns its folder."""
    root = tmp_path / 'Colours'
    for label, name in COLOURS:
        write_image(root, name, [(label, MIDDLE)])
    write_lists(root, train=[name for _, name in COLOURS])
    monkeypatch.setattr(script, 'build_prototype_model', lambda p: ColourModel())
    return runner(script, 'pseudo_labels', tmp_path, 'num_clusters=3')


def map_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / 'label_maps' / f'{name}.png'))


def expected_map(label: int) -> np.ndarray:
    labels = np.zeros((32, 32), np.uint8)
    labels[MIDDLE] = label
    return labels


def test_clusters_take_the_classes_of_the_ground_truth(run) -> None:
    folder = run('confidence=1')
    for label, name in COLOURS:
        assert (map_of(folder, name) == expected_map(label)).all(), name
    assert results(folder)['pseudo_labels']['mIoU'] == 100
    names = folder / 'label_maps' / 'classes.yml'
    assert yaml.safe_load(names.read_text())['classes'] == ['background', 'red', 'green', 'blue']
    names.write_text('classes: [mine]')
    run('confidence=1')
    assert names.with_name('classes_before_1.yml').read_text() == 'classes: [mine]'
    assert yaml.safe_load(names.read_text())['classes'] == ['background', 'red', 'green', 'blue']
    assert 'Pseudo labels' in (folder / 'report.html').read_text()


def test_without_labels_a_cluster_is_a_class(run) -> None:
    folder = run('with_labels=false', 'candidates=[2, 3, 4]')
    found = {name.split('_')[0]: set() for _, name in COLOURS}
    for _, name in COLOURS:
        values = map_of(folder, name)
        assert np.unique(values[MIDDLE]).tolist() == [values[12, 12]]
        found[name.split('_')[0]].add(int(values[12, 12]))
    assert sorted(map(tuple, found.values())) == [(1,), (2,), (3,)]
    assert yaml.safe_load((folder / 'label_maps' / 'classes.yml').read_text())['classes'][1:] == [
        'cluster_1', 'cluster_2', 'cluster_3']
    assert not (folder / 'results.json').exists()
    with pytest.raises(UserError, match=r'holds results of another config \(candidates: '):
        run('with_labels=false')


def test_maps_of_an_earlier_run_are_not_mixed_with_those_of_one_that_fails(run, monkeypatch) -> None:
    folder = run('with_labels=false')
    assert len([*folder.rglob('label_maps/*.png')]) == 9

    def fail(*_) -> None:
        raise UserError('the disk is full')

    monkeypatch.setattr(script, 'save_label_map', fail)
    with pytest.raises(UserError, match='the disk is full'):
        run('with_labels=false')
    assert not [*folder.rglob('label_maps/*.png')]


def test_clusters_of_kmeans(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ColourModel, 'classification_head', True, raising=False)
    monkeypatch.setattr(kmeans, 'build_prototype_model', lambda p: ColourModel())
    found = runner(kmeans, 'kmeans', tmp_path, 'num_clusters=3', 'val_split=train', 'saliency=supervised_model')(
        output='kmeans')
    folder = run('clusters=kmeans/clusters.pth.tar', 'confidence=1')
    names = yaml.safe_load((folder / 'label_maps' / 'classes.yml').read_text())['classes']
    assert sorted(names) == sorted(['background', 'red', 'green', 'blue'])
    for label, name in COLOURS:
        assert names[map_of(folder, name)[12, 12]] == name.split('_')[0]
        prediction = np.asarray(Image.open(found / 'predictions' / f'{name}.png'))
        assert (prediction == expected_map(label)).all()  # there ids are those of the classes
    assert results(folder)['pseudo_labels']['mIoU'] == 100
    with pytest.raises(UserError, match='clusters.pth.tar was made with size 32, and this config has 40'):
        run('clusters=kmeans/clusters.pth.tar', 'val_size=40', output='size')
    with pytest.raises(UserError, match='clusters are of features: embedding or backbone'):
        run('clusters=kmeans/clusters.pth.tar', 'features=box_cls')
    with monkeypatch.context() as patch:
        patch.setattr(script, 'read_clusters', lambda p: replace(read_clusters(p), classes=('', *'abc')))
        with pytest.raises(UserError, match='labels are named , a, b, c, which are no classes of the scored data set'):
            run('clusters=kmeans/clusters.pth.tar', output='names')
    assert not (tmp_path / 'results' / 'names' / 'label_maps').exists()  # told before they are made
    monkeypatch.setattr(script, 'fingerprint', lambda model: 'another')
    with pytest.raises(UserError, match='another network than that of pretraining: '):
        run('clusters=kmeans/clusters.pth.tar', output='network')
    torch.save({'state_dict': {}}, tmp_path / 'other.pth.tar')
    with pytest.raises(UserError, match='other.pth.tar holds no clusters'):
        run(f'clusters={tmp_path / "other.pth.tar"}', output='other')


def test_several_objects_and_images_without_one(run, tmp_path: Path) -> None:
    root = tmp_path / 'Colours'
    objects = np.zeros((32, 32), np.uint8)
    objects[:16, :16], objects[16:, 16:] = 1, 2
    image = np.zeros((32, 32, 3), np.uint8)
    image[objects == 1], image[objects == 2] = (250, 20, 20), (20, 250, 20)
    Image.fromarray(image).save(root / 'images' / 'two.jpg', quality=100, subsampling=0)
    save_mask(objects, root / 'saliency_supervised_model' / 'two.png')
    write_image(root, 'none', [(1, MIDDLE)], masks=[])
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / 'SegmentationClass' / 'two.png')
    write_lists(root, train=[*(name for _, name in COLOURS), 'two', 'none'])
    folder = run('confidence=1')
    assert (map_of(folder, 'two') == objects).all()
    assert (map_of(folder, 'none') == 255).all()


def test_a_mask_too_small_for_the_network_gets_no_cluster(run, tmp_path: Path, capsys) -> None:
    root, mask = tmp_path / 'Colours', np.zeros((96, 96), np.uint8)
    mask[1, 1] = 255  # between the pixels that 32 x 32 take
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save(root / 'images' / 'dot.jpg')
    Image.fromarray(mask).save(root / 'saliency_supervised_model' / 'dot.png')
    Image.fromarray(mask).save(root / 'SegmentationClass' / 'dot.png')
    write_lists(root, train=[*(name for _, name in COLOURS), 'dot'])
    assert (map_of(run('confidence=1', 'with_labels=false'), 'dot') == 255).all()
    assert 'a mask of dot has no pixel at val_size 32' in capsys.readouterr().out


def test_boxes_of_a_transformer(run, tmp_path: Path) -> None:
    network = inputs.fill(timm.create_model('vit_tiny_patch16_224', num_classes=0))
    torch.save(network.state_dict(), tmp_path / 'dino.pth')
    folder = run('features=box_cls', 'backbone=timm/vit_tiny_patch16_224', f'pretraining={tmp_path / "dino.pth"}')
    assert results(folder)['pseudo_labels']['mIoU'] == 100
    with pytest.raises(UserError, match='9 masks cannot form num_clusters 20'):
        run('num_clusters=20', output='many')


def test_the_class_of_a_mask_is_that_of_its_best_box(run, tmp_path: Path) -> None:
    images = [{'id': i, 'file_name': f'{name}.jpg', 'height': 32, 'width': 32} for i, (_, name) in enumerate(COLOURS)]
    objects = [{'image_id': i, 'category_id': category, 'bbox': box, 'segmentation': []}
               for i, (label, _) in enumerate(COLOURS)
               for category, box in ((label - 1, [0, 0, 32, 32]), (label % 3, [7, 9, 16, 16]),
                                     (label - 1, [9, 7, 16, 16]))]
    names = [{'id': i, 'name': name} for i, name in enumerate(('red', 'green', 'blue'))]

    def labelled(*overrides: str, **others: list) -> Path:
        content = {'images': images, 'annotations': objects, 'categories': names} | others
        (tmp_path / 'boxes.json').write_text(json.dumps(content))
        return run('confidence=1', f'truth_boxes={tmp_path / "boxes.json"}', *overrides)

    folder = labelled()
    for label, name in COLOURS:  # unlike the ground truth's maps, and of two equals the first
        assert (map_of(folder, name) == expected_map(label % 3 + 1)).all()
    for sentence, others in (
            ('image 0 of truth_boxes has another size', {'images': [{**image, 'height': 64} for image in images]}),
            ('image 0 of truth_boxes .* no box', {'annotations': [{**entry, 'bbox': []} for entry in objects]}),
            ('boxes.json lacks the images red_1, .* and 3 more', {'images': images[:1], 'annotations': objects[:1]}),
            ("category 0 of score 1.0, named 'blue'", {'categories': [{**names[0], 'name': 'blue'}, *names[1:]]}),
            ('boxes.json has no object', {'annotations': []})):
        with pytest.raises(UserError, match=sentence):
            labelled(**others)
    for other in (['with_labels=false'], ['results=found.json', 'coco=boxes.json']):
        with pytest.raises(UserError, match='truth_boxes names clusters'):
            labelled(*other)


def test_results_of_a_detector(run, tmp_path: Path) -> None:
    names = [name for _, name in COLOURS]
    annotations = tmp_path / 'coco.json'
    coco = {'images': [{'id': i, 'file_name': f'{name}.jpg', 'height': 32, 'width': 32}
                       for i, name in enumerate(names)]}
    square = [8, 8, 24, 8, 24, 24, 8, 24]
    found = [{'image_id': i, 'category_id': label - 1, 'score': 0.95, 'segmentation': [square]}
             for i, (label, _) in enumerate(COLOURS)]
    found.insert(0, {'image_id': 0, 'category_id': 2, 'score': 0.5, 'segmentation': [square]})  # not the best first
    annotations.write_text(json.dumps(coco))
    flags = ['--results', str(tmp_path / 'results.json'), '--coco', str(annotations)]
    (tmp_path / 'results.json').write_text(json.dumps(found))
    folder = run(flags=flags)
    for label, name in COLOURS:
        assert (map_of(folder, name) == expected_map(label)).all()
    with pytest.raises(UserError, match='category 0 of score 0.95, .* a dataset.yml beside sets/ has to name'):
        read_instances(tmp_path / 'results.json', {}, annotations)
    weak = [found[0], found[1] | {'score': 0.8}, *found[2:]]  # the first image has no confident mask
    (tmp_path / 'results.json').write_text(json.dumps(weak))
    assert (map_of(run('keep_best=true', flags=flags, output='best'), names[0]) == expected_map(COLOURS[0][0])).all()
    folder = run('keep_best=false', flags=flags, output='confident')
    assert (map_of(folder, names[0]) == 255).all()
    assert (map_of(folder, names[1]) == expected_map(COLOURS[1][0])).all()
    nothing = {'segmentation': {'size': [32, 32], 'counts': [32 * 32]}}
    (tmp_path / 'results.json').write_text(json.dumps([*found[:-1], found[-1] | nothing]))
    folder = run(flags=flags, output='empty')
    named = (folder / 'label_maps' / 'classes.yml').read_text()
    assert 'unfinished' not in named
    assert (map_of(folder, names[-1]) == 255).all()
    assert (map_of(folder, names[-2]) == expected_map(COLOURS[-2][0])).all()
    (tmp_path / 'results.json').write_text(json.dumps([found[0] | nothing]))
    with pytest.raises(UserError, match='no mask in .*results.json has a pixel'):
        run(flags=flags, output='empty')
    assert (map_of(folder, names[-2]) == expected_map(COLOURS[-2][0])).all()  # of the run before
    for change, sentence in (({'category_id': 3}, 'category 3 of score 0.5'), ({'score': None}, "in COCO's format"),
                             ({'image_id': 99}, 'objects of image 99')):
        (tmp_path / 'results.json').write_text(json.dumps([found[0] | change]))
        with pytest.raises(UserError, match=sentence):
            run(flags=flags)
    for wrong, sentence in (([], 'has no object'), ([found[0] | {'segmentation': []}], 'a mask of image 0 is no poly'),
                            ([{k: v for k, v in found[0].items() if k != 'segmentation'}], 'KeyError .segmentation'),
                            ([found[0] | {'category_id': 1.5}], 'category 1.5 of score')):
        (tmp_path / 'results.json').write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=sentence):
            run(flags=flags)
    shifted = [entry | {'category_id': entry['category_id'] + 1} for entry in found if entry['category_id'] < 2]
    (tmp_path / 'results.json').write_text(json.dumps(shifted))
    annotations.write_text(json.dumps(coco | {'categories': [{'id': 1, 'name': 'red'}, {'id': 2, 'name': 'green'}]}))
    with pytest.raises(UserError, match="named 'red'; give finite"):
        run(flags=flags)
    annotations.write_text(json.dumps(coco))
    (tmp_path / 'results.json').write_text('[')
    with pytest.raises(UserError, match='results.json is missing or no JSON; give a COCO file'):
        run(flags=flags)
    with pytest.raises(UserError, match='results and coco go together'):
        run(flags=flags[:2])
