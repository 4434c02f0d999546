"""Fetch and unpack the data set archive of the method's authors, once, however many processes ask for it."""
import gzip
import logging
import os
import shutil
import sys
import tarfile
import textwrap
import zlib
from pathlib import Path, PurePosixPath

from utils.run.errors import UserError
from utils.run.files import lock_file

GOOGLE_DRIVE = 'https://drive.google.com/uc?id=1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH'  # the authors' PASCAL_VOC.tgz
ARCHIVE_NAME = 'PASCAL_VOC.tgz'
FOLDER = 'VOCSegmentation'  # the one folder the archive holds
REQUIRED = ('images', 'sets')
DATA_SETS = (*REQUIRED, 'SegmentationClass', 'JPEGImages', 'ImageSets', 'VOCdevkit')  # db_root holds one already
TIMEOUT = 60.0  # seconds without a byte from the server
RETRIES = 3  # within one call; a later call continues as well

log = logging.getLogger(__name__)


def ensure_dataset(root: Path, url: str = GOOGLE_DRIVE) -> Path:
    """db_root/VOCSegmentation, as it is; or fetched and unpacked, if db_root is there and holds no data set.

    The archive goes to db_root/PASCAL_VOC.tgz; one that lies there already is used. An interrupted download is
    continued by the next call. The folder appears under its name only when all of the archive, checksum included, is
    read and unpacked; then the archive is DELETED, also one put there by hand. One process at a time does this.

    Raises UserError for a db_root that is missing or holds another data set, what is not installed, a failed download,
    and an archive that is broken, unsafe or of something else (deleted if this call fetched it).
    """
    if root.is_dir():
        return root
    if root.exists() or root.is_symlink():
        raise UserError(f'{root} is not a folder; move it away or correct db_root.')
    if not root.parent.is_dir():
        raise UserError(f'db_root {root.parent} is not a folder; correct db_root, or make the folder to have the data '
                        'set downloaded there.')
    if own := [name for name in DATA_SETS if (root.parent / name).is_dir()]:
        raise UserError(f'db_root {root.parent} holds {" and ".join(own)} and no {FOLDER}/; set db_root to the folder '
                        f'around {FOLDER}/, or the name of the data set in the config.')
    archive = root.parent / ARCHIVE_NAME
    if not hasattr(tarfile, 'data_filter'):
        raise UserError(f'unpacking {ARCHIVE_NAME} safely needs Python 3.10.12, 3.11.4 or later; update, or unpack it '
                        f'by hand so that {root} exists.')
    lock = root.parent / f'.{root.name}.lock'
    with lock.open('a') as file:
        try:
            lock_file(file.fileno(), f'waiting for another process that prepares {root}')
        except OSError as error:  # some systems and cluster file systems have no locks
            raise UserError(f'{lock} cannot be locked ({error.strerror}); unpack {ARCHIVE_NAME} by hand.') from error
        if root.is_dir():  # another process was faster
            return root
        fetched = not archive.exists()
        if fetched:
            _fetch(url, archive)
        try:
            _unpack(archive, root)
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:  # other OSErrors, a full disk, pass
            why = f'{"unsafe" if isinstance(error, tarfile.FilterError) else "broken or cut short"}: {error}'
            if not fetched:
                raise UserError(f'{archive} cannot be used ({why}) and was left as it is; delete it to have it fetched '
                                'anew.') from error
            archive.unlink()  # all its bytes had come, so that continuing would not help
            raise UserError(f'the archive from {url} cannot be used ({why}) and was deleted; rerun, or fetch it by '
                            f'hand and put it to {archive}.') from error
        archive.unlink()
    log.info('the data set is ready in %s', root)
    return root


def _fetch(source: str, archive: Path) -> None:
    """Download to `archive`; gdown follows Google Drive's confirmation pages and continues its .part file."""
    try:
        import gdown
        import requests
    except ImportError as error:
        raise UserError('gdown, which fetches the data set, is not installed: pip install gdown') from error
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
    shutil.rmtree(staging, ignore_errors=True)  # left by an interrupted unpacking
    log.info('unpacking %s', archive)
    (staging / FOLDER).mkdir(parents=True)
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode='r|') as tar:
                tar.extractall(staging / FOLDER, filter=_within_folder)
            while stream.read(1 << 20):  # gzip verifies checksum and length at the end; tarfile does not read as far
                pass
        missing = [name for name in REQUIRED if not (staging / FOLDER / name).is_dir()]
        if missing:
            raise tarfile.ReadError(f'it holds no {FOLDER}/{missing[0]}/')
        os.sync()  # the files reach the disk before the name does
        (staging / FOLDER).rename(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _within_folder(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """tarfile's data filter with the data set's folder for its root, so that no link leads to what lies beside it."""
    top, *rest = PurePosixPath(member.name).parts or ('',)
    if top != FOLDER:
        tarfile.data_filter(member, path)
        return None
    target = member.linkname.removeprefix(f'{FOLDER}/') if member.islnk() else member.linkname
    return tarfile.data_filter(member.replace(name='/'.join(rest) or '.', linkname=target, deep=False), path)
