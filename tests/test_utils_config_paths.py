"""Paths are what the user wrote: blanks, # and quotes stay, ~ and variables are expanded or refused."""
import argparse
from pathlib import Path

import pytest

from utils.config.cli import ArgumentParser
from utils.config.load import load_config
from utils.config.paths import REPOSITORY, user_path
from utils.config.schema import Pretrain
from utils.run.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('DATA', str(tmp_path / 'data'))
    monkeypatch.delenv('NOWHERE', raising=False)
    return tmp_path


def test_what_is_expanded_and_what_is_refused(here: Path) -> None:
    for text, expected in (('~/a b', here / 'home/a b'), ('$DATA/x', here / 'data/x'), ('${DATA}/x', here / 'data/x'),
                           ("it's #1", Path("it's #1")), ('price$5', Path('price$5'))):
        assert user_path(text) == expected
    for text in ('$NOWHERE/x', '${NOWHERE}', '~nobody-of-this-name/x', ' '):
        with pytest.raises(UserError, match='^(a path is empty|path .* names .*)'):
            user_path(text)
    (here / '$NOWHERE').mkdir()
    assert user_path('$NOWHERE') == Path('$NOWHERE')  # it exists


def test_flags(here: Path) -> None:
    parser = ArgumentParser('doc')
    parser.add_argument('--images', type=Path)
    assert parser.parse_args(['--images', '~/my photos #1']) == argparse.Namespace(images=here / 'home/my photos #1')
    with pytest.raises(UserError, match=r'path \$NOWHERE/x names the environment variable \$NOWHERE, which is not set'):
        parser.parse_args(['--images', '$NOWHERE/x'])


def test_config_keys(here: Path) -> None:
    (here / 'env.yml').write_text('root_dir: $DATA\ndb_root: ~/sets\n')
    (here / 'exp.yml').write_text('pretraining: none\nepochs: 1\ntrain_batch_size: 2\n')

    def load(*overrides: str):
        return load_config('env.yml', 'exp.yml', Pretrain, overrides)

    assert (load().root_dir, load().db_root) == (str(here / 'data'), str(here / 'home/sets'))
    for text in ('/data/photos #1', "/data/it's: here", '/data/[a]', '/data/{b}', '2012', 'no', '*star', '1e3', 'a: b'):
        assert load(f'db_root={text}').db_root == str(REPOSITORY / text)
    p = load('train_split=2012', 'output_dir="quoted #2"', 'saliency=no')
    assert (p.train_split, p.output_dir, p.saliency) == ('2012', str(here / 'data/quoted #2'), 'no')
    assert load('output_dir=null').output_dir == str(here / 'data/exp')
    for key in ('db_root', 'root_dir', 'output_dir'):
        with pytest.raises(UserError, match=r'\$NOWHERE, which is not set'):
            load(f'{key}=$NOWHERE/x')
