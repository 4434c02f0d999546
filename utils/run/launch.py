"""From one command to many processes, by PyTorch's own elastic launcher."""
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.run.devices import pick_device, require_processes
from utils.run.errors import EXIT_STOPPED, EXIT_USER_ERROR, UserError
from utils.run.parallel import available_cores
from utils.run.signals import SIGNALS, handled, stop


def start_processes(nproc: int | None, device: str, script: str, argv: Sequence[str] | None) -> None:
    """Run the script again in ``nproc`` processes, None for one a visible GPU, and exit after them.

    Returns where this process is to do the work, as one of a job or the only one; ``argv`` is as of ``main``. Raises
    UserError if the number does not fit the machine, and SystemExit after the processes, with the code of one that
    failed, which has said why itself.
    """
    if 'RANK' in os.environ:
        return
    where = pick_device(device)
    gpus = torch.cuda.device_count() if where.type == 'cuda' else 0
    count = nproc or max(1, gpus)
    if count == 1:
        return
    require_processes(where)
    if 0 < gpus < count:
        raise UserError(f'--nproc is {count}, but {gpus} GPUs are visible; lower it, or set device=cpu.')
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, available_cores() // count)))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, max_restarts=0,
                          rdzv_backend='c10d', rdzv_endpoint='localhost:0', monitor_interval=0.2,
                          signals_to_handle='SIGHUP,SIGQUIT')  # the launcher would kill 30 s after the others
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # the process says itself what is wrong
    try:
        with handled(_pass_on, *SIGNALS):
            elastic_launch(config, sys.executable)('-u', script, *(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        raise SystemExit(_exit_code(error)) from None
    raise SystemExit(0)


def _exit_code(error: ChildFailedError) -> int:
    """That of the process which has said why; others may have failed for the loss of it."""
    codes = {failed.exitcode for failed in error.failures.values()}
    for told in (EXIT_USER_ERROR, EXIT_STOPPED):
        if told in codes:
            return told
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        print(f'error: process {rank} was ended by {signal.Signals(-failure.exitcode).name}, and the others with it; '
              'rerun the same command to resume', file=sys.stderr)
    return max(1, failure.exitcode)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Hand a signal to the processes, which take the time that their step and their checkpoint need."""
    children = Path(f'/proc/self/task/{os.getpid()}/children')
    processes = [int(child) for child in children.read_text().split()] if children.exists() else []
    for process in processes:
        os.kill(process, number)
    if not processes:
        stop(number)
