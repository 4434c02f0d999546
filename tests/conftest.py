"""A tiny data set drawn by code, and quiet threads."""
from pathlib import Path

import pytest
import torch

from experiments.shapes import generate

torch.set_num_threads(2)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device, and PyTorch sees none')


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
