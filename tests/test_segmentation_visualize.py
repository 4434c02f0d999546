"""Pictures of a saved run: maps, neighbours and clusters of flat colours, where it is plain what they must show."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.loaders import open_images
from segmentation import kmeans, retrieval, visualize
from segmentation.figures import project, spread
from segmentation.objects import unpack
from segmentation.visualize import crop_objects, read_objects
from tests.colours import CLASSES, MIDDLE, RGB, SIDE, ColourModel, runner, write_image, write_lists
from tests.test_utils_report_run import Page
from utils.config.load import Config
from utils.config.reader import read_config
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


def test_random_weights_are_those_of_the_run(run, monkeypatch) -> None:
    made = []
    for script in (kmeans, visualize):
        monkeypatch.setattr(script, 'build_prototype_model', lambda p: made.append(torch.rand(1)) or ColourModel())
    folder = run(kmeans, 'kmeans', 'num_clusters=4', 'pretraining=none', 'features=backbone')
    visualize.main(['--run', str(folder), '--device', 'cpu'])
    assert made[0] == made[1]


def test_kmeans_run(run, tmp_path: Path, capsys) -> None:
    folder = run(kmeans, 'kmeans', 'num_clusters=4', 'num_seeds=1')  # the image without a mask takes one
    saved = read_objects(folder)
    assert saved.images.tolist() == ['red_0', 'red_1', 'green_0', 'green_1', 'blue_0', 'blue_1']  # not the empty one
    names, colours, kind = saved.captions()
    assert (names, colours.tolist(), kind) == (['red', 'red', 'green', 'green', 'blue', 'blue'], [1, 1, 2, 2, 3, 3],
                                               'class')
    clusters = np.unique(saved.clusters)
    assert sum(len(saved.members(k)) for k in clusters) == 6
    output = folder / 'visualize'
    (output / 'clusters').mkdir(parents=True)
    (output / 'clusters' / 'cluster_9.png').touch()  # of an earlier run
    visualize.main(['--run', str(folder), '--device', 'cpu', '--images', '4'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize, 'fingerprint', lambda model: 'of a later training')
        with pytest.raises(UserError, match='was made with other weights than .* holds now; run its script again'):
            visualize.main(['--run', str(folder), '--device', 'cpu'])
    assert {path.name for path in (output / 'clusters').iterdir()} == {f'cluster_{k + 1}.png' for k in clusters}
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
    names, colours, kind = saved.captions()
    assert (names[:2], colours[:3].tolist(), kind) == (['no class', 'red'], [255, 1, 2], 'class')
    saved.labels[:] = -1
    names, colours, kind = saved.captions()
    assert (names[0], colours.tolist(), kind) == (f'cluster {saved.clusters[0] + 1}', (saved.clusters + 1).tolist(),
                                                  'cluster')
    for shown in ('ignore label', 'blue', 'Map of the prototypes', 'Nearest neighbours',
                  *(f'Cluster {k + 1}: {len(saved.members(k))} objects, ' for k in clusters)):
        assert shown in text


def test_retrieval_run_by_tsne(run, tmp_path: Path) -> None:
    folder = run(retrieval, 'retrieval', 'memory_db_name=Colours', 'model_kwargs.ndim=2')
    visualize.main(['--run', str(folder), '--output', str(tmp_path / 'shown'), '--method', 'tsne', '--device', 'cpu'])
    assert {path.name for path in (tmp_path / 'shown').iterdir()} == {'map.png', 'embedding.png', 'neighbours.png',
                                                                      'report.html'}


def test_each_component_has_its_own_mask(run, tmp_path: Path) -> None:
    write_image(tmp_path / 'Colours', 'red_0', [(1, LEFT), (2, RIGHT)])
    saved = read_objects(run(kmeans, 'kmeans', 'num_clusters=3', 'num_seeds=1', 'components=true'))
    both = np.flatnonzero(saved.images == 'red_0')
    assert [saved.captions()[0][i] for i in both] == ['red', 'green']
    for index, box in zip(both, (LEFT, RIGHT), strict=True):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[box] = 1
        np.testing.assert_array_equal(unpack(saved.masks[index]), mask)


def test_masks_are_those_of_the_prototypes_or_there_are_none(run, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments = ['--device', 'cpu', '--run']
    index = run(retrieval, 'retrieval', 'memory_db_name=Colours')
    folder = run(kmeans, 'kmeans', 'num_clusters=3', 'num_seeds=1')
    mine = (folder / 'masks.npz').read_bytes()
    (folder / 'masks.npz').write_bytes((index / 'masks.npz').read_bytes())
    with pytest.raises(UserError, match=r'masks.npz holds the masks of other objects than those saved beside it'):
        visualize.main([*arguments, str(folder)])
    (folder / 'masks.npz').write_bytes(mine[:-50])
    with pytest.raises(UserError, match='masks.npz is damaged'):
        visualize.main([*arguments, str(folder)])
    monkeypatch.setattr(kmeans, 'KEPT', 6)  # of 7 images
    run(kmeans, 'kmeans', 'num_clusters=3', 'num_seeds=1')
    assert not (folder / 'masks.npz').exists()
    visualize.main([*arguments, str(folder)])
    assert 'No masks.npz: whole images are shown in place of objects' in capsys.readouterr().out
    assert np.asarray(Image.open(folder / 'visualize' / 'neighbours.png')).std() > 0
    saved = read_objects(folder)
    images = open_images(Config(read_config(folder)), 'Colours', 'val')
    assert crop_objects(saved, images, [0])[0].shape == (SIDE, SIDE, 3)
    images.ids.remove('red_0')
    with pytest.raises(UserError, match='image red_0 of the saved run is not in the split it was made of; restore it'):
        crop_objects(saved, images, [0])


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


def test_caption_of_a_cluster_names_a_class() -> None:
    caption = visualize.cluster_caption
    assert caption(2, ['no class', 'no class', 'no class', 'cat', 'cat'], 'class') == 'Cluster 3: 5 objects, 40% cat'
    assert caption(0, ['no class'], 'class') == 'Cluster 1: 1 objects'
    assert caption(0, ['cluster 1'], 'cluster') == 'Cluster 1: 1 objects'
