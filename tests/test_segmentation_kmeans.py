"""The K-means script on data with ground truth: figures worked out by hand on flat colours."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from data import label_maps
from data.label_maps import read_names
from data.voc import VOCSegmentation
from models.segmentation import resize
from segmentation import kmeans as script
from segmentation.metrics import iou_of
from segmentation.objects import EmbeddedSplit
from tests.colours import MIDDLE, SIDE, ColourModel, results, runner, write_image, write_lists
from utils.run.checkpoint import load_checkpoint
from utils.run.errors import UserError
from utils.run.files import save_label_map

WIDE = (slice(8, 24), slice(4, 28))  # 384 pixels: MIDDLE and 128 more
HALVES = ((slice(8, 24), slice(0, 12)), (slice(8, 24), slice(20, 32)))  # 192 pixels each, apart


def colours(folder: Path) -> Path:
    """Two val images a class; the masks of red take in 128 background pixels, 64 of a green object are void."""
    root = folder / 'Colours'
    for label, name in ((1, 'red'), (2, 'green'), (3, 'blue')):
        write_image(root, f'{name}_0', [(label, MIDDLE)], [WIDE] if label == 1 else None,
                    void=(slice(8, 16), slice(8, 16)) if label == 2 else None)
        write_image(root, f'{name}_1', [(label, MIDDLE)])
    write_lists(root, val=[f'{name}_{i}' for name in ('red', 'green', 'blue') for i in range(2)])
    return root


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(overrides, flags=...): the script on tmp_path/Colours with the stand-in network; returns results.json."""
    monkeypatch.setattr(script, 'build_prototype_model', lambda p: ColourModel())

    start = runner(script, 'kmeans', tmp_path, 'num_clusters=3', 'num_seeds=2')

    def run(*overrides: str, flags: tuple[str, ...] = (), masks: str = 'supervised_model') -> dict:
        return results(start(f'saliency={masks}', *overrides, flags=flags, output='kmeans'))
    return run


def test_figures_by_hand(run, tmp_path: Path, capsys) -> None:
    root = colours(tmp_path)
    entry = run()['kmeans']
    # red: 512 hits, 128 false; background: 4608 pixels of which 128 are called red; the rest is right
    expected = {'background': 4480 / 4608, 'red': 512 / 640, 'green': 1, 'blue': 1}
    assert entry['IoU'] == {name: pytest.approx(100 * value) for name, value in expected.items()}
    assert entry['mIoU'] == pytest.approx(25 * sum(expected.values()))
    assert entry['accuracy'] == pytest.approx(100 * (6144 - 64 - 128) / (6144 - 64))  # 64 void
    truths = np.concatenate([np.array(Image.open(root / 'SegmentationClass' / f'{name}.png')).ravel()
                             for name in (root / 'sets' / 'val.txt').read_text().split()])
    clusters = np.concatenate([np.array(Image.open(tmp_path / 'results' / 'kmeans' / 'predictions' / f'{name}.png'))
                               .ravel() for name in (root / 'sets' / 'val.txt').read_text().split()])
    valid = truths != 255
    assert entry['NMI'] == pytest.approx(100 * normalized_mutual_info_score(truths[valid], clusters[valid]))
    assert entry['ARI'] == pytest.approx(100 * adjusted_rand_score(truths[valid], clusters[valid]))
    assert len(entry['runs']) == 2
    assert {entry[name] for name in ('std', 'accuracy_std', 'NMI_std', 'ARI_std')} == {0}
    assert set(entry['IoU_std'].values()) == {0}
    printed = capsys.readouterr().out
    for line in ('mIoU is 94.31', 'IoU class red is 80.00', 'Standard deviation of the mIoU is 0.00',
                 'Pixel accuracy is 97.89 (standard deviation 0.00)'):
        assert f'{line}\n' in printed
    saved = np.load(tmp_path / 'results' / 'kmeans' / 'prototypes.npz')
    np.testing.assert_allclose(np.linalg.norm(saved['prototypes'], axis=1), 1, rtol=1e-5)
    assert saved['ids'].tolist()[2] == 'green_0'
    assert saved['image'].tolist() == list(range(6))


