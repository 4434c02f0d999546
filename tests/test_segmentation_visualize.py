"""Pictures of a saved run: maps, neighbours and clusters of flat colours, where it is plain what they must show."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmentation import kmeans, retrieval, visualize
from segmentation.prototype_map import project, spread
from segmentation.saved import read_objects
from tests.colours import CLASSES, MIDDLE, RGB, ColourModel, runner, write_image, write_lists
from tests.test_utils_report_run import Page
from utils.run.errors import UserError

LEFT, RIGHT = (slice(8, 24), slice(0, 12)), (slice(8, 24), slice(20, 32))


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(script, task, overrides): kmeans.py or retrieval.py on two images a class; returns its folder."""
    names = []
    for label, colour in enumerate(CLASSES[1:], 1):
        for i in range(2):
            names.append(f'{colour}_{i}')
            write_image(tmp_path / 'Colours', names[-1], [(label, MIDDLE)])
    write_image(tmp_path / 'Colours', 'empty', [], [])
    write_lists(tmp_path / 'Colours', val=[*names, 'empty'], train=names)
    for script in (kmeans, retrieval, visualize):
        monkeypatch.setattr(script, 'build_prototype_model', lambda p: ColourModel())

    def run(script, task: str, *overrides: str) -> Path:
        return runner(script, task, tmp_path, 'saliency=supervised_model', *overrides)(output=task)
    return run


def test_kmeans_run(run, tmp_path: Path, capsys) -> None:
    folder = run(kmeans, 'kmeans', 'num_clusters=4', 'num_seeds=1')  # the image without a mask takes one
    saved = read_objects(folder)
    assert len(saved) == 6  # not the empty one
    assert [saved.name(i) for i in range(6)] == ['red', 'red', 'green', 'green', 'blue', 'blue']
    assert saved.colours().tolist() == [1, 1, 2, 2, 3, 3]
    assert [saved.images[saved.nearest(i, 1)[0]] for i in range(6)] == [
        'red_1', 'red_0', 'green_1', 'green_0', 'blue_1', 'blue_0']
    clusters = np.unique(saved.clusters)
    assert sum(len(saved.members(k)) for k in clusters) == 6
    visualize.main(['--run', str(folder), '--device', 'cpu', '--images', '4'])
    output = folder / 'visualize'
    assert f'report.html and {3 + len(clusters)} pictures' in capsys.readouterr().out
    for name in ('map', 'embedding', 'neighbours'):
        assert np.asarray(Image.open(output / f'{name}.png')).std() > 0
    for k in clusters:  # a sheet has a crop of each member, usually two of one colour
        sheet = np.asarray(Image.open(output / 'clusters' / f'cluster_{k + 1}.png')).astype(int)
        for i, label in enumerate(saved.labels[saved.members(k)]):
            assert abs(sheet[64, i * (128 + 8) + 64] - RGB[label]).max() < 30
    row = np.asarray(Image.open(output / 'neighbours.png')).astype(int)[18 + 64]
    assert all(abs(row[x] - RGB[1]).max() < 30 for x in (64, 132 + 64))  # a red one and the other red one
    text = Page(output / 'report.html').text
    saved.labels[0] = -1  # one of several with classes
    assert (saved.name(0), saved.colours()[:3].tolist()) == ('no class', [255, 1, 2])
    saved.labels[:] = -1
    assert saved.name(0) == f'cluster {saved.clusters[0] + 1}'
    assert saved.colours().tolist() == (saved.clusters + 1).tolist()
    for shown in ('void', 'blue', 'Map of the prototypes', 'Nearest neighbours',
                  *(f'Cluster {k + 1}: {len(saved.members(k))} objects, ' for k in clusters)):
        assert shown in text


def test_retrieval_run_by_tsne(run, tmp_path: Path) -> None:
    folder = run(retrieval, 'retrieval', 'memory_db_name=Colours', 'model_kwargs.ndim=2')
    visualize.main(['--run', str(folder), '--output', str(tmp_path / 'shown'), '--method', 'tsne', '--device', 'cpu'])
    assert {path.name for path in (tmp_path / 'shown').iterdir()} == {'map.png', 'embedding.png', 'neighbours.png',
                                                                      'report.html'}


def test_components_find_their_own_object_again(run, tmp_path: Path) -> None:
    write_image(tmp_path / 'Colours', 'red_0', [(1, LEFT), (2, RIGHT)])
    folder = run(kmeans, 'kmeans', 'num_clusters=3', 'num_seeds=1', 'components=true')
    saved = read_objects(folder)
    p = visualize.config_of(folder)
    images, device = visualize.open_images(p, False, ColourModel()), visualize.pick_device('cpu')
    finder = visualize.ObjectFinder(ColourModel(), images, device, p.features, False, p.min_component)
    both = [i for i in range(len(saved)) if saved.images[i] == 'red_0']
    assert [saved.name(i) for i in both] == ['red', 'green']
    masks = [mask for _, mask in finder.find(saved, both).values()]
    assert masks[0][LEFT].all()
    assert masks[1][RIGHT].all()
    assert not (masks[0] & masks[1]).any()
    saved.prototypes[both[0]] *= -1
    with pytest.raises(UserError, match='finds another object in image red_0'):
        finder.find(saved, both)


def test_folders_that_hold_no_run(run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'config.yml does not exist'):
        visualize.main(['--run', str(tmp_path)])
    (tmp_path / 'config.yml').write_text('val_size: 64\n')  # the end of the file is gone
    with pytest.raises(UserError, match=r'config.yml is damaged'):
        visualize.main(['--run', str(tmp_path)])
    folder = run(kmeans, 'kmeans', 'num_clusters=3', 'num_seeds=1')
    (folder / 'prototypes.npz').write_bytes(b'PK')
    with pytest.raises(UserError, match='prototypes.npz is damaged'):
        visualize.main(['--run', str(folder)])
    (folder / 'prototypes.npz').unlink()
    with pytest.raises(UserError, match='neither prototypes.npz of kmeans.py nor memory.npz'):
        visualize.main(['--run', str(folder)])


def test_the_map_keeps_near_ones_near_and_pictures_apart() -> None:
    draw = np.random.default_rng(0)
    points = np.concatenate([draw.normal(0, 0.01, (20, 8)) + np.eye(8)[c] for c in (0, 1)]).astype(np.float32)
    for method in ('pca', 'tsne'):
        places, _ = project(points, method, 0)
        assert places.shape == (40, 2)
        within = max(np.ptp(places[:20], axis=0).max(), np.ptp(places[20:], axis=0).max())
        assert np.linalg.norm(places[:20].mean(0) - places[20:].mean(0)) > within / 2
        np.testing.assert_array_equal(places, project(points, method, 0)[0])
    grid = np.stack(np.meshgrid(np.arange(50), np.arange(50)), -1).reshape(-1, 2) / 49
    chosen = spread(grid, 500, 0)
    assert 30 < len(chosen) < 226
    distances = abs(grid[chosen][:, None] - grid[chosen]).max(2) + np.eye(len(chosen))
    assert distances.min() >= 0.07
    assert len(spread(grid, 5, 0)) == 5
