"""Help, near options, and what a terminal shows that a file does not."""
import importlib
import io
import json
import logging
import shlex
import sys
from collections.abc import Iterator

import pytest

from tests.test_layout import BENCHMARKS, SCRIPTS
from tests.test_utils_config_load import SCHEMAS
from utils.config.cli import ArgumentParser, ConfigParser
from utils.config.keys import schema_keys
from utils.config.schema import Kmeans, Pretrain
from utils.run.errors import UserError
from utils.run.log import duration, log_epoch, setup_logging

OF_SCRIPT = {'pretrain/main.py': 'configs', 'segmentation/linear_finetune.py': 'linear_finetune',
             'segmentation/eval.py': 'linear_finetune', 'segmentation/score_predictions.py': 'linear_finetune',
             'segmentation/kmeans.py': 'kmeans', 'segmentation/retrieval.py': 'retrieval',
             'saliency/train.py': 'saliency'}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize('script', sorted({*SCRIPTS, 'segmentation/table.py', 'experiments/shapes.py'}))
def test_help_has_an_example_and_every_key_with_its_default(script: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script[:-3].replace('/', '.')).main(['--help'])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f'    python {script} --' in text
    assert '(default: None)' not in text
    if script in OF_SCRIPT:
        words = ' '.join(text.split())
        for name, key in schema_keys(SCHEMAS[OF_SCRIPT[script]]).items():
            assert f' {name}: ' in words
            if isinstance(key.default, (int, str)):
                assert f' = {json.dumps(key.default)} {key.description.split()[0]}' in \
                    words.split(f' {name}: ')[1]
        assert ' db_root: str = (must be given)' in words
        assert ' seed: int = 1234 ' in words
        assert ' output_dir: str | None = null ' in words


@pytest.mark.parametrize('script', sorted({*SCRIPTS, 'segmentation/table.py', 'experiments/shapes.py', *BENCHMARKS} - {
    'benchmarks/__init__.py', 'experiments/runner.py'}))
def test_the_examples_of_the_help_are_accepted_as_they_are_written(script: str, monkeypatch) -> None:
    module = importlib.import_module(script[:-3].replace('/', '.'))
    parse, accepted = ArgumentParser.parse_args, []

    def stop(self: ArgumentParser, argv: list[str]) -> None:
        accepted.append(parse(self, argv))
        raise KeyboardInterrupt

    monkeypatch.setattr(ArgumentParser, 'parse_args', stop)
    commands = [shlex.split(line) for line in module.__doc__.replace('\\\n', ' ').splitlines()
                if line.startswith('    python ')]
    assert commands
    for command in commands:
        assert command[:2] == ['python', script]
        with pytest.raises(KeyboardInterrupt):
            module.main(command[2:])
        assert not any(mark in word for word in command for mark in ('[', ']', '...'))
    assert len(accepted) == len(commands)


@pytest.mark.parametrize(('given', 'said'), [
    ('--config_exp x --nprocs 2', 'unknown option --nprocs; did you mean --nproc?'),
    ('--config-expr x', 'unknown option --config-expr; did you mean --config_exp?'),
    ('--config_exp x --num-clusters 3', 'unknown option --num-clusters; did you mean --set num_clusters=VALUE?'),
    ('--config_exp x --model_kwargs.ndim=3', 'did you mean --set model_kwargs.ndim=VALUE?'),
    ('--config_exp x num_seeds=3', 'num_seeds=3 is a config key; write --set num_seeds=3.'),
    ('--config_exp x --qqq', 'unknown option --qqq; see --help.'),
    ('--nproc 2', 'the following arguments are required: --config_exp; see --help.'),
    ('--config_exp x --nproc 0', 'argument --nproc: 0 is too small; give at least 1; see --help.'),
    ('--config_exp x --nproc two', "argument --nproc: invalid whole_number value: 'two'; see --help.")])
def test_an_unknown_option_suggests_the_near_one(given: str, said: str) -> None:
    parser = ConfigParser('Title.', Kmeans)
    with pytest.raises(UserError) as caught:
        parser.parse_args(given.split())
    assert said in str(caught.value)


@pytest.mark.parametrize(('given', 'mend'), [
    ('--lr', 'optimizer_kwargs.lr'), ('--epoch', 'epochs'), ('--seeds', 'seed'), ('--batch-size', 'train_batch_size'),
    ('--size', 'augmentation_kwargs.size'), ('--ndim', 'model_kwargs.ndim'), ('--K', 'moco_kwargs.K'),
    ('--T', 'moco_kwargs.T'), ('--num-worker', 'num_workers'), ('--resume', None), ('--learning-rate', None),
    ('--sat', None), ('--helf', None)])
def test_an_unknown_option_suggests_the_key_whose_last_part_is_near(given: str, mend: str | None) -> None:
    parser = ConfigParser('Title.', Pretrain)
    with pytest.raises(UserError) as caught:
        parser.parse_args(['--config_exp', 'x', given, '3'])
    said = 'see --help.' if mend is None else f'did you mean --set {mend}=VALUE?'
    assert str(caught.value) == f'unknown option {given}; {said}'


def test_abbreviations_and_defaults_still_work() -> None:
    parser = ArgumentParser('Title.')
    parser.add_argument('--crf-postprocess', action='store_true', help='refine')
    parser.add_argument('--number', type=int, default=3, help='how many')
    assert parser.parse_args(['--crf']).crf_postprocess
    assert 'refine (default: off)' in parser.format_help()
    assert 'how many (default: 3)' in parser.format_help()


@pytest.fixture
def _own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in before[0]:
        root.addHandler(handler)
    root.setLevel(before[1])


@pytest.mark.usefixtures('_own_handlers')
def test_epoch_summaries_have_a_colour_on_a_terminal_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv('NO_COLOR', raising=False)
    for stream, coloured in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, 'stdout', stream)
        setup_logging(tmp_path)
        log_epoch(1, 4, 'loss 1.5', 90)
        log_epoch(1, 4, 'loss 1.5', 9, 0.1)
        assert stream.getvalue().rstrip('\033[0m\n').endswith('loss 1.5, 9 s, about 3 min left')
        log_epoch(1, 4, 'loss 1.5', 0, 0)
        assert stream.getvalue().rstrip('\033[0m\n').endswith('loss 1.5, 0 s')
        logging.info('a line')
        shown = stream.getvalue()
        assert ('\033[1m\033[32mEpoch 2 of 4: loss 1.5, 90 s, about 3 min left\033[0m\n' in shown) == coloured
        assert 'Epoch 2 of 4: loss 1.5, 90 s, about 3 min left' in shown
        assert shown.endswith('\na line\n')
    assert '\033' not in (tmp_path / 'log.txt').read_text()


@pytest.mark.usefixtures('_own_handlers')
def test_the_death_of_a_loader_worker_is_not_lost_in_the_log_file(tmp_path, monkeypatch, capsys) -> None:
    def write(text: str) -> None:  # where PyTorch's handler of the signal may come
        raise RuntimeError('DataLoader worker is killed')

    setup_logging(tmp_path)
    monkeypatch.setattr(logging.getLogger().handlers[1].stream, 'write', write)
    with pytest.raises(RuntimeError, match='worker is killed'):
        logging.info('a line')
    assert 'Traceback' not in capsys.readouterr().err


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 99, 100, 5400, 11100)] == ['0 s', '99 s', '2 min', '90 min', '3 h 5 min']
