"""requirements.txt names what the code imports, make installs it, and continuous integration has all of it."""
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layout import BENCHMARKS, FILES, MAY_IMPORT, ROOT, imported_modules

MODULES = {'opencv-python-headless': 'cv2', 'pillow': 'PIL', 'PyYAML': 'yaml', 'scikit-learn': 'sklearn',
           'scikit-image': 'skimage', 'pydensecrf2': 'pydensecrf'}  # others are imported by their own name
LINES = [line for line in (ROOT / 'requirements.txt').read_text().splitlines() if line and line[0] != '#']
PACKAGES = [re.match(r'[\w-]+', line).group() for line in LINES]


def test_requirements_name_every_import() -> None:
    imported = {module.partition('.')[0] for name in FILES + BENCHMARKS
                for module in imported_modules((ROOT / name).read_text())}
    ours = {*MAY_IMPORT, 'tests', 'benchmarks', '__future__', *sys.stdlib_module_names}
    assert imported - ours <= {MODULES.get(name, name) for name in PACKAGES} | {'cycler'}  # a part of matplotlib


@pytest.mark.parametrize('package', PACKAGES)
def test_every_package_is_there(package: str) -> None:
    if package == 'pydensecrf2' and os.environ.get('CI') != 'true':
        pytest.importorskip('pydensecrf', reason='no pydensecrf: only continuous integration must have the CRF')
    importlib.import_module(MODULES.get(package, package))


def make_install(folder: Path, pip: str) -> subprocess.CompletedProcess:
    """``make install`` with a shell command in place of pip."""
    for name in ('Makefile', 'requirements.txt', 'requirements-dev.txt'):
        shutil.copy(ROOT / name, folder)
    python = folder / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase "$*" in *install*) {pip};; esac\n')
    python.chmod(0o755)
    return subprocess.run(['make', 'install'], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize('built', [True, False])
def test_make_installs_the_crf_last_and_does_without_it(tmp_path: Path, built: bool) -> None:
    done = make_install(tmp_path, 'echo "$@" >> calls; tee part >> calls; '
                                  f'if grep -q pydensecrf part; then exit {int(not built)}; fi')
    assert done.returncode == 0, done.stderr
    assert ('\n== pydensecrf2 is missing: it could not be built' in done.stdout) != built
    first, second = (tmp_path / 'calls').read_text().split('-m pip install ')[1:]
    assert '-r requirements-dev.txt' in first
    assert [line for line in first.splitlines()[1:] if line in LINES] == LINES[:-1]
    assert second.splitlines()[1:] == LINES[-1:]


def test_a_failed_installation_is_none(tmp_path: Path) -> None:
    assert make_install(tmp_path, 'exit 1').returncode
    assert not (tmp_path / '.venv' / 'installed').exists()
