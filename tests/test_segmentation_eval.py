"""Results of eval.py: whose they are, where they go, and weights of other classes."""
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from models.segmentation import LinearSegmentationModel
from segmentation import engine, linear_finetune
from segmentation import eval as eval_script
from segmentation.engine import read_trained, write_trained
from segmentation.segmenter import Segmenter
from tests.colours import MIDDLE, arguments, plain_backbone, results, runner, write_image, write_lists
from tests.test_utils_report_run import Page
from utils.run import distributed
from utils.run.checkpoint import save_checkpoint
from utils.run.errors import UserError
from utils.run.files import save_label_map

FIXED = ('train_db_name=Colours', 'train_size=32', 'train_batch_size=4', 'epochs=1')
NAMES = ('background', 'red')


@pytest.fixture
def trained(tmp_path: Path, monkeypatch) -> tuple[Path, list[str]]:
    """The output directory linear_finetune/ of a short training, and the overrides that it had."""
    root = tmp_path / 'Colours'
    for i in range(4):
        write_image(root, str(i), [(1, MIDDLE)])
    write_lists(root, NAMES, train='0123', val='0123')
    _, weights = plain_backbone(tmp_path, 'imagenet_classification', monkeypatch)
    run = runner(linear_finetune, 'linear_finetune', tmp_path, *FIXED, *weights)
    return run(output='linear_finetune'), [*FIXED, *weights]


def evaluate(folder: Path, weights: Path, *overrides: str) -> None:
    eval_script.main([*arguments('linear_finetune', folder, *overrides), '--state-dict', str(weights)])


def other_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(LinearSegmentationModel('resnet18', 2, features='backbone', decoder='conv1x1').state_dict(), path)
    return path


def test_results_name_their_weights_and_stay_with_them(trained, tmp_path: Path, capsys) -> None:
    run, overrides = trained
    own = results(run)
    made = own['linear']['made_with']
    assert made | {'fingerprint': ''} == {'weights': str(run / 'best_model.pth.tar'), 'fingerprint': '',
                                          'data': 'Colours val', 'images': 4, 'size': 32,
                                          'data_digest': made['data_digest']}
    evaluate(tmp_path, Path(run.name, 'best_model.pth.tar'), *overrides)  # its own: in place, and the same
    assert results(run) == own
    capsys.readouterr()

    other = other_weights(tmp_path / 'other.pth.tar', 5)
    evaluate(tmp_path, other, *overrides)
    assert results(run) == own
    folder = tmp_path / 'results' / 'linear_finetune-eval-other'
    found = results(folder)['linear']['made_with']
    assert found['weights'] == str(other)
    assert found['fingerprint'] != made['fingerprint']
    assert f'Weights: {other} (fingerprint {found["fingerprint"]})' in capsys.readouterr().out
    assert str(other) in Page(folder / 'report.html').text
    assert found['fingerprint'] in Page(folder / 'report.html').text

    with pytest.raises(UserError, match='^output_dir .* is that of a training run, .* its own best_model.pth.tar'):
        evaluate(tmp_path, other, 'output_dir=linear_finetune', *overrides)
    evaluate(tmp_path, other, 'output_dir=chosen', *overrides)
    with pytest.raises(UserError, match=r'^output_dir .*chosen holds results of other weights \(.*other.pth.tar\)'):
        evaluate(tmp_path, run / 'best_model.pth.tar', 'output_dir=chosen', *overrides)
    other_weights(other, 6)  # another file under the same name
    with pytest.raises(UserError, match='eval-other holds results of other weights'):
        evaluate(tmp_path, other, *overrides)
    assert results(run) == own


def test_the_entry_has_the_name_that_training_gave_it(trained, tmp_path: Path) -> None:
    run, overrides = trained
    evaluate(tmp_path, run / 'best_model.pth.tar', *overrides, 'network_lr_factor=1', 'output_dir=finetuning')
    assert list(results(tmp_path / 'results' / 'finetuning')) == ['linear']


def test_a_model_without_a_note_is_what_the_config_trains(trained, tmp_path: Path) -> None:
    run, overrides = trained
    other = other_weights(tmp_path / 'published.pth', 5)
    evaluate(tmp_path, other, *overrides, 'label_maps=maps', 'output_dir=published')
    assert results(tmp_path / 'results' / 'published').keys() == {'distilled', 'distilled_matched'}


def test_results_of_other_ground_truth_do_not_stay_beside_new_ones(trained, tmp_path: Path) -> None:
    run, overrides = trained
    path, entry = run / 'results.json', results(run)['linear']
    old = {**entry, 'made_with': {**entry['made_with'], 'weights': 'elsewhere'}}
    del old['made_with']['data_digest']  # of an earlier version, and the folder was moved since
    (run / 'predictions_crf').mkdir()
    path.write_text(json.dumps({'linear': entry, 'linear_crf': old}))
    evaluate(tmp_path, run / 'best_model.pth.tar', *overrides)
    assert results(run) == {'linear': entry, 'linear_crf': old}
    path.write_text(json.dumps({'linear': entry, 'linear_crf': entry}))
    evaluate(tmp_path, run / 'best_model.pth.tar', *overrides)
    assert results(run) == {'linear': entry, 'linear_crf': entry}
    write_image(tmp_path / 'Colours', '3', [(1, (slice(3, 9), slice(5, 21)))])  # of the file's size another
    evaluate(tmp_path, run / 'best_model.pth.tar', *overrides)
    assert results(run).keys() == {'linear'}
    assert (run / 'predictions_crf').is_dir()  # the maps are of the same weights and images


