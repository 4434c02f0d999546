"""Fetch and unpack the data set archive of the method's authors, once, however many processes ask for it."""
from __future__ import annotations

import errno
import gzip
import logging
import os
import shutil
import sys
import tarfile
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.run.errors import UserError
from utils.run.lock import lock_file

PASCAL_VOC_ID = '1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH'  # the authors' PASCAL_VOC.tgz on Google Drive
ARCHIVE_NAME = 'PASCAL_VOC.tgz'
FOLDER = 'VOCSegmentation'  # the one folder the archive holds
REQUIRED = ('images', 'sets')
DATA_SETS = (*REQUIRED, 'SegmentationClass', 'JPEGImages', 'ImageSets', 'VOCdevkit')  # db_root holds one already
TIMEOUT = 60.0  # seconds without a byte from the server
RETRIES = 3  # within one call; a later call continues as well

log = logging.getLogger(__name__)


class _ArchiveError(Exception):
    """The archive cannot be used; the text says why."""


def ensure_dataset(root: Path, file_id: str = PASCAL_VOC_ID, url: str | None = None) -> Path:
    """Return the data set folder; fetch and unpack the archive when db_root is there and holds none.

    Args:
        root: db_root/VOCSegmentation. An existing folder is returned as it is, without looking inside.
        file_id: Google Drive id of the archive.
        url: where to fetch the archive instead of Google Drive.

    The archive goes to db_root/PASCAL_VOC.tgz; one that lies there already (put there by hand) is used. An
    interrupted download is kept as PASCAL_VOC.tgz????????.part and continued by the next call. The archive is read
    to its end, checksum included, before anything is unpacked; the folder appears under its name only when complete,
    and then the archive is DELETED, also one put there by hand. One process at a time does this, the others wait at
    an advisory lock on db_root/.VOCSegmentation.lock (the empty file stays) and find the folder.

    Raises:
        UserError: db_root is missing, holds another data set or cannot be written, gdown is missing, the download
            failed, or the archive is broken, unsafe or of something else (deleted if this call fetched it, otherwise
            left alone).
        OSError: the disk is full or failing.
    """
    root = Path(root)
    if root.is_dir():
        return root
    if root.exists() or root.is_symlink():
        raise UserError(f'{root} is not a folder; move it away or correct db_root.')
    if not root.parent.is_dir():
        raise UserError(f'db_root {root.parent} is not a folder; correct db_root, or make the folder to have the data '
                        'set downloaded there.')
    own = [name for name in DATA_SETS if (root.parent / name).is_dir()]
    if own:
        raise UserError(f'db_root {root.parent} holds {" and ".join(own)} and no {FOLDER}/; set db_root to the folder '
                        f'around {FOLDER}/, or the name of the data set in the config.')
    archive = root.parent / ARCHIVE_NAME
    source = url or f'https://drive.google.com/uc?id={file_id}'
    with _exclusive(root):
        if root.is_dir():  # another process was faster
            return root
        fetched = not archive.exists()
        if fetched:
            _fetch(source, archive)
        try:
            _unpack(archive, root)
        except _ArchiveError as error:
            if not fetched:
                raise UserError(f'{archive} cannot be used ({error}) and was left as it is; '
                                'delete it to have it fetched anew.') from error
            archive.unlink()  # all its bytes had come, so continuing would not mend it
            raise UserError(f'the archive from {source} cannot be used ({error}) and was deleted; start again, '
                            f'or fetch it by hand and put it to {archive}.') from error
        archive.unlink()
    log.info('the data set is ready in %s', root)
    return root


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Hold the lock beside `root`; the system releases it too when the process dies."""
    path = root.parent / f'.{root.name}.lock'
    try:
        file = path.open('a')
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f'{root} is absent and cannot be made ({error.strerror}: {error.filename}); '
                        'correct db_root or choose a folder you may write to.') from error
    with file:
        try:
            lock_file(file.fileno())
        except (BlockingIOError, PermissionError):
            log.info('waiting for another process that prepares %s', root)
            lock_file(file.fileno(), wait=True)
        except OSError as error:  # some systems and cluster file systems have no locks
            raise UserError(f'{path} cannot be locked ({error.strerror}); unpack {ARCHIVE_NAME} by hand '
                            f'so that {root} exists.') from error
        yield


def _fetch(source: str, archive: Path) -> None:
    """Download to `archive`; gdown follows Google Drive's confirmation pages and continues its .part file."""
    try:
        import gdown
        import requests
    except ImportError as error:
        raise UserError('the data set is absent and gdown, which fetches it, is not installed: '
                        'pip install gdown') from error
    log.info('fetching %s to %s', source, archive)
    try:
        gdown.download(url=source, output=str(archive), resume=True, quiet=not sys.stderr.isatty(),
                       timeout=TIMEOUT, retries=RETRIES)
    except (gdown.exceptions.DownloadError, requests.RequestException) as error:
        reason = textwrap.shorten(str(error), 240, placeholder=' ...')
        parts = sorted(archive.parent.glob(f'{archive.name}????????.part'))
        again = f'start again to continue {parts[0]} (delete that file to begin anew)' if parts else 'start again'
        raise UserError(f'could not download the data set ({reason}); {again}, or fetch the archive by hand from '
                        f'{source} and put it to {archive}.') from error


