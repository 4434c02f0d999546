"""Mistakes that a user can fix, and the exit codes of a script; this module imports nothing of ours."""
import errno
from collections.abc import Sequence

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # by a signal (EX_TEMPFAIL): a scheduler may start the same command again, which resumes
EXIT_UNREAD = 128 + 13  # the output has no reader; as of a program that SIGPIPE ends
DENIED = (errno.EACCES, errno.EPERM)
CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, *DENIED, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake the user can fix: one sentence that names the thing and what to do."""


class MissingFileError(UserError):
    """A file is in none of the places where it was looked for."""


def cannot_read(path: object) -> UserError:
    return UserError(f'{path} cannot be read (permission denied); change its permissions.')


def name_some(names: Sequence, limit: int = 5) -> str:
    """'a, b, c and 12 more': the first few of a list, and how many are left."""
    shown = ', '.join(str(n) for n in names[:limit])
    return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'
