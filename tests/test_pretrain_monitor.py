"""What training shows of itself: image grids and online K-means, which leave its bits alone."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

import models.segmentation
import segmentation.objects
from experiments.shapes import generate
from pretrain.monitor import observed
from tests.test_scripts import Runner
from tests.test_utils_run_trainer import SmallBackbone, small_decoder
from utils.report.pictures import outline, pca_colours
from utils.report.run import read_history
from utils.run.checkpoint import load_checkpoint
from utils.run.errors import UserError


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Runner:
    """A runner on 12 training and 10 validation images."""
    root = tmp_path_factory.mktemp('panels')
    generate(root / 'data' / 'Shapes', train=12, val=10, size=64)
    return Runner(root / 'data', root / 'results')


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.segmentation, 'build_backbone', SmallBackbone)
    monkeypatch.setattr(models.segmentation, 'build_decoder', small_decoder)


def test_grids_and_online_kmeans_leave_the_bits_of_training_alone(run: Runner, capsys) -> None:
    options = 'epochs=3', 'model_kwargs.dropout=0.5', 'device=cpu'
    run('pretrain.main', *options, 'output_dir=with', 'panel_every=2', 'probe_every=1')
    assert capsys.readouterr().out.count('Online K-means: mIoU of 10 images') == 3
    run('pretrain.main', *options, 'output_dir=without', 'panel_every=0')
    seen, unseen = (load_checkpoint(run.root_dir / name / 'checkpoint.pth.tar') for name in ('with', 'without'))
    for part in ('model', 'optimizer'):
        ours, theirs = (torch.utils._pytree.tree_flatten(state[part])[0] for state in (seen, unseen))
        assert len(ours) == len(theirs) > 1
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                   for a, b in zip(ours, theirs, strict=True))
    scalars, pictures = read_history(run.root_dir / 'with')
    assert {name: [step for step, _ in taken] for name, taken in pictures.items()} == {
        'views': [1, 3], 'embedding': [0, 2, 3]}
    assert [epoch for epoch, _ in scalars['probe/mIoU']] == [1, 2, 3]
    assert read_history(run.root_dir / 'without')[1] == {}
    views = Image.open(pictures['views'][0][1])
    assert views.size == (4 * 32 + 3 * 8, 2 * 32 + 8)  # four pairs, query above key
    assert (np.asarray(views) == (255, 255, 0)).all(2).any()  # the outlines


def test_online_kmeans_is_kmeans_of_the_same_images(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation.objects, 'THRESHOLD', 0.0)  # so short a training reaches no high scores
    run('pretrain.main', 'epochs=1', 'output_dir=probed', 'probe_every=1', 'device=cpu')
    probed = read_history(run.root_dir / 'probed')[0]['probe/mIoU'][-1][1]
    run('segmentation.kmeans', f'pretraining={run.root_dir / "probed" / "checkpoint.pth.tar"}', 'num_clusters=7',
        'num_seeds=1', 'whiten=true', 'saliency=network', 'device=cpu')
    entry = json.loads((run.root_dir / 'kmeans' / 'results.json').read_text())['kmeans']
    assert probed == pytest.approx(entry['mIoU'], abs=0.01)


def test_too_few_images_for_online_kmeans_are_one_sentence(run: Runner) -> None:
    with pytest.raises(UserError, match='3 images for 7 clusters; raise probe_images'):
        run('pretrain.main', 'output_dir=few', 'probe_every=1', 'probe_images=3')


def test_observed_gives_every_mode_back() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2))
    model[1].eval()
    with observed(model):
        assert not model.training
        assert not model[0].training
        assert not torch.is_grad_enabled()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.is_grad_enabled()


def test_pca_colours_tell_directions_apart_and_do_not_depend_on_their_length() -> None:
    maps = np.zeros((2, 5, 4, 4), np.float32)
    maps[0, 1], maps[1, 3] = 3, -3
    first, second = pca_colours(maps)
    assert len(np.unique(np.concatenate([first, second]).reshape(-1, 3), axis=0)) == 2
    assert (first != second).any(2).all()
    np.testing.assert_array_equal(pca_colours(100 * maps), pca_colours(maps))
    assert pca_colours(maps[:, :2]).shape == (2, 4, 4, 3)


def test_outline_draws_the_border_on_a_copy() -> None:
    image, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    drawn = outline(image, mask)
    assert not image.any()
    assert (drawn[2, 2:7] == (255, 255, 0)).all()
    assert not drawn[3:6, 3:6].any()
