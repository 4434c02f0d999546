"""K-means without ground truth: three colours found as three clusters, pictures and names."""
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from data.label_maps import read_names
from segmentation import clustering
from segmentation import kmeans as script
from segmentation.cluster_model import ClusterModel, renew_names
from segmentation.clustering import Whitening, silhouette
from segmentation.objects import EmbeddedSplit
from tests.colours import MIDDLE, RGB, SIDE, ColourModel, arguments
from utils.run.errors import UserError
from utils.run.files import PALETTE

COLOURS = ('red', 'green', 'blue')


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(*flags): the script on 12 coloured boxes and a black image in tmp_path/photos, with a stand-in network."""
    monkeypatch.setattr(script, 'build_prototype_model', lambda p: ColourModel())
    draw = np.random.default_rng(0)
    for i in range(12):
        colour = COLOURS[i % 3]
        image = np.zeros((SIDE, SIDE + i % 2, 3), np.uint8)
        image[MIDDLE] = np.clip(RGB[1 + i % 3] + draw.normal(0, 20, 3), 0, 255)
        path = tmp_path / 'photos' / 'images' / colour / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    Image.new('RGB', (SIDE, SIDE)).save(tmp_path / 'photos' / 'images' / 'black.png')

    def run(*flags: str, overrides: tuple[str, ...] = ()) -> dict:
        script.main([*arguments('kmeans', tmp_path, 'saliency=network', 'val_db_name=photos', 'val_split=all',
                                'num_seeds=2', *overrides), *flags])
        return json.loads((tmp_path / 'results' / 'kmeans' / 'results.json').read_text())
    return run


def test_range_takes_the_number_of_highest_silhouette(run, tmp_path: Path, capsys) -> None:
    results = run('--num-clusters', '2-5')
    assert results['clusters']['num_clusters'] == 3
    assert sorted(results['clusters']['sizes']) == [4, 4, 4]
    silhouettes = results['clusters']['silhouette']
    assert list(silhouettes) == ['2', '3', '4', '5']
    assert max(silhouettes, key=silhouettes.get) == '3'
    printed = capsys.readouterr().out
    assert f'Silhouette of 3 clusters is {silhouettes["3"]:.3f}\n' in printed
    assert 'Taking 3 clusters' in printed
    folder = tmp_path / 'results' / 'kmeans'
    labels = {}
    for path in (folder / 'predictions').rglob('*.png'):
        image = Image.open(path)
        assert image.mode == 'P'
        assert image.getpalette()[:12] == PALETTE[:4].ravel().tolist()
        source = Image.open(tmp_path / 'photos' / 'images' / path.relative_to(folder / 'predictions'))
        assert image.size == source.size
        seen = set(np.unique(np.array(image))) - {0}
        assert len(seen) == (path.stem != 'black')
        if seen:
            labels.setdefault(path.parent.name, set()).update(seen)
    assert sorted(labels) == sorted(COLOURS)
    assert sorted(label for seen in labels.values() for label in seen) == [1, 2, 3]
    assert {path.name for path in (folder / 'clusters').iterdir()} == {f'cluster_{k}.jpg' for k in (1, 2, 3)}
    assert not (folder / 'visualizations').exists()
    assert len(np.load(folder / 'prototypes.npz')['ids']) == 13


def test_sheets_show_their_cluster(run, tmp_path: Path) -> None:
    results = run(overrides=('num_clusters=3',))
    assert list(results['clusters']['silhouette']) == ['3']
    folder = tmp_path / 'results' / 'kmeans'
    for k in (1, 2, 3):
        sheet = np.array(Image.open(folder / 'clusters' / f'cluster_{k}.jpg')).reshape(-1, 3).astype(int)
        member = next(path for path in (folder / 'predictions').rglob('*.png') if k in np.array(Image.open(path)))
        colour = np.array(RGB[1 + COLOURS.index(member.parent.name)])
        mixed = (colour + PALETTE[k]) // 2
        assert (np.abs(sheet - mixed).max(1) < 50).mean() > 0.05
        assert not any((np.abs(sheet - (np.array(RGB[o]) + PALETTE[k]) // 2).max(1) < 50).mean() > 0.01
                       for o in RGB if RGB[o] != tuple(colour))


def test_fitted_on_a_random_split(run) -> None:
    assert run(overrides=('num_clusters=3', 'fit_split=train'))['clusters']['num_clusters'] == 3


def test_one_sentence_each(run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='^12 objects with a mask cannot form num_clusters 13; lower num_clusters'):
        run('--num_clusters', '3-13')
    with pytest.raises(UserError, match='^num_clusters 300 is more than label maps can hold; take at most 254'):
        run(overrides=('num_clusters=300', f'output_dir={tmp_path}/many'))
    for text in ('5-', 'five', '8-5', '-3'):
        with pytest.raises(UserError, match=f'^--num_clusters {text} is no number of clusters'):
            run(f'--num_clusters={text}')


def explore(folder: Path, points: np.ndarray, counts: list[int]) -> tuple:
    """The clusters, the cluster of each object and the silhouettes that kmeans.py finds for points."""
    p = SimpleNamespace(overclustering=counts, num_seeds=3, seed=0, whiten=True, output_dir=folder)
    none = np.zeros((len(points), 1), int)
    split = EmbeddedSplit(points, none, none, np.arange(len(points)), [], [], [])
    clusters, ids, results, *_ = script.explore(p, None, split, None, {})
    return clusters, ids, results['clusters']['silhouette']


def test_best_of_several_runs_and_objects_without_a_mask(tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    draw = np.random.default_rng(0)
    centres = 10 * np.eye(4)
    points = np.concatenate([centre + 0.1 * draw.standard_normal((6, 4)) for centre in centres] + [np.zeros((3, 4))])
    clusters, ids, silhouettes = explore(tmp_path, points, [4, 2, 6])
    assert (len(clusters.centres), list(silhouettes)) == (4, ['2', '4', '6'])
    assert np.bincount(ids[:-3]).tolist() == [6] * 4
    assert (ids[-3:] == -1).all()
    assert all(len(set(ids[6 * i:6 * i + 6])) == 1 for i in range(4))
    assert [record.getMessage().split(' is ')[0] for record in caplog.records[:3]] == [
        'Silhouette of 2 clusters', 'Silhouette of 4 clusters', 'Silhouette of 6 clusters']
    assert np.isnan(silhouette(points[:4], np.zeros(4, int), 0))
    assert np.isnan(silhouette(points[:4], np.arange(4), 0))
    many = np.random.default_rng(0).standard_normal((20_000, 2))
    rare = np.arange(20_000) == 7  # not among the 5,000 that are compared
    assert np.isnan(silhouette(many, rare.astype(int), 0))
    assert silhouette(many + 9 * (many[:, :1] > 0), (many[:, 0] > 0).astype(int), 0) > 0.7
    values = {1: float('nan'), 5: 0.5, 3: 0.5, 7: 0.1}
    monkeypatch.setattr(clustering, 'silhouette', lambda points, ids, seed: values[len(set(ids))])
    clusters, _, silhouettes = explore(tmp_path, points, list(values))
    assert (len(clusters.centres), silhouettes) == (3, {'1': None, '3': 0.5, '5': 0.5, '7': 0.1})


def test_names_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / 'clusters.yml'
    model = ClusterModel(Whitening(np.zeros(2), np.eye(2)), np.eye(2), np.arange(3), None, {})
    renew_names(tmp_path, model, [3, 5])
    assert read_names(path) == ('background', 'cluster_1', 'cluster_2')
    assert '- cluster_2  # objects: 5' in path.read_text()
    path.write_text(yaml.safe_dump({'classes': ['background', 7, 'dog']}))
    assert read_names(path) == ('background', '7', 'dog')
    for text in ('classes: [background, a]', 'classes: [background, a, ]', 'classes: [', 'a: 1', '',
                 'classes: [background, a, {b: c}]'):
        path.write_text(text)
        with pytest.raises(UserError, match=r'clusters\.yml'):
            model.with_names_beside(tmp_path / 'clusters.pth.tar')
