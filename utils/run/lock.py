"""One process at a time: locks on files, where the system has them."""
import errno
import logging
import os
from pathlib import Path

from utils.run.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def lock_file(handle: int, waiting: str = '') -> None:
    """Hold the lock of an open file until it is closed or this process ends; child processes do not inherit it.

    If another process holds it, log ``waiting`` and wait; without such a text raise BlockingIOError or PermissionError.
    Raises OSError where the system or the file's disk has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, 'this system has no file locks')
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        if not waiting:
            raise
        log.info(waiting)
        fcntl.lockf(handle, fcntl.LOCK_EX)


def lock_folder(output_dir: Path) -> None:
    """Keep other runs out of the output directory until this process ends. Raises UserError for one at work there."""
    handle = os.open(output_dir / '.lock', os.O_RDWR | os.O_CREAT, 0o644)  # open, and locked, until the process ends
    try:
        lock_file(handle)
    except (BlockingIOError, PermissionError) as error:
        os.close(handle)
        raise UserError(f'another run is writing to {output_dir}; wait for its end, stop it, or choose another '
                        'output folder.') from error
    except OSError as error:
        log.warning('%s cannot be locked (%s): start no second run there', output_dir, error.strerror)