def test_label_maps_that_another_machine_keeps_are_missed(trained, tmp_path: Path, monkeypatch) -> None:
    run, overrides = trained
    monkeypatch.setattr(engine, 'save_label_map', lambda labels, path: path.stem == '2' or save_label_map(labels, path))
    with pytest.raises(UserError, match='2.png was written elsewhere; output_dir must be one folder that all machines'):
        evaluate(tmp_path, run / 'best_model.pth.tar', *overrides)
    assert [path.stem for path in sorted((run / 'predictions').glob('*.png'))] == ['0', '1', '3']  # no old one


def test_weights_of_another_network_than_the_config_says_are_refused(trained, tmp_path: Path) -> None:
    run, overrides = trained
    with pytest.raises(UserError, match=r'best_model.pth.tar does not fit this model \(missing: decoder'):
        evaluate(tmp_path, run / 'best_model.pth.tar', *overrides, 'features=decoder', 'output_dir=decoder')


def test_classes_it_was_not_trained_for(trained, tmp_path: Path) -> None:
    run, overrides = trained
    best, beside = run / 'best_model.pth.tar', run / 'best_model.classes.yml'
    assert yaml.safe_load(beside.read_text()) == {'task': 'linear', 'classes': list(NAMES)}
    assert all(isinstance(value, torch.Tensor) for value in torch.load(best, weights_only=True).values())
    assert Segmenter.load(best, 'cpu').classes == NAMES
    beside.write_text('{task: linear, classes: [no, 3]}')
    assert read_trained(best) == ('linear', ('no', '3'))  # texts, as in the file
    write_trained(best, 'linear', NAMES)
    assert read_trained(run / 'checkpoint.pth.tar') == read_trained(best) == ('linear', NAMES)
    write_lists(tmp_path / 'Colours', ('background', 'blue'))
    assert Segmenter.load(best, 'cpu').classes == NAMES  # not those of a list that has changed since
    said = 'was trained for the classes background, red, and the data set has background, blue; '
    for start in (lambda: evaluate(tmp_path, best, *overrides),
                  lambda: runner(linear_finetune, 'linear_finetune', tmp_path)(*overrides, output='linear_finetune')):
        with pytest.raises(UserError, match=said):
            start()
    write_lists(tmp_path / 'Colours', NAMES)
    beside.write_text(json.dumps({'task': 'linear', 'classes': ['a', 'b', 'c']}))
    with pytest.raises(UserError, match='has 2 classes, and a, b, c stand beside it'):
        Segmenter.load(best, 'cpu')


@pytest.mark.parametrize('content', [b'', b'[', b'classes: 3', b'\xff\xfe\x00', b'- a'])
def test_what_is_damaged_is_not_taken_for_absent(trained, tmp_path: Path, content: bytes) -> None:
    run, overrides = trained
    best = run / 'best_model.pth.tar'
    before = {name: (run / name).read_bytes() for name in ('best_model.classes.yml', 'config.yml')}
    for name, whole in before.items():
        if name == 'config.yml' and content == b'classes: 3':
            continue
        (run / name).write_bytes(content)
        with pytest.raises(UserError, match=f'{name} (is damaged|is not valid YAML|must hold)'):
            Segmenter.load(best, 'cpu')
        (run / name).write_bytes(whole)
    lines = before['config.yml'].splitlines(keepends=True)
    (run / 'config.yml').write_bytes(b''.join(lines[:3]))  # cut off between two lines, it is YAML still
    with pytest.raises(UserError, match='config.yml is damaged'):
        Segmenter.load(best, 'cpu')
    (run / 'config.yml').write_bytes(before['config.yml'])
    (run / 'best_model.classes.yml').write_bytes(content)
    with pytest.raises(UserError, match='best_model.classes.yml (is damaged|is not valid YAML|must hold)'):
        evaluate(tmp_path, best, *overrides)


def test_a_crf_that_is_not_installed_is_told_before_anything_is_made(trained, tmp_path: Path, monkeypatch) -> None:
    _, overrides = trained
    weights = other_weights(tmp_path / 'other.pth.tar', 5)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='^the CRF needs pydensecrf'):
        eval_script.main([*arguments('linear_finetune', tmp_path, *overrides), '--state-dict', str(weights),
                          '--crf-postprocess'])
    assert not (tmp_path / 'results' / 'linear_finetune-eval-other').exists()


def test_processes_wait_for_hours_for_the_shares_of_others(trained, tmp_path: Path, monkeypatch) -> None:
    patience: dict[str, set[bool]] = {}

    def gather(value: object, patient: bool = False) -> list[object]:
        patience.setdefault(sys._getframe(1).f_code.co_name, set()).add(patient)
        return [value]

    monkeypatch.setattr(distributed, 'gather_objects', gather)
    linear_finetune.main(arguments('linear_finetune', tmp_path, *trained[1], 'output_dir=again'))
    assert patience['validate'] == patience['score'] == {True}
