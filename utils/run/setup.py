"""How a run starts: one command becomes many processes, by PyTorch's own elastic launcher, and each is made ready."""
import json
import logging
import os
import random
import signal
import sys
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from utils.config.load import as_dict, frozen, save_config
from utils.config.schema import Run
from utils.report.results import read_results
from utils.run import distributed
from utils.run.devices import allow_tf32, pick_device, require_processes
from utils.run.errors import EXIT_STOPPED, EXIT_USER_ERROR, UserError
from utils.run.files import lock_folder
from utils.run.log import setup_logging
from utils.run.parallel import available_cores, share_cores
from utils.run.script import SIGNALS, handled, stop

log = logging.getLogger(__name__)


def start(p: Run, nproc: int | None, script: str, argv: Sequence[str] | None,
          identity: Sequence[str] = ()) -> torch.device:
    """``start_job``, and in each process ready output directory, log and random state.

    ``identity`` is of ``save_config``. Raises UserError if the output directory cannot be made, is in use or was made
    with another config.
    """
    device = start_job(nproc, p.device, script, argv)
    allow_tf32(p.val_tf32)
    torch.backends.cudnn.benchmark = p.get('features') != 'box_cls'  # but for boxes all images of a run have one size
    output_dir = Path(p.output_dir)
    with distributed.main_first():
        if distributed.is_main():
            lock_folder(output_dir)
            save_config(p, output_dir, identity)
            read_results(output_dir)  # damaged ones are told before anything is computed
    if not distributed.alike(json.dumps(frozen(p, as_dict(p)), sort_keys=True)):
        raise UserError('the processes have different configs; all must be started with the same files and options.')
    setup_logging(output_dir)
    random.seed(p.seed)
    np.random.seed(p.seed % 2 ** 32)
    torch.manual_seed(p.seed)
    log.info('Output: %s; device: %s%s', output_dir, device,
             f'; {distributed.world_size()} processes' if distributed.world_size() > 1 else '')
    for note in getattr(p, '_notes', ()):
        log.info(note)
    return device


def start_job(nproc: int | None, device_name: str, script: str, argv: Sequence[str] | None) -> torch.device:
    """``start_processes``, and in each join the others; the device of this one.

    ``nproc`` is 0 for a script that works alone. Raises UserError if it is one of several processes, if the device is
    not there, or none for several processes.
    """
    if nproc == 0 and distributed.is_launched():
        raise UserError(f'{Path(script).name} works in one process; start it without torchrun.')
    device = pick_device(device_name)
    start_processes(nproc, device, script, argv)
    if distributed.is_launched():
        require_processes(device)
        if device.type == 'cuda':
            device = torch.device('cuda', distributed.local_rank())
            if distributed.local_rank() >= torch.cuda.device_count():
                raise UserError(f'this machine has {torch.cuda.device_count()} visible GPUs and more processes; start '
                                'one for each GPU, or set device=cpu.')
    distributed.join(device.type == 'cuda')
    share_cores()
    if not distributed.is_main():
        logging.getLogger().setLevel(logging.ERROR)  # what all would warn of, the main process does
    return device


def start_processes(nproc: int | None, device: torch.device, script: str, argv: Sequence[str] | None) -> None:
    """Run the script again in ``nproc`` processes, None for one a visible GPU, and exit after them.

    Returns where this process is to do the work, as one of a job or the only one; ``argv`` is as of ``main``. Raises
    UserError if the number does not fit the machine, and SystemExit after the processes, with the code of one that
    failed, which has said why itself.
    """
    if 'RANK' in os.environ or nproc == 0:
        return
    gpus = torch.cuda.device_count() if device.type == 'cuda' else 0
    count = nproc or max(1, gpus)
    if count == 1:
        return
    require_processes(device)
    if 0 < gpus < count:
        raise UserError(f'--nproc is {count}, but {gpus} GPUs are visible; lower it, or set device=cpu.')
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, available_cores() // count)))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, max_restarts=0,
                          rdzv_backend='c10d', rdzv_endpoint='localhost:0', monitor_interval=0.2,
                          signals_to_handle='SIGHUP,SIGQUIT')  # the launcher would kill 30 s after the others
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # the process says itself what is wrong
    asked: list[int] = []
    try:
        with handled(partial(_pass_on, asked), *SIGNALS):
            elastic_launch(config, sys.executable)('-u', script, *(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        raise SystemExit(_exit_code(error, bool(asked))) from None
    raise SystemExit(0)


def _exit_code(error: ChildFailedError, asked: bool) -> int:
    """That of the process which has said why; others fail for the loss of it, or as the launcher stops them.

    ``asked``: a signal has asked the launcher to stop them all.
    """
    codes = {failed.exitcode for failed in error.failures.values()}
    if told := codes & ({EXIT_USER_ERROR, EXIT_STOPPED} if asked else {EXIT_USER_ERROR}):
        return min(told)
    rank, failure = min(error.failures.items(), key=lambda item: (
        item[1].exitcode in (EXIT_STOPPED, -signal.SIGTERM), item[1].timestamp))
    if failure.exitcode < 0:
        print(f'error: process {rank} was ended by {signal.Signals(-failure.exitcode).name}, and the others with it; '
              'rerun the same command to resume', file=sys.stderr)
    return max(1, failure.exitcode)


def _pass_on(asked: list[int], number: int, frame: FrameType | None) -> None:
    """Hand a signal to the processes, which take the time that their step and their checkpoint need, and note it."""
    asked.append(number)
    children = Path(f'/proc/self/task/{os.getpid()}/children')
    processes = [int(child) for child in children.read_text().split()] if children.exists() else []
    for process in processes:
        os.kill(process, number)
    if not processes:
        stop(number)
