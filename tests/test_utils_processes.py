"""Processes of one job: how long they wait, which cores are whose, and how they leave when one fails."""
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch.multiprocessing as mp

from utils.run import distributed, parallel
from utils.run.errors import UserError
from utils.run.script import run_script

SPAWN = mp.get_context('spawn')


def job(work: Callable, *args: object) -> list[int | None]:
    """The exit codes of two processes that do ``work(rank, *args)`` together."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [SPAWN.Process(target=start, args=(work, rank, port, *args)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def start(work: Callable, rank: int, port: int, *args: object) -> None:
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2',
                   'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'GLOO_SOCKET_IFNAME': 'lo'}
    work(rank, *args)


def wait(rank: int) -> None:
    distributed.TIMEOUT = timedelta(seconds=4)
    distributed.join(False)
    with distributed.main_first():  # as a download, which may take hours
        time.sleep(0 if rank else 7)
    if rank:
        with pytest.raises(RuntimeError, match='(?i)timed out|timeout'):
            distributed.barrier()
    else:
        time.sleep(10)
    os._exit(0)


def test_only_a_download_is_waited_for_longer_than_the_timeout() -> None:
    assert job(wait) == [0, 0]
    assert distributed.TIMEOUT <= timedelta(minutes=30) < timedelta(hours=2) < distributed.PATIENCE


def fail(rank: int, folder: str, kind: type[Exception]) -> None:
    os.dup2(os.open(Path(folder) / 'err', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)

    def main() -> None:
        distributed.join(False)
        threading.Thread(target=time.sleep, args=(600,)).start()  # something that the interpreter would wait for
        if rank:
            raise kind('the reason.')
        distributed.barrier()  # is told at once that the other is gone

    run_script(main)


@pytest.mark.parametrize(('kind', 'code'), [(UserError, 2), (ValueError, 1)])
def test_the_first_process_to_fail_says_why_and_leaves_as_the_others_do(kind: type, code: int, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert job(fail, str(tmp_path), kind) == [1, code]
    assert time.monotonic() - begun < 200
    told = (tmp_path / 'err').read_text()
    assert told.lower().count('error: the reason.') == 1
    assert ('Traceback' in told) == (kind is ValueError)


# each process' cores, those that each may take
AFFINITIES = [
    ([range(8)] * 4, [2] * 4),  # torchrun: all inherit one affinity
    ([range(8 * i, 8 * i + 8) for i in range(4)], [8] * 4),  # SLURM: each task has its own
    ([range(8), range(8), range(8, 16), range(8, 16)], [4] * 4),  # bound to the cores of a socket, two each
    ([range(6), range(4, 6), range(3)], [1 + 1.5 + 1, 1, 1.5]),
    ([[0]] * 3, [1] * 3),  # more processes than cores
]


@pytest.mark.parametrize(('affinities', 'expected'), AFFINITIES)
def test_only_shared_cores_are_divided(affinities: list, expected: list, monkeypatch) -> None:
    elsewhere = ('another machine', frozenset(range(64)))
    here = parallel.BOOT.read_text()
    told = [elsewhere, *((here, frozenset(cores)) for cores in affinities)]
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(len(affinities)))
    monkeypatch.setattr(distributed, 'world_size', lambda: len(told))
    monkeypatch.setattr(distributed, 'gather_objects', lambda mine: told)
    monkeypatch.setattr(parallel, '_affinities', [])
    parallel.share_cores()
    for cores, count in zip(affinities, expected, strict=True):
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _, cores=cores: set(cores))
        assert parallel.available_cores() == max(1, int(count))


def test_cores_are_shared_alike_before_the_processes_have_met(monkeypatch) -> None:
    monkeypatch.setattr(parallel, '_affinities', [])
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(9)))
    assert parallel.available_cores() == 9
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert parallel.available_cores() == 2


@pytest.mark.skipif(not parallel.TASKS.is_dir(), reason='only Linux shows the threads of a process')
def test_no_thread_is_left_that_a_fork_would_find_in_a_lock() -> None:
    def work(index: int) -> str:
        cv2.resize(np.zeros((300, 400), np.uint8), (90, 70))
        return str(threading.get_native_id())

    for _ in range(300):
        assert not {*parallel.in_threads(work, range(8), 4)} & {path.name for path in parallel.TASKS.iterdir()}
