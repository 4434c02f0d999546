"""The rooms of the code: who may import whom, how long a file may be, where sys.path is touched."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# room -> whom its files may import; the data flow reads downwards
MAY_IMPORT = {
    'utils': {'utils'},
    'data': {'data', 'utils'},
    'models': {'models', 'utils'},
    'saliency': {'saliency', 'data', 'models', 'utils'},
    'segmentation': {'segmentation', 'data', 'models', 'utils'},
    'pretrain': {'pretrain', 'segmentation', 'data', 'models', 'utils'},
    'experiments': {'experiments', 'saliency', 'segmentation', 'pretrain', 'data', 'models', 'utils'},
}
# files that may import more: those of new images make masks as saliency/predict.py does
MORE = {'segmentation/segmenter.py': {'saliency'}}
# rooms that read no report, and rooms of utils: what a run is told knows neither how it runs nor what it leaves behind
NEVER = {'data': 'utils.report', 'models': 'utils.report', 'utils/config': 'utils.report'}
OURS = {*MAY_IMPORT, 'tests', 'benchmarks'}
SCRIPTS = {'pretrain/main.py', 'segmentation/linear_finetune.py', 'segmentation/kmeans.py',
           'segmentation/retrieval.py', 'segmentation/eval.py', 'segmentation/score_predictions.py',
           'segmentation/predict.py', 'segmentation/pseudo_labels.py', 'segmentation/score_instances.py',
           'segmentation/visualize.py', 'saliency/predict.py', 'saliency/train.py'}
SEE_CONFIG = SCRIPTS | {'data/loaders.py', 'models/build.py'}
PATH_LINE = 'sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repository root'
FILES = sorted(path.relative_to(ROOT).as_posix() for package in MAY_IMPORT for path in (ROOT / package).rglob('*.py'))
BENCHMARKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'benchmarks').rglob('*.py'))


def imported_modules(source: str) -> list[str]:
    """Every module a file imports, anywhere in it; 'from a import b' counts as a.b, for b may be a module."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'line {node.lineno}: import absolutely'
            modules += [f'{node.module}.{alias.name}' for alias in node.names]
    return modules


def test_imported_modules_sees_every_form():
    source = 'import a.b\nfrom c import d, e\ndef f():\n    import g as h\n'
    assert imported_modules(source) == ['a.b', 'c.d', 'c.e', 'g']
    with pytest.raises(AssertionError, match='line 1'):
        imported_modules('from . import a')


@pytest.mark.parametrize('name', FILES)
def test_imports_go_downwards(name):
    modules = imported_modules((ROOT / name).read_text())
    allowed = MAY_IMPORT[name.partition('/')[0]] | MORE.get(name, set())
    assert {module.partition('.')[0] for module in modules} & OURS <= allowed
    for room, never in NEVER.items():
        assert not (name.startswith(f'{room}/') and any(f'{module}.'.startswith(f'{never}.') for module in modules))


def test_the_error_of_users_is_a_leaf():
    modules = imported_modules((ROOT / 'utils/run/errors.py').read_text())
    assert not {module.partition('.')[0] for module in modules} & OURS


@pytest.mark.parametrize('name', [name for name in FILES if not name.startswith(('utils/', 'experiments/'))
                                  and name not in SEE_CONFIG])
def test_only_scripts_and_builders_see_the_config(name):
    seen = [module for module in imported_modules((ROOT / name).read_text())
            if module.startswith(('utils.config.load', 'utils.config.schema', 'easydict'))]
    assert not seen, f'{name} imports {seen}: take plain keyword arguments'


TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'tests').glob('*.py'))


@pytest.mark.parametrize('name', FILES + BENCHMARKS + TESTS)
def test_file_is_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= (400 if name in TESTS else 300)


@pytest.mark.parametrize('name', FILES + BENCHMARKS)
def test_only_files_that_can_be_run_touch_sys_path_and_all_in_one_way(name):
    source = (ROOT / name).read_text()
    lines = [line for line in source.splitlines() if 'sys.path' in line]
    if lines:
        assert "if __name__ == '__main__':" in source
        assert lines == [PATH_LINE]
