"""File locks, where the system has them."""
from __future__ import annotations

import errno
from typing import Any

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    fcntl: Any = None
else:
    fcntl = _fcntl


def lock_file(handle: int, wait: bool = False) -> None:
    """Hold the lock of an open file until it is closed or this process ends; child processes do not inherit it.

    Raises:
        BlockingIOError, PermissionError: another process holds it, and this one is not to wait.
        OSError: the system or the file's disk has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, 'this system has no file locks')
    fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
