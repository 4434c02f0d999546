"""The five scripts as users run them: end to end on a tiny set, from both working directories, and on bad input."""
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation import score_predictions
from segmentation.segmenter import Segmenter
from tests.test_utils_report_run import Page
from utils.report.run import read_history
from utils.run.files import PALETTE
from utils.run.script import run_script

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {'pretrain.main': 'pretrain', 'segmentation.linear_finetune': 'linear_finetune',
           'segmentation.eval': 'linear_finetune', 'segmentation.kmeans': 'kmeans',
           'segmentation.retrieval': 'retrieval'}
SMALL = {'pretrain.main': ['epochs=2', 'train_batch_size=4', 'augmentation_kwargs.size=32', 'log_every=1'],
         'segmentation.linear_finetune': ['epochs=2', 'train_batch_size=4', 'train_size=32', 'val_size=32',
                                          'scheduler=constant'],
         'segmentation.kmeans': ['num_clusters=3', 'num_seeds=2', 'val_size=32', 'saliency=supervised_model'],
         'segmentation.retrieval': ['val_size=32', 'saliency=supervised_model']}
SMALL['segmentation.eval'] = SMALL['segmentation.linear_finetune']


class Runner:
    """Runs scripts in this process, whatever GPUs there are, on one data set and one results folder."""

    def __init__(self, db_root: Path, root_dir: Path) -> None:
        self.db_root, self.root_dir = db_root, root_dir

    def arguments(self, script: str, *overrides: str) -> list[str]:
        return ['--config_env', 'configs/demo/env.yml', '--config_exp', f'configs/demo/{CONFIGS[script]}.yml', '--set',
                f'db_root={self.db_root}', f'root_dir={self.root_dir}', 'num_workers=0', *SMALL[script], *overrides]

    def __call__(self, script: str, *overrides: str, flags: tuple[str, ...] = ()) -> None:
        importlib.import_module(script).main([*self.arguments(script, *overrides), '--nproc', '1', *flags])

    def fails(self, script: str, *overrides: str, flags: tuple[str, ...] = (), capsys=None) -> str:
        """Run what must end in one sentence and exit code 2; returns the sentence."""
        with pytest.raises(SystemExit) as ended:
            run_script(lambda: self(script, *overrides, flags=flags))
        assert ended.value.code == 2
        message = capsys.readouterr().err.strip()
        assert message.startswith('error: ')
        assert 'Traceback' not in message
        return message


@pytest.fixture(scope='module')
def run(db_root: Path, tmp_path_factory) -> Runner:
    """A runner whose results folder holds a short pretraining."""
    runner = Runner(db_root, tmp_path_factory.mktemp('results'))
    runner('pretrain.main')
    return runner


