"""A tiny data set drawn by code, quiet threads, and GPUs for the tests alone that are there for them."""
import argparse
import os
from pathlib import Path

import pytest
import torch
from easydict import EasyDict

from experiments.shapes import generate
from utils.config.load import load_config
from utils.config.schema import Pretrain

torch.set_num_threads(2)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption('markexpr') != 'gpu':  # for the others a machine with GPUs is as one without
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device, and PyTorch sees none; pytest shows those there are with -m gpu alone')


@pytest.fixture(scope='session')
def db_root(tmp_path_factory) -> Path:
    """Folder that holds the data set Shapes: 12 training and 6 validation images of 64 px."""
    root = tmp_path_factory.mktemp('datasets')
    generate(root / 'Shapes', train=12, val=6, size=64)
    return root


@pytest.fixture
def shapes(db_root: Path, tmp_path: Path) -> Path:
    """A private copy of the tiny data set, to break."""
    import shutil
    return Path(shutil.copytree(db_root / 'Shapes', tmp_path / 'db' / 'Shapes'))


@pytest.fixture
def load(tmp_path):
    """load(text of the experiment, schema, overrides, env=text): the config, from files in tmp_path."""
    def load(exp: str, schema: type = Pretrain, overrides=(), env: str = 'root_dir: out\ndb_root: sets\n') -> EasyDict:
        (tmp_path / 'env.yml').write_text(env)
        (tmp_path / 'exp.yml').write_text(exp)
        return load_config(str(tmp_path / 'env.yml'), str(tmp_path / 'exp.yml'), schema, overrides)
    return load


@pytest.fixture
def parsed(monkeypatch):
    """parsed(main of a script, its arguments): what its parser makes of them; the script ends there."""
    class ParsedError(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, words: list[str]) -> None:
        raise ParsedError(parse_args(parser, words))

    def parsed(main, arguments: list[str]) -> argparse.Namespace:
        monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        with pytest.raises(ParsedError) as stopped:
            main(arguments)
        return stopped.value.args[0]

    parse_args = argparse.ArgumentParser.parse_args
    return parsed