def _unpack(archive: Path, root: Path) -> None:
    """Unpack beside `root`, check, and rename: a folder called `root` is always a complete one."""
    staging = root.parent / f'.unpacking-{root.name}'
    if staging.exists():
        log.info('removing %s, left by an interrupted unpacking', staging)
        shutil.rmtree(staging)
    log.info('checking %s', archive)
    with _reasons():
        _check(archive, staging)
    log.info('unpacking %s', archive)
    staging.mkdir()
    try:
        with _reasons():
            _extract(archive, staging)
        missing = [name for name in REQUIRED if not (staging / FOLDER / name).is_dir()]
        if missing:
            raise _ArchiveError(f'it holds no {FOLDER}/{missing[0]}/')
        os.sync()  # the files reach the disk before the name does
        (staging / FOLDER).rename(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn what gzip and tarfile raise on bad bytes into _ArchiveError; other OSErrors (a full disk) pass."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise _ArchiveError(f'broken or cut short: {error}') from error


def _check(archive: Path, staging: Path) -> None:
    """Read all of the archive. gzip verifies checksum and length at the end; tarfile's own reader does not."""
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode='r|') as tar:
            for member in tar:
                _check_member(member, staging)
        while stream.read(1 << 20):
            pass


def _extract(archive: Path, staging: Path) -> None:
    safe: dict[str, Any] = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}  # not in early 3.10, 3.11
    with tarfile.open(archive, 'r:gz') as tar:
        for member in tar:
            _check_member(member, staging)  # again: by now a path can lead through a link on the disk
            member.mode = 0o755 if member.isdir() else 0o644
            member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), '', ''
            tar.extract(member, staging, **safe)


def _check_member(member: tarfile.TarInfo, staging: Path) -> None:
    """Refuse what would land outside `staging`, links that lead out of the data set, and devices."""
    path = Path(member.name)
    if path.is_absolute() or '..' in path.parts or not _inside(staging / path, staging):
        raise _ArchiveError(f'its member {member.name} would leave the folder')
    if member.issym() or member.islnk():
        start = (staging / path).parent if member.issym() else staging  # hard links count from the archive's root
        if Path(member.linkname).is_absolute() or not _inside(start / member.linkname, staging / FOLDER):
            raise _ArchiveError(f'its member {member.name} is a link that leads out of the folder')
    elif not (member.isfile() or member.isdir()):
        raise _ArchiveError(f'its member {member.name} is neither a file nor a folder')


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
