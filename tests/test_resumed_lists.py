"""A run goes on with the images that it was started on, wherever they lie, and never with those of another list."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data import loaders
from saliency import train
from tests.test_saliency_train import arguments, thin  # noqa: F401  (a fixture)
from tests.test_scripts import Runner
from utils.run.checkpoint import load_checkpoint, resume_training, save_checkpoint
from utils.run.errors import UserError
from utils.run.trainer import Trainer

STEPS = 'checkpoint_every=1', 'epochs=1'


@pytest.fixture
def stopped(monkeypatch):
    """stopped(action): calls it, and ends the run after the first step is saved."""
    def stopped(action) -> None:
        save = Trainer.save

        def cut_off(self) -> None:
            save(self)
            raise KeyboardInterrupt

        monkeypatch.setattr(Trainer, 'save', cut_off)
        with pytest.raises(KeyboardInterrupt):
            action()
        monkeypatch.setattr(Trainer, 'save', save)
    return stopped


@pytest.mark.parametrize(('script', 'more'), [
    ('pretrain.main', ()), ('segmentation.linear_finetune', ('pretraining=none', 'features=backbone'))])
def test_a_changed_list_is_refused_and_a_moved_one_is_not(script, more, shapes, tmp_path, stopped, capsys) -> None:
    runner, sets = Runner(shapes.parent, tmp_path / 'results'), shapes / 'sets'
    stopped(lambda: runner(script, *STEPS, *more))
    ids = (sets / 'train.txt').read_text().split()
    name = runner.root_dir / script.rpartition('.')[2].replace('main', 'pretrain') / 'checkpoint.pth.tar'
    assert load_checkpoint(name)['ids'] == ids
    begin = f'error: the list of training images has changed since the run of {name} was started: it '
    for changed, said in (([*ids[3:], 'spare'], f'lacks 3 of 12 IDs ({", ".join(ids[:3])}) and has 1 more (spare)'),
                          (ids[::-1], 'has the same IDs in another order')):
        for folder in ('images', 'SegmentationClass', 'saliency_supervised_model'):
            file = next((shapes / folder).glob(f'{ids[0]}.*'))
            shutil.copy(file, file.with_stem('spare'))
        (sets / 'train.txt').write_text('\n'.join(changed))
        assert runner.fails(script, *STEPS, *more, capsys=capsys) == (
            f'{begin}{said}; restore it, or choose another output_dir.')
    (sets / 'train.txt').write_text('\n'.join(ids))
    moved = tmp_path / 'moved'
    shapes.parent.rename(moved)
    Runner(moved, runner.root_dir)(script, *STEPS, *more)
    assert 'Resuming after epoch 0 and 1 steps' in capsys.readouterr().out


@pytest.mark.parametrize(('script', 'more', 'folder'), [
    ('pretrain.main', (), 'saliency_supervised_model'),
    ('segmentation.linear_finetune', ('pretraining=none', 'features=backbone'), 'SegmentationClass')])
def test_masks_or_labels_made_anew_are_refused(script, more, folder, shapes, tmp_path, stopped, capsys) -> None:
    runner = Runner(shapes.parent, tmp_path / 'results')
    stopped(lambda: runner(script, *STEPS, *more))
    path = shapes / folder / f'{(shapes / "sets" / "train.txt").read_text().split()[2]}.png'
    before = path.read_bytes()
    labels = np.array(Image.open(path))
    labels[::2] = 0
    Image.fromarray(labels).save(path)
    said = f'error: the files in {path.parent} are not those that this training began with; restore them'
    assert runner.fails(script, *STEPS, *more, capsys=capsys).startswith(said)
    path.write_bytes(before)
    runner(script, *STEPS, *more)
    assert 'Resuming after epoch 0 and 1 steps' in capsys.readouterr().out


def test_processes_that_find_different_images_are_told(shapes: Path, tmp_path, monkeypatch) -> None:
    runner = Runner(shapes.parent, tmp_path / 'results')
    monkeypatch.setattr(loaders.distributed, 'gather_objects', lambda value, patient=False: [
        value, *([(value[0] - 1, b'')] if isinstance(value, tuple) else [])])  # one is damaged there
    with pytest.raises(UserError, match=r'the processes found different images in .*images \(12, 11 of them\)'):
        runner('pretrain.main', *STEPS)


@pytest.mark.parametrize(('kind', 'said'), [
    (64, 'the processes found different files in .*saliency_supervised_model; all must see the same ones'),
    (None, 'the processes have different configs; all must be started with the same files and options')])
def test_processes_with_different_masks_or_configs_are_told(kind, said, shapes: Path, tmp_path, monkeypatch) -> None:
    def gather(value: object, patient: bool = False) -> list:
        other = isinstance(value, str) and (len(value) == kind or (kind is None and value.startswith('{')))
        return [value, 'other'] if other else [value]

    monkeypatch.setattr(loaders.distributed, 'gather_objects', gather)
    with pytest.raises(UserError, match=said):
        Runner(shapes.parent, tmp_path / 'results')('pretrain.main', *STEPS)


def test_a_changed_folder_is_refused(shapes: Path, tmp_path, stopped, thin, capsys) -> None:  # noqa: F811
    for name in ('sets', 'SegmentationClass', 'SegmentationClassAug'):
        shutil.rmtree(shapes / name, ignore_errors=True)
    runner = Runner(shapes.parent, tmp_path / 'results')
    saliency = arguments(shapes.parent, *STEPS)
    stopped(lambda: runner('pretrain.main', *STEPS, 'train_split=all'))
    stopped(lambda: train.main(saliency))
    lost = sorted((shapes / 'images').iterdir())[4]
    lost.unlink()
    said = f'it lacks 1 of 18 IDs ({lost.stem}); restore it'
    assert said in runner.fails('pretrain.main', *STEPS, 'train_split=all', capsys=capsys)
    with pytest.raises(UserError, match='the list of training images has changed') as caught:
        train.main(saliency)
    assert said in str(caught.value)


def test_a_checkpoint_of_the_published_code_is_not_resumed_in_place(db_root: Path, tmp_path, capsys) -> None:
    runner, path = Runner(db_root, tmp_path), tmp_path / 'pretrain' / 'checkpoint.pth.tar'
    runner('pretrain.main', 'epochs=0')
    ours = load_checkpoint(path)
    shutil.rmtree(path.parent)
    save_checkpoint({name: ours[name] for name in ('model', 'optimizer', 'epoch')}, path)
    assert runner.fails('pretrain.main', capsys=capsys) == (
        f'error: {path} is of the published code and cannot be resumed (it holds no random states and no list of '
        'images): move it to another folder and start from it with pretraining: PATH.')
    weights = path.replace(tmp_path / 'theirs.pth.tar')
    runner('pretrain.main', 'epochs=0', f'pretraining={weights}', 'output_dir=further')
    state = load_checkpoint(tmp_path / 'further' / path.name)['model']
    for name, value in ours['model'].items():
        if 'model_q' in name:  # the key encoder starts as the query encoder's copy
            assert torch.equal(state[name], value)
            assert torch.equal(state[name.replace('model_q', 'model_k')], value)


def test_a_run_with_weights_that_are_not_finite_is_not_resumed(tmp_path: Path) -> None:
    model, path = nn.Linear(2, 1), tmp_path / 'checkpoint'
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    save_checkpoint({'model': {'module.weight': torch.tensor([[1, float('inf')]]), 'module.bias': torch.ones(1)},
                     'optimizer': optimizer.state_dict(), 'rng': [], 'ids': ['a']}, path)
    with pytest.raises(UserError, match=rf'{path} holds weights that are not finite \(module.weight\)'):
        resume_training(path, model, optimizer, ['a'])
