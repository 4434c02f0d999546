"""How scripts end where nobody reads their output, and where the system has no file locks."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TALKING = """
import sys
from utils.run.script import run_script
def main():
    for line in range(100_000):
        print('line', line)
run_script(main)
"""


@pytest.mark.parametrize('script', ['-c', 'pretrain/main.py'])
def test_an_output_that_nobody_reads_ends_quietly(script: str) -> None:
    command = [sys.executable, script, TALKING if script == '-c' else '--help']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if script == '-c':
            assert process.stdout.readline() == 'line 0\n'
        process.stdout.close()
        assert process.stderr.read() == ''
    assert process.returncode in ((141,) if script == '-c' else (0, 141))  # some argparse overlooks it itself


def test_a_broken_pipe_of_something_else_keeps_its_traceback() -> None:
    code = ('from utils.run.script import run_script\ndef main(): raise BrokenPipeError(32, "a worker")\n'
            'run_script(main)')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'BrokenPipeError' in done.stderr


def test_without_file_locks(tmp_path: Path) -> None:
    code = ("import sys; sys.modules['fcntl'] = None\nfrom pathlib import Path\nimport logging\n"
            'from data.download import ensure_dataset\nfrom utils.run.files import lock_folder\n'
            'from utils.run.script import run_script\nfolder = Path(sys.argv[1])\n'
            "lock_folder(folder)\nrun_script(lambda: ensure_dataset(folder / 'VOCSegmentation'))")
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning == f'{tmp_path} cannot be locked (this system has no file locks): start no second run there'
    assert error.startswith('error: ')
    assert 'this system has no file locks); unpack PASCAL_VOC.tgz by hand' in error
