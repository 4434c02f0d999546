"""The drawn data set: its files, that masks and images fit, that it is repeatable, and that nothing is overwritten."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments import shapes as synthetic
from experiments.shapes import CLASSES, KINDS, draw
from utils.run.errors import UserError

TRAIN, VAL = 16, 9


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.generate(tmp_path_factory.mktemp('drawn') / 'deep' / 'set', TRAIN, VAL, size=64)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def ids(root: Path, split: str) -> list[str]:
    return (root / 'sets' / f'{split}.txt').read_text().split()


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file()}


def test_layout(root):
    train, val = ids(root, 'train'), ids(root, 'val')
    assert (len(train), len(val)) == (TRAIN, VAL)
    assert ids(root, 'trainaug') == train
    assert not set(train) & set(val)
    for folder in ('images', 'SegmentationClass', 'saliency_supervised_model', 'saliency_unsupervised_model'):
        assert {p.stem for p in (root / folder).iterdir()} == {*train, *val}
    assert {p.stem for p in (root / 'SegmentationClassAug').iterdir()} == set(train)
    assert [p.name for p in root.parent.iterdir()] == [root.name]  # nothing left beside it
    description = yaml.safe_load((root / 'dataset.yml').read_text())
    assert description['classes'] == CLASSES
    assert CLASSES[0] == 'background'


def test_files_fit_together(root):
    seen, voids, sizes = set(), 0, set()
    for name in ids(root, 'train') + ids(root, 'val'):
        image, truth = read(root / 'images' / f'{name}.jpg'), read(root / 'SegmentationClass' / f'{name}.png')
        assert image.ndim == 3
        assert image.dtype == truth.dtype == np.uint8
        assert max(truth.shape) == 64
        assert Image.open(root / 'SegmentationClass' / f'{name}.png').getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        labels = set(np.unique(truth))
        assert labels <= {*range(len(CLASSES)), 255}
        seen |= labels
        voids += 255 in labels
        sizes.add(truth.shape)
        exact = read(root / 'saliency_supervised_model' / f'{name}.png')
        rough = read(root / 'saliency_unsupervised_model' / f'{name}.png')
        assert image.shape[:2] == truth.shape == exact.shape == rough.shape
        assert set(np.unique(exact)) == {0, 255}
        assert set(np.unique(rough)) <= {0, 255}
        sure = truth != 255
        assert ((exact == 255) == (truth > 0))[sure].all()
        assert 0.03 < (exact == 255).mean() < 0.7
        if name.startswith('train'):
            path = root / 'SegmentationClassAug' / f'{name}.png'
            assert Image.open(path).mode == 'L'
            assert (read(path) == truth).all()
    assert seen >= set(range(len(CLASSES)))
    assert 0 < voids < TRAIN + VAL
    assert len(sizes) > 3


def test_the_same_parameters_draw_the_same_and_more_images_leave_the_first_alone(root, tmp_path):
    again = tree(synthetic.generate(tmp_path / 'again', TRAIN, VAL, size=64))
    assert again == tree(root)
    more = tree(synthetic.generate(tmp_path / 'more', TRAIN + 2, VAL, size=64))
    assert all(more[name] == content for name, content in again.items() if name.endswith(('.jpg', '.png')))
    other = tree(synthetic.generate(tmp_path / 'other', 1, 1, size=64, seed=1))
    assert other['images/train_000000.jpg'] != again['images/train_000000.jpg']


def test_a_complete_set_is_kept(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    assert synthetic.generate(root, TRAIN, VAL, size=64) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'set').mkdir()
    assert len(ids(synthetic.generate(tmp_path / 'set', 2, 1, size=32), 'train')) == 2


def test_another_set_or_folder_is_never_touched(root, tmp_path):
    with pytest.raises(UserError, match='choose another folder or delete it'):
        synthetic.generate(root, TRAIN, VAL, size=64, seed=5)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('words')
    with pytest.raises(UserError, match='no data set drawn'):
        synthetic.generate(tmp_path / 'mine', 1, 1)
    (tmp_path / 'file').write_text('words')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'set'):
        with pytest.raises(UserError, match='choose another'):
            synthetic.generate(place, 1, 1)
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['file', 'mine', 'thesis.txt']


@pytest.mark.parametrize('failure', [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, failure):
    def stop(*_args):
        raise failure

    monkeypatch.setattr(synthetic, 'rough_mask', stop)
    with pytest.raises(failure):
        synthetic.generate(tmp_path / 'set', 2, 1, size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('bad', [{'train': 0}, {'val': 0}, {'size': 31}, {'seed': -1}])
def test_parameters_out_of_range(tmp_path, bad):
    (name, value), = bad.items()
    with pytest.raises(UserError, match=f'--{name}: {value} is too small'):
        synthetic.main(['--output', str(tmp_path / 'set'), f'--{name}', str(value)])


def test_void_is_a_thin_ring_around_the_objects():
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 10:30] = 3
    void = synthetic.with_void(labels) == 255
    assert not void[12:28, 12:28].any()
    assert not void[:9].any()
    assert void[10:30, 10].all()
    assert void[10:30, 9].all()


def test_rough_masks_are_wrong_but_related():
    overlaps = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        _, labels = draw(rng, 64, 1 + seed % len(KINDS))
        mask = labels > 0
        rough = synthetic.rough_mask(rng, mask)
        overlaps.append((mask & rough).sum() / (mask | rough).sum())
    overlaps = np.array(overlaps)
    assert 0 < (overlaps == 0).mean() < 0.1
    assert 0.7 < np.median(overlaps) < 0.95
    assert overlaps.max() < 1


def test_colour_says_little_about_the_class():
    """A nearest-neighbour guess from the mean object colour is far from right."""
    colours, kinds = [], []
    for index in range(140):
        image, labels = draw(np.random.default_rng(index), 64, 1 + index % len(KINDS))
        colours.append(image[labels > 0].mean(0))
        kinds.append(1 + index % len(KINDS))
    distance = np.linalg.norm(np.array(colours)[:, None] - np.array(colours)[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    right = np.array(kinds)[distance.argmin(1)] == np.array(kinds)
    assert right.mean() < 0.45


@pytest.mark.parametrize('folder', ['.', 'data'])
def test_command_line(tmp_path, folder):
    repository = Path(__file__).resolve().parents[1]
    command = [sys.executable, str(repository / 'experiments' / 'shapes.py'), '--output', str(tmp_path / 'set'),
               '--train', '2', '--val', '1', '--size', '48']
    done = subprocess.run(command, cwd=repository / folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '2 train and 1 val images' in done.stdout
    failed = subprocess.run([*command, '--seed', '3'], cwd=repository / folder, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith('error: ')
    assert len(failed.stderr.splitlines()) == 1
