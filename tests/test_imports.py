"""Importing a module of ours changes nothing: run in an interpreter that has loaded other libraries alone."""
import subprocess
import sys
from pathlib import Path

from tests.test_layout import BENCHMARKS, FILES, ROOT

CODE = """
import importlib, logging, multiprocessing, os, random, signal, sys, threading, warnings
import cv2, matplotlib.figure, numpy, scipy.optimize, sklearn.cluster, sklearn.decomposition, torch, torchvision
import torch.distributed.elastic.multiprocessing, torch.distributed.launcher.api, torch.utils.tensorboard, tqdm

def state():
    return {
        'sys.path': sorted(set(sys.path)), 'argv': sys.argv[:], 'environment': dict(os.environ), 'folder': os.getcwd(),
        'files': sorted(os.listdir()), 'excepthook': sys.excepthook, 'streams': (sys.stdout, sys.stderr),
        'signals': [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        'blocked signals': signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        'log': [(log.handlers[:], log.level) for log in (logging.getLogger(), logging.getLogger('torch'))],
        'threads': threading.enumerate(), 'processes': multiprocessing.active_children(),
        'start method': multiprocessing.get_start_method(allow_none=True), 'warnings': list(warnings.filters),
        'random': (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        'torch': (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                  torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
                  torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()),
        'cv2': cv2.getNumThreads(), 'matplotlib': dict(matplotlib.rcParams)}

names = sys.argv.pop().split()
for name in names:
    before = state()
    importlib.import_module(name)
    after = state()
    for what in before:
        if before[what] != after[what]:
            print(f'import {name} changes {what}: {before[what]} -> {after[what]}')
assert len([name for name in names if name in sys.modules]) == len(names)
"""


def changes(folder: Path, *places: Path | str, modules: list[str]) -> str:
    """What importing does, a line each; modules are looked for in ``places``."""
    environment = {'PATH': '', 'PYTHONPATH': ':'.join(map(str, places)), 'MPLCONFIGDIR': str(folder.parent)}
    done = subprocess.run([sys.executable, '-B', '-c', CODE, ' '.join(modules)], cwd=folder, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_a_script_does_nothing(tmp_path: Path) -> None:
    folder = tmp_path / 'empty'
    folder.mkdir()
    modules = [name.removesuffix('.py').replace('/', '.') for name in FILES + BENCHMARKS
               if not name.endswith('__init__.py')]
    assert {'pretrain.main', 'segmentation.kmeans', 'saliency.predict'} <= set(modules)
    assert changes(folder, ROOT, modules=modules) == ''


def test_what_an_import_does_is_seen(tmp_path: Path) -> None:
    planted = {'signals': 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)', 'sys.path':
               'import sys; sys.path.append("here")', 'log': 'import logging; logging.basicConfig()', 'threads':
               'import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()', 'argv':
               'import sys; sys.argv.append("x")', 'environment': 'import os; os.environ["A"] = "1"', 'folder':
               'import os; os.chdir("/")', 'random': 'import torch; torch.manual_seed(7)', 'torch':
               'import torch; torch.set_grad_enabled(False)', 'files': 'open("left", "w").close()'}
    for i, code in enumerate(planted.values()):
        (tmp_path / f'planted_{i}.py').write_text(code)
    folder = tmp_path / 'empty'
    folder.mkdir()
    seen = changes(folder, tmp_path, modules=[f'planted_{i}' for i in range(len(planted))][::-1])
    for i, what in enumerate(planted):
        assert f'import planted_{i} changes {what}: ' in seen
