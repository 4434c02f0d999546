"""The device and the random state of a run."""
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.config.saved import save_config
from utils.config.schema import Run
from utils.report.results import read_results
from utils.run import distributed
from utils.run.devices import pick_device, require_processes
from utils.run.errors import UserError
from utils.run.launch import start_processes
from utils.run.lock import lock_folder
from utils.run.log import setup_logging
from utils.run.parallel import share_cores
from utils.run.precision import allow_tf32

log = logging.getLogger(__name__)


def start(p: Run, nproc: int | None, script: str, argv: Sequence[str] | None,
          identity: Sequence[str] = ()) -> torch.device:
    """``start_processes`` of the script, and ``prepare`` each of them."""
    start_processes(nproc, p.device, script, argv)
    return prepare(p, identity)


def prepare(p: Run, identity: Sequence[str] = ()) -> torch.device:
    """Join the other processes, if any, and ready the output directory, the log, the random state and the device.

    ``identity`` is of ``save_config``. Raises UserError if the output directory cannot be made, is in use or was made
    with another config, or if the device is not there, or none for several processes.
    """
    device = pick_device(p.device)
    if distributed.is_launched():
        require_processes(device)
        if device.type == 'cuda':
            device = torch.device('cuda', distributed.local_rank())
            if distributed.local_rank() >= torch.cuda.device_count():
                raise UserError(f'this machine has {torch.cuda.device_count()} visible GPUs and more processes; start '
                                'one for each GPU, or set device=cpu.')
    distributed.join(device.type == 'cuda')
    share_cores()
    allow_tf32(p.val_tf32)
    output_dir = Path(p.output_dir)
    with distributed.main_first():
        if distributed.is_main():
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise UserError(f'output_dir {output_dir} cannot be made, for a file is in its place; move it, or '
                                'choose another (--set output_dir=...).') from error
            lock_folder(output_dir)
            save_config(p, output_dir, identity)
            read_results(output_dir)  # damaged ones are told before anything is computed
    setup_logging(output_dir)
    random.seed(p.seed)
    np.random.seed(p.seed % 2 ** 32)
    torch.manual_seed(p.seed)
    log.info('Output: %s; device: %s%s', output_dir, device,
             f'; {distributed.world_size()} processes' if distributed.world_size() > 1 else '')
    for note in getattr(p, '_notes', ()):
        log.info(note)
    return device