def test_masks_of_the_network(run, tmp_path: Path) -> None:
    colours(tmp_path)
    # the scores' 1/8 grid: 4 of 16 cells are bright; at 32 pixels more than 0.5 is the middle box, corners excepted
    runs = run(masks='network')['kmeans']['runs']
    score = torch.zeros(1, 1, 4, 4)
    score[:, :, 1:3, 1:3] = 1
    seen = (resize(score, (SIDE, SIDE)) > 0.5).sum().item()
    missed = 64 - int((resize(score, (SIDE, SIDE))[0, 0, 8:16, 8:16] > 0.5).sum())
    for one in runs:
        assert one['IoU']['red'] == pytest.approx(100 * seen / 256)
        assert one['IoU']['background'] == pytest.approx(100 * 4608 / (4608 + 6 * (256 - seen) - missed))
    # beside precomputed masks they are compared: five boxes of 256 pixels, and one of 384
    run(f'output_dir={tmp_path / "given"}', 'pretraining=some.pth')
    iou = load_checkpoint(tmp_path / 'given' / 'clusters.pth.tar')['network']['mask_iou']
    assert iou == pytest.approx((5 * seen / 256 + seen / 384) / 6)


def test_overclustering_prints_a_line_a_count(run, tmp_path: Path, capsys) -> None:
    colours(tmp_path)
    entries = run(flags=('--num_clusters', '3', '4', '6'))
    assert [point['num_clusters'] for point in entries['overclustering']] == [3, 4, 6]
    assert entries['kmeans']['num_clusters'] == 3
    for point in entries['overclustering']:  # clusters stay pure, and clusters of one class count as one
        for name in ('mIoU', 'accuracy', 'NMI', 'ARI'):
            assert point[name] == pytest.approx(entries['kmeans'][name])
        assert set(point) >= {'num_clusters', 'mIoU', 'std', 'accuracy', 'NMI', 'ARI'}
    printed = capsys.readouterr().out
    assert [line.split(':')[0] for line in printed.splitlines() if ' clusters: mIoU 94.31' in line] == [
        '3 clusters', '4 clusters', '6 clusters']
    assert printed.count('\nmIoU is') == 3  # two runs and their mean, of the first count only


def test_one_count_as_a_flag(run, tmp_path: Path) -> None:
    colours(tmp_path)
    entries = run('overclustering=[3, 4]', flags=('--num_clusters', '4'))
    assert entries['kmeans']['num_clusters'] == 4
    assert 'overclustering' not in entries


def test_components_are_objects_of_their_own(run, tmp_path: Path) -> None:
    root = tmp_path / 'Colours'
    speck = (slice(0, 2), slice(14, 18))  # 8 pixels, under 1%
    for i in range(2):
        write_image(root, f'rg_{i}', [(1, HALVES[0]), (2, HALVES[1])], [*HALVES, speck])
        write_image(root, f'b_{i}', [(3, MIDDLE)])
    write_image(root, 'empty', [(1, speck)], [])
    write_lists(root, val=['rg_0', 'b_0', 'rg_1', 'empty', 'b_1'])
    whole = run('output_dir=kmeans')['kmeans']
    for path in (tmp_path / 'results' / 'kmeans').glob('*.*'):
        path.unlink()
    entry = run('components=true', flags=('--num_clusters', '3'))['kmeans']
    # only the 8 red pixels of the image without a mask are missed
    assert entry['IoU'] == {'background': pytest.approx(100 * (1 - 8 / (5 * 1024 - 2 * 384 - 2 * 256))),
                            'red': pytest.approx(100 * 384 / 392), 'green': 100, 'blue': 100}
    # one cluster a mask: red or green gets all of 768 pixels of which half are its own; 16 pixels of specks are wrong
    assert max(whole['IoU']['red'], whole['IoU']['green']) == pytest.approx(100 * 384 / (768 + 16), abs=0.6)
    assert min(whole['IoU']['red'], whole['IoU']['green']) == 0
    saved = np.load(tmp_path / 'results' / 'kmeans' / 'prototypes.npz')
    assert saved['image'].tolist() == [0, 0, 1, 2, 2, 4]
    painted = np.array(Image.open(tmp_path / 'results' / 'kmeans' / 'predictions' / 'rg_1.png'))
    truth = np.array(Image.open(root / 'SegmentationClass' / 'rg_1.png'))
    np.testing.assert_array_equal(painted, truth)