@pytest.mark.parametrize('script', CONFIGS)
def test_a_script_stays_in_this_process_on_a_machine_with_two_gpus(script: str, db_root: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    class JoinedError(Exception):
        pass

    def join(use_cuda: bool) -> None:
        raise JoinedError

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr('utils.run.setup.elastic_launch', lambda *_: lambda *_: None)
    monkeypatch.setattr('utils.run.distributed.join', join)
    with pytest.raises(JoinedError):
        Runner(db_root, tmp_path)(script, 'device=cuda',
                                  flags=('--state-dict', __file__) * (script == 'segmentation.eval'))


def results(folder: Path) -> dict:
    return json.loads((folder / 'results.json').read_text())


def test_pretraining_leaves_a_released_checkpoint(run: Runner) -> None:
    folder = run.root_dir / 'pretrain'
    state = torch.load(folder / 'checkpoint.pth.tar', weights_only=True)
    assert state['epoch'] == 2
    assert state['config']['moco_kwargs']['K'] == 40
    assert {name.split('.')[1] for name in state['model']} == {'model_q', 'model_k', 'queue', 'queue_ptr'}
    assert state['model']['module.queue_ptr'].item() == 24
    assert {'train/loss', 'train/lr', 'bank/cosine', 'bank/rank'} <= read_history(folder)[0].keys()
    assert 'Training' in Page(folder / 'report.html').text
    assert 'saliency_supervised_model, 0 left out' in (folder / 'log.txt').read_text()


def test_a_first_step_without_memory_leaves_the_folder_to_a_smaller_batch(run: Runner, monkeypatch, capsys) -> None:
    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory.')

    with monkeypatch.context() as patched:
        patched.setattr('pretrain.main.compute_losses', too_much)
        run.fails('pretrain.main', 'output_dir=memory', 'train_batch_size=6', capsys=capsys)
    folder = run.root_dir / 'memory'
    (folder / 'tensorboard' / 'stale').touch()
    (folder / 'metrics.jsonl').write_text('stale')
    run('pretrain.main', 'output_dir=memory', 'epochs=0')
    assert 'train_batch_size: 4' in (folder / 'config.yml').read_text()
    assert (folder / 'checkpoint.pth.tar').is_file()
    assert not (folder / 'tensorboard' / 'stale').exists()  # curves of another config
    assert not (folder / 'metrics.jsonl').exists()
    assert 'train_batch_size: 4 -> 2' in run.fails('pretrain.main', 'output_dir=memory', 'epochs=0',
                                                   'train_batch_size=2', capsys=capsys)
    run('pretrain.main', 'output_dir=memory', 'epochs=0', 'loss_chunk=8192', 'channels_last=false')


def test_zero_epochs_write_the_initial_weights(run: Runner) -> None:
    run('pretrain.main', 'epochs=0', 'output_dir=before')
    initial = torch.load(run.root_dir / 'before' / 'checkpoint.pth.tar', weights_only=True)['model']
    trained = torch.load(run.root_dir / 'pretrain' / 'checkpoint.pth.tar', weights_only=True)['model']
    assert initial.keys() == trained.keys()
    assert not torch.equal(initial['module.model_q.head.weight'], trained['module.model_q.head.weight'])
    keys = [name for name in initial if 'model_q' in name]
    assert all(torch.equal(initial[name], initial[name.replace('model_q', 'model_k')]) for name in keys)


def test_linear_classifier_and_eval_agree(run: Runner, capsys) -> None:
    run('segmentation.linear_finetune')
    folder = run.root_dir / 'linear_finetune'
    printed = capsys.readouterr().out
    figures = results(folder)['linear']
    assert f'mIoU is {figures["mIoU"]:.2f}\n' in printed
    for name, value in figures['IoU'].items():
        assert f'IoU class {name} is {value:.2f}\n' in printed
    run('segmentation.eval', 'output_dir=eval', 'num_visualizations=2',
        flags=('--state-dict', str(folder / 'best_model.pth.tar'), '--crf-postprocess'))
    evaluated = results(run.root_dir / 'eval')
    assert evaluated['linear'] == figures
    assert len(list((run.root_dir / 'eval' / 'visualizations').iterdir())) == 2
    assert len(list((run.root_dir / 'eval' / 'predictions_crf').glob('*.png'))) == 6
    assert 'Confusion matrix: Linear classifier + CRF' in Page(run.root_dir / 'eval' / 'report.html').text
    run('segmentation.eval', 'output_dir=eval', flags=('--state-dict', str(folder / 'best_model.pth.tar')))
    assert results(run.root_dir / 'eval') == evaluated  # the CRF's results, which the same weights gave, stay
    assert (run.root_dir / 'eval' / 'predictions_crf').is_dir()
    path = run.root_dir / 'eval' / 'results.json'
    evaluated['linear_crf']['made_with']['size'] += 1  # of another val_size
    path.write_text(json.dumps(evaluated))
    run('segmentation.eval', 'output_dir=eval', flags=('--state-dict', str(folder / 'best_model.pth.tar')))
    assert results(run.root_dir / 'eval') == {'linear': figures}
    assert not (run.root_dir / 'eval' / 'predictions_crf').exists()
    assert 'data_digest' in figures['made_with']
    assert {'Training', 'Confusion matrix: Linear classifier'} <= set(Page(folder / 'report.html').text.splitlines())
    # the score is that of the PNGs against the original masks
    hits, union = np.zeros(8), np.zeros(8)
    for path in (folder / 'predictions').glob('*.png'):
        prediction = Image.open(path)
        assert prediction.mode == 'P'
        assert prediction.getpalette()[:24] == PALETTE[:8].ravel().tolist()
        truth = np.array(Image.open(run.db_root / 'Shapes' / 'SegmentationClass' / path.name))
        for c in range(8):
            a, b, valid = np.array(prediction) == c, truth == c, truth != 255
            hits[c] += (a & b & valid).sum()
            union[c] += ((a | b) & valid).sum()
    assert figures['mIoU'] == pytest.approx(100 * np.mean(hits / union.clip(1)))


def test_kmeans(run: Runner, capsys) -> None:
    run('segmentation.kmeans', flags=('--num_seeds', '3'))
    folder = run.root_dir / 'kmeans'
    entry = results(folder)['kmeans']
    assert len(entry['runs']) == 3
    assert entry['mIoU'] == pytest.approx(np.mean([one['mIoU'] for one in entry['runs']]))
    printed = capsys.readouterr().out
    assert 'Confusion matrix: K-means' in Page(folder / 'report.html').text
    assert len(re.findall('^mIoU is', printed, re.MULTILINE)) == 4
    assert printed.rindex(f'mIoU is {entry["mIoU"]:.2f}') > printed.index('Mean of 3 runs')
    # run 0 again from the label maps on disk
    hits, union = np.zeros(8), np.zeros(8)
    assert (folder / 'predictions' / 'classes.yml').is_file()
    for path in (folder / 'predictions').glob('*.png'):
        prediction = np.array(Image.open(path))
        truth = np.array(Image.open(run.db_root / 'Shapes' / 'SegmentationClass' / path.name))
        for c in range(8):
            a, b, valid = prediction == c, truth == c, truth != 255
            hits[c] += (a & b & valid).sum()
            union[c] += ((a | b) & valid).sum()
    assert entry['runs'][0]['mIoU'] == pytest.approx(100 * np.mean(hits / union.clip(1)))


def test_retrieval_with_and_without_ignored_classes(run: Runner, capsys) -> None:
    run('segmentation.retrieval', 'ignore_classes=[star, ball]')
    entries = results(run.root_dir / 'retrieval')
    assert list(entries) == ['retrieval', 'retrieval_5']
    assert list(entries['retrieval']['IoU'])[0] == 'background'
    assert len(entries['retrieval']['IoU']) == 8
    assert len(entries['retrieval_5']['IoU']) == 5
    assert not {'background', 'star', 'ball'} & entries['retrieval_5']['IoU'].keys()
    page = Page(run.root_dir / 'retrieval' / 'report.html').text
    assert 'Confusion matrix: Retrieval' in page
    assert 'Confusion matrix: retrieval_5' in page


def test_all_protocols_score_the_same_few_classes(run: Runner) -> None:
    chosen, expected = 'eval_classes=[ball, star]', ['background', 'star', 'ball']
    for script in ('segmentation.linear_finetune', 'segmentation.kmeans', 'segmentation.retrieval'):
        folder = run.root_dir / f'few_{script}'
        run(script, chosen, f'output_dir={folder}')
        for entry in results(folder).values():
            assert set(entry['IoU']) == set(expected), script
            assert entry['mIoU'] == pytest.approx(np.mean(list(entry['IoU'].values())))
    linear, evaluated = (run.root_dir / f'few_segmentation.{name}' for name in ('linear_finetune', 'eval'))
    best = linear / 'best_model.pth.tar'
    run('segmentation.eval', chosen, f'output_dir={evaluated}', flags=('--state-dict', str(best)))
    assert results(evaluated) == results(linear)
    assert Segmenter.load(best, 'cpu').classes == tuple(results(linear)['linear']['IoU'])
    score_predictions.main(run.arguments('segmentation.linear_finetune', chosen, f'output_dir={linear}',
                                         'num_visualizations=0'))
    offline = results(linear)['offline']
    assert offline.pop('made_with')['label_maps'] == str(linear / 'predictions')
    assert offline == {name: value for name, value in results(linear)['linear'].items() if name != 'made_with'}


def test_a_batch_of_one_image(run: Runner) -> None:
    run('pretrain.main', 'output_dir=one', 'train_batch_size=1', 'epochs=1')
    run('segmentation.linear_finetune', 'output_dir=lone', 'train_batch_size=1', 'val_batch_size=1', 'epochs=1',
        'freeze_batchnorm=none')
    run('segmentation.retrieval', 'output_dir=rone', 'val_batch_size=1')
    run('segmentation.retrieval', 'output_dir=rmany')
    one, many = (np.load(run.root_dir / name / 'memory.npz')['prototypes'] for name in ('rone', 'rmany'))
    np.testing.assert_allclose(one, many, atol=1e-5)
    one, many = (results(run.root_dir / name)['retrieval'] for name in ('rone', 'rmany'))
    assert one['mIoU'] == pytest.approx(many['mIoU'], abs=1e-3)


@pytest.mark.parametrize(('folder', 'scripts'), [
    ('.', ('segmentation.kmeans', 'pretrain.main')), ('script', tuple(CONFIGS))])
def test_from_both_working_directories(run: Runner, folder: str, scripts: tuple[str, ...]) -> None:
    for script in scripts:
        path = ROOT / (script.replace('.', '/') + '.py')
        directory = ROOT if folder == '.' else path.parent
        arguments = run.arguments(script, f'output_dir=from_{len(folder)}_{path.stem}',
                                  *([f'epochs={int(script != "pretrain.main")}'] * ('epochs=2' in SMALL[script])))
        if script == 'segmentation.eval':  # a path below root_dir
            arguments += ['--state-dict', f'from_{len(folder)}_linear_finetune/best_model.pth.tar']
        shown = os.path.relpath(path, directory)
        done = subprocess.run([sys.executable, shown, *arguments], cwd=directory, capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        assert not re.search('Traceback|Error', done.stderr)


def test_bad_input_to_any_script(run: Runner, capsys, tmp_path: Path) -> None:
    def fails(sentence: str, *overrides: str, script: str = 'pretrain.main', flags: tuple[str, ...] = ()) -> None:
        assert run.fails(script, f'output_dir={tmp_path / script}', *overrides, flags=flags,
                         capsys=capsys) == f'error: {sentence}'

    fails("--set epoch=3: unknown key 'epoch'; did you mean 'epochs'?", 'epoch=3')
    fails('--set db_root=/path/to/datasets: db_root is still the placeholder /path/to/datasets; set it to the folder '
          'that holds the data sets, there or with --set db_root=FOLDER', 'db_root=/path/to/datasets')
    fails('data set folder /nowhere/Shapes does not exist; set db_root in the env config to the folder that holds '
          'Shapes/.', 'db_root=/nowhere')
    fails('--set train_batch_size=4: train_batch_size 4 does not fit into the memory bank of moco_kwargs.K 3; raise K '
          'or take smaller batches', 'moco_kwargs.K=3')
    fails('train_batch_size 20 is larger than the data set: Shapes train has 12 usable images; lower it or add images.',
          'train_batch_size=20')
    if not torch.cuda.is_available():
        fails('device: cuda is asked for, but PyTorch sees no CUDA device; set device: cpu (or auto), or install a GPU '
              'driver and a CUDA build of PyTorch.', 'device=cuda')
    assert not (tmp_path / 'pretrain.main' / 'checkpoint.pth.tar').exists()
    state = run.root_dir / 'pretrain' / 'checkpoint.pth.tar'
    fails(f'{state} is a pretraining checkpoint or a plain backbone without a classifier; train one on it with '
          'linear_finetune.py (key pretraining), or use kmeans.py or retrieval.py.', script='segmentation.eval',
          flags=('--state-dict', str(state)))
    fails('no file /nowhere.pth: looked for /nowhere.pth; correct the path or make the file first.',
          script='segmentation.eval', flags=('--state-dict', '/nowhere.pth'))
    places = ' and '.join(str(folder / 'nowhere.pth') for folder in dict.fromkeys((Path.cwd(), run.root_dir, ROOT)))
    fails(f'no file nowhere.pth: looked for {places}; correct the path or make the file first.',
          'pretraining=nowhere.pth', script='segmentation.kmeans')
    classes = 'background, star, ball, cross, pear, gear, fish, house'
    fails(f'eval_classes names cat, which the data set does not have; its classes are {classes}.',
          'eval_classes=[cat]', script='segmentation.kmeans')
    fails('6 images cannot form num_clusters 7; lower num_clusters or take a larger split.', 'num_clusters=7',
          script='segmentation.kmeans')
    fails(f'ignore_classes names cat, which the data set does not have; its classes are {classes}.',
          'ignore_classes=[cat]', script='segmentation.retrieval')


def test_broken_files_are_one_sentence_and_results_stay(run: Runner, shapes: Path, tmp_path: Path, capsys) -> None:
    weights = Path(shutil.copy(run.root_dir / 'pretrain' / 'checkpoint.pth.tar', tmp_path / 'weights.pth.tar'))
    private = Runner(shapes.parent, tmp_path / 'results')
    private('segmentation.kmeans', f'pretraining={weights}')
    name = (shapes / 'sets' / 'val.txt').read_text().split()[0]

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / 'results' / 'kmeans').rglob('*')
                if path.is_file() and path.name != 'log.txt'}

    def breaks(path: Path, content: bytes | None, sentence: str) -> None:
        whole, before = path.read_bytes(), written()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert private.fails('segmentation.kmeans', f'pretraining={weights}', capsys=capsys) == f'error: {sentence}'
        assert written() == before
        path.write_bytes(whole)

    breaks(shapes / 'sets' / 'val.txt', None, f'list of image IDs {shapes}/sets/val.txt does not exist; choose a split '
                                              'that has one, or add it.')
    for folder, suffix, what in (('images', 'jpg', 'image'), ('SegmentationClass', 'png', 'ground truth'),
                                 ('saliency_supervised_model', 'png', 'saliency mask')):
        breaks(shapes / folder / f'{name}.{suffix}', None, f'1 of 6 IDs of val have no {what} in {shapes}/{folder}: '
               f'there is no {folder}/{name}.{suffix}; add or rename the files, or correct the list: an ID is the name '
               'of its image below images/ without .jpg, one a line.')
    truth, png = shapes / 'SegmentationClass' / f'{name}.png', io.BytesIO()
    Image.fromarray(np.full((64, 64), 8, np.uint8)).save(png, 'PNG')
    breaks(truth, png.getvalue(), f'ground truth {truth} holds class id 8, outside 0..7 and 255 (ignore); fix the file '
                                  f'or list the class in {shapes}/dataset.yml.')
    breaks(weights, weights.read_bytes()[:65000], f'checkpoint {weights} is truncated or no checkpoint; copy or '
                                                  'download it again.')


