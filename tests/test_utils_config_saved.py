"""utils.config.load: config.yml beside the results; where files are looked for."""
import pytest
import yaml

from tests.test_utils_config_load import MINIMAL
from utils.config.load import as_dict, save_config
from utils.config.paths import REPOSITORY, find_file
from utils.config.schema import Kmeans
from utils.run.errors import UserError


def test_save_config_writes_once_and_accepts_the_same(load, tmp_path):
    config = load(MINIMAL, overrides=['optimizer_kwargs.weight_decay=0.00001'])
    path = save_config(config, tmp_path / 'new' / 'run')
    assert [p.name for p in path.parent.iterdir()] == ['config.yml']
    assert yaml.safe_load(path.read_text()) == as_dict(config)
    (path.parent / 'results.json').touch()
    before = path.read_text()
    again = load(MINIMAL, overrides=['optimizer_kwargs.weight_decay=0.00001', 'num_workers=0', 'device=cpu',
                                     'log_every=1', 'root_dir=/elsewhere', 'db_root=/d'])
    assert save_config(again, tmp_path / 'new' / 'run') == path
    assert path.read_text() == before


def test_save_config_shows_what_differs(load, tmp_path):
    save_config(load(MINIMAL), tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').touch()
    other = load(MINIMAL, overrides=['optimizer_kwargs.lr=0.01', 'epochs=2', 'saliency=other', 'num_workers=0'])
    with pytest.raises(UserError) as caught:
        save_config(other, tmp_path / 'run')
    assert str(caught.value) == (
        f'{tmp_path / "run"} holds results of another config (epochs: 1 -> 2, optimizer_kwargs.lr: 0.004 -> 0.01, '
        'saliency: "supervised_model" -> "other"); choose another output_dir (--set output_dir=...) or delete the '
        'folder.')


def test_save_config_counts_what_is_named(load, tmp_path):
    save_config(load(MINIMAL), tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').touch()
    other = load(MINIMAL, overrides=['db_root=/d'])
    save_config(other, tmp_path / 'run')
    with pytest.raises(UserError, match=r'\(db_root: ".*sets" -> "/d"\); choose another root_dir \(--set root_dir='):
        save_config(other, tmp_path / 'run', ['db_root'])


def test_save_config_with_another_schema_or_a_broken_file(load, tmp_path):
    save_config(load(MINIMAL), tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').touch()
    with pytest.raises(UserError, match='epochs: 1 -> absent'):
        save_config(load('pretraining: a.pth\n', Kmeans), tmp_path / 'run')
    whole = (tmp_path / 'run' / 'config.yml').read_text()
    for damaged in ('[', whole[:whole.rindex('config_name')]):
        (tmp_path / 'run' / 'config.yml').write_text(damaged)
        with pytest.raises(UserError, match='config.yml is damaged'):
            save_config(load(MINIMAL), tmp_path / 'run')


def test_a_key_that_an_earlier_version_lacked_counts_as_its_default(load, tmp_path):
    path = save_config(load(MINIMAL), tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').touch()
    content = yaml.safe_load(path.read_text())
    del content['sync_batchnorm'], content['model_kwargs']['decoder']
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    save_config(load(MINIMAL), tmp_path / 'run')
    with pytest.raises(UserError, match=r'\(sync_batchnorm: false -> true\)'):
        save_config(load(MINIMAL, overrides=['sync_batchnorm=true']), tmp_path / 'run')


def test_save_config_takes_the_place_of_a_start_that_failed(load, tmp_path):
    save_config(load(MINIMAL), tmp_path / 'run')
    (tmp_path / 'run' / 'log.txt').touch()
    path = save_config(load(MINIMAL, overrides=['epochs=2']), tmp_path / 'run')
    assert yaml.safe_load(path.read_text())['epochs'] == 2


def test_save_config_leaves_what_is_not_of_a_run(load, tmp_path):
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'config.yml').write_text('mine: 1\n')
    with pytest.raises(UserError, match='config.yml is damaged .*config_name, is missing.; restore it, or choose'):
        save_config(load(MINIMAL), tmp_path)
    assert (tmp_path / 'pictures').is_dir()
    assert (tmp_path / 'config.yml').read_text() == 'mine: 1\n'


# --- finding files

def test_find_file_prefers_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY / 'pretrain')
    assert find_file('configs/env.yml') == REPOSITORY / 'configs' / 'env.yml'
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'env.yml').touch()
    assert find_file('configs/env.yml') == tmp_path / 'configs' / 'env.yml'
    with pytest.raises(UserError) as caught:
        find_file('configs/no.yml')
    assert f'{tmp_path}/configs/no.yml and {REPOSITORY}/configs/no.yml' in str(caught.value)


def test_find_file_looks_in_a_folder_between(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / 'results'
    (root / 'run').mkdir(parents=True)
    (root / 'run' / 'a.pth').touch()
    assert find_file('run/a.pth', root) == root / 'run' / 'a.pth'
    assert find_file(root / 'run' / 'a.pth', '/nowhere') == root / 'run' / 'a.pth'
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'a.pth').touch()
    assert find_file('run/a.pth', root) == tmp_path / 'run' / 'a.pth'
    with pytest.raises(UserError) as caught:
        find_file('b.pth', root)
    for place in (tmp_path, root, REPOSITORY):
        assert str(place / 'b.pth') in str(caught.value)