def test_fitted_on_another_split(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    for i in range(5):  # no ground truth: fitting needs none
        write_image(root, f'train_{i}', [(1 + i % 3, MIDDLE)], truth=False)
    names = (root / 'sets' / 'val.txt').read_text().split()
    write_lists(root, val=names, train=['no_mask', *(f'train_{i}' for i in range(5))])
    entry = run('fit_split=train')['kmeans']
    assert entry['mIoU'] == pytest.approx(25 * (4480 / 4608 + 512 / 640 + 2))  # as when fitted on val
    with pytest.raises(UserError, match='^5 images cannot form num_clusters 6; '):
        run('fit_split=train', 'num_clusters=6', f'output_dir={tmp_path}/other')


@pytest.mark.parametrize('whiten', [True, False])
def test_what_is_kept_is_whitened_if_asked(run, tmp_path: Path, whiten: bool) -> None:
    colours(tmp_path)
    run(f'whiten={whiten}')
    projection = load_checkpoint(tmp_path / 'results' / 'kmeans' / 'clusters.pth.tar')['projection'].numpy()
    gram = projection.T @ projection
    assert np.allclose(gram, np.eye(len(gram))) == (not whiten)


def test_transfer_to_a_data_set_of_other_classes(run, tmp_path: Path) -> None:
    other = tmp_path / 'Others'
    for i in range(6):
        write_image(other, f'image_{i}', [(1 + i % 3, MIDDLE)])
    write_lists(other, ('nothing', 'warm', 'fresh', 'cold', 'absent'), test=[f'image_{i}' for i in range(6)])
    entry = run('val_db_name=Others', 'val_split=test')['kmeans']
    assert entry['IoU'] == {'nothing': 100, 'warm': 100, 'fresh': 100, 'cold': 100, 'absent': 0}
    assert entry['mIoU'] == 80


def test_label_maps_of_removed_images_go(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    run()
    names = (root / 'sets' / 'val.txt').read_text().split()
    write_lists(root, val=names[1:])
    run()
    predictions = tmp_path / 'results' / 'kmeans' / 'predictions'
    assert sorted(path.stem for path in predictions.glob('*.png')) == sorted(names[1:])
    assert {path.name for path in predictions.iterdir() if path.suffix != '.png'} == {'classes.yml'}


def test_maps_of_a_run_that_ended_early_are_of_one_clustering_and_not_trained_on(run, tmp_path, monkeypatch) -> None:
    root, predictions = colours(tmp_path), tmp_path / 'results' / 'kmeans' / 'predictions'
    run()
    last = max(predictions.glob('*.png'))
    assert last.stem in VOCSegmentation(root, 'val', True, label_maps=predictions).ids

    def write(labels: np.ndarray, path: Path) -> None:
        if path == last:
            raise UserError('the disk is full')
        save_label_map(labels, path)

    def remove(folder: Path, names: tuple) -> None:
        raise UserError('the disk is gone')

    with monkeypatch.context() as patch:
        patch.setattr(label_maps, 'remove_stale', remove)
        with pytest.raises(UserError, match='the disk is gone'):
            run()
    with pytest.raises(UserError, match='the label maps in .*predictions are unfinished'):  # though all are there
        VOCSegmentation(root, 'val', True, label_maps=predictions)
    monkeypatch.setattr(script, 'save_label_map', write)
    with pytest.raises(UserError, match='the disk is full'):
        run()
    assert not last.exists()
    with pytest.raises(UserError, match='the label maps in .*predictions are unfinished; run the script that'):
        VOCSegmentation(root, 'val', True, label_maps=predictions)


def test_label_maps_tell_the_names_of_their_labels(run, tmp_path: Path) -> None:
    colours(tmp_path)
    run('eval_classes=[blue]', 'num_clusters=2')
    assert read_names(tmp_path / 'results' / 'kmeans' / 'predictions' / 'classes.yml') == ('background', 'blue')


def test_damaged_results_are_told_before_anything_is_computed(run, tmp_path: Path, monkeypatch) -> None:
    colours(tmp_path)
    run()
    (tmp_path / 'results' / 'kmeans' / 'results.json').write_text('{')
    monkeypatch.setattr(script, 'embed_split', None)
    with pytest.raises(UserError, match='results.json is damaged'):
        run()


def test_what_is_saved_is_what_was_scored() -> None:
    draw = np.random.default_rng(1)
    prototypes = draw.standard_normal((700, 300)).astype(np.float32)  # so many that PCA is randomised
    split = EmbeddedSplit(prototypes, draw.integers(0, 9, (700, 3)), np.zeros((700, 3), np.int64),
                          np.arange(700), [], [], [])
    p = SimpleNamespace(seed=1234, num_clusters=20, overclustering=[], num_seeds=1, components=False,
                        matching='majority', whiten=True)
    for fit in (None, draw.standard_normal((800, 300)).astype(np.float32)):
        clusters, ids, *_ = script.evaluate(p, SimpleNamespace(classes=('rest', 'a', 'b')), split, fit, {})
        np.testing.assert_array_equal(clusters.label(prototypes), clusters.labels[ids + 1])


def test_deviation_over_runs() -> None:
    tables = [np.array([[8, 2], [0, 10]]), np.array([[10, 0], [0, 10]])]
    entry = script.summary(tables, 1, ['rest', 'thing'])
    first = np.mean(iou_of(tables[0]))
    assert entry['mIoU'] == pytest.approx(50 * (first + 1))
    assert entry['std'] == pytest.approx(100 * (1 - first) / np.sqrt(2))  # of a sample of two
    assert entry['accuracy'] == pytest.approx(95)
    assert entry['accuracy_std'] == pytest.approx(10 / np.sqrt(2))
    assert entry['num_runs'] == 2
    assert list(entry['IoU'].values()) == pytest.approx([50 * (iou + 1) for iou in iou_of(tables[0])])
    assert [run['mIoU'] for run in entry['runs']] == pytest.approx([100 * first, 100])
    single = script.summary(tables[:1], 1, ['rest', 'thing'])
    assert single['num_runs'] == 1
    assert {single['std'], single['NMI_std'], *single['IoU_std'].values()} == {None}  # not that it does not vary


def test_one_sentence_each(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    with pytest.raises(UserError, match='^6 images cannot form num_clusters 7; lower num_clusters'):
        run(flags=('--num_clusters', '3', '7'))
    with pytest.raises(UserError, match='^6 objects cannot form num_clusters 8; '):
        run('components=true', 'num_clusters=8', f'output_dir={tmp_path}/components')
    for path in (root / 'saliency_supervised_model').iterdir():
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path)
    for components in ('false', 'true'):
        with pytest.raises(UserError, match='^none of the 6 images has a mask; '):
            run(f'components={components}', f'output_dir={tmp_path}/empty_{components}')
    for override, expected in (('min_component=0', 'min_component must be greater than 0'),
                               ('overclustering=[0]', 'overclustering must be greater than or equal to 1'),
                               ('num_clusters=0', 'num_clusters must be greater than or equal to 1, got 0'),
                               ('matching=best', "must be 'majority' or 'hungarian'")):
        with pytest.raises(UserError, match=expected):
            run(override)