def test_another_config_does_not_write_over_results(run: Runner, capsys) -> None:
    before = (run.root_dir / 'pretrain' / 'checkpoint.pth.tar').stat().st_mtime_ns
    assert 'seed' in run.fails('pretrain.main', 'seed=5', capsys=capsys)
    assert (run.root_dir / 'pretrain' / 'checkpoint.pth.tar').stat().st_mtime_ns == before


def test_a_corrupt_image_in_a_worker_is_one_sentence(run: Runner, shapes: Path, tmp_path: Path) -> None:
    for path in (shapes / 'images').iterdir():
        path.write_bytes(path.read_bytes()[:200])
    private = Runner(shapes.parent, tmp_path / 'results')
    arguments = private.arguments('pretrain.main', 'num_workers=2')
    done = subprocess.run([sys.executable, str(ROOT / 'pretrain' / 'main.py'), *arguments], capture_output=True,
                          text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert re.search(r'^error: image file \S+\.jpg cannot be read \(Truncated File Read\); replace it', done.stderr,
                     re.MULTILINE)
    assert 'Traceback' not in done.stderr


def test_masks_that_are_empty_everywhere(run: Runner, shapes: Path, tmp_path: Path, capsys) -> None:
    for path in (shapes / 'saliency_supervised_model').iterdir():
        Image.fromarray(np.zeros(np.array(Image.open(path)).shape, np.uint8)).save(path)
    private = Runner(shapes.parent, tmp_path / 'results')
    assert 'look empty' in private.fails('pretrain.main', capsys=capsys)
    trained = f'pretraining={run.root_dir / "pretrain" / "checkpoint.pth.tar"}'
    assert 'none of the 6 images has a mask' in private.fails('segmentation.kmeans', trained, capsys=capsys)
    assert 'none of the 12 images has a mask' in private.fails('segmentation.retrieval', trained, capsys=capsys)
