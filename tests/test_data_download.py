"""data.download against a server on this machine: once, whole, safely, and continued after an interruption."""
import io
import random
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import download
from data.download import ARCHIVE_NAME, ensure_dataset
from utils.run.errors import UserError

REPO = Path(__file__).resolve().parents[1]
pytest.importorskip('gdown')


class Server(ThreadingHTTPServer):
    """Serves `body` for every path; can cut its first answer and hold answers back."""
    daemon_threads = True

    def __init__(self, body: bytes, cut: int | None = None) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.body, self.cut = body, cut
        self.ranges: list[str | None] = []  # the Range header of every request
        self.go = threading.Event()
        self.go.set()
        self.url = f'http://127.0.0.1:{self.server_address[1]}/{ARCHIVE_NAME}'


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get('Range')
        self.server.ranges.append(wanted)
        self.server.go.wait(30)
        body = self.server.body
        start = int(wanted.removeprefix('bytes=').rstrip('-')) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        try:
            self.wfile.write(body[start:cut])
        except OSError:  # gdown drops its first request when it continues with a second
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(download, 'RETRIES', 0)
    servers = []

    def start(body: bytes, **kwargs) -> Server:
        server = Server(body, **kwargs)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.go.set()
        server.shutdown()
        server.server_close()


def tgz(extra=(), files=('images/a.jpg', 'sets/train.txt'), size=100) -> bytes:
    """An archive of VOCSegmentation/ with `files`, and `extra` members given as (name, type, link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz', compresslevel=1) as tar:
        for name in files:
            info = tarfile.TarInfo(f'VOCSegmentation/{name}')
            info.size = size
            tar.addfile(info, io.BytesIO(random.Random(0).randbytes(size)))
        for name, kind, target in extra:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info, io.BytesIO())
    return buffer.getvalue()


def place(folder: Path, body: bytes) -> Path:
    """Put an archive by hand into db_root; returns the data set folder to ask for."""
    folder.mkdir(exist_ok=True)
    (folder / ARCHIVE_NAME).write_bytes(body)
    return folder / 'VOCSegmentation'


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


COMPLETE = ['.VOCSegmentation.lock', 'VOCSegmentation']
PROCESS = '''
import logging, os, sys, tarfile
from pathlib import Path
from data.download import ensure_dataset
logging.basicConfig(level=logging.INFO)
if sys.argv[3] == 'die':
    extract, count = tarfile.TarFile._extract_member, []
    def dying(*args, **kwargs):
        count.append(1)
        if len(count) == 3:
            os._exit(9)
        return extract(*args, **kwargs)
    tarfile.TarFile._extract_member = dying
ensure_dataset(Path(sys.argv[1]), url=sys.argv[2])
'''


def start_process(root: Path, url: str, log: Path, mode: str = 'live') -> subprocess.Popen:
    with log.open('w') as file:
        return subprocess.Popen([sys.executable, '-c', PROCESS, root, url, mode], cwd=REPO, stderr=file)


def test_fetches_and_unpacks(tmp_path, serve):
    server = serve(tgz())
    root = tmp_path / 'VOCSegmentation'
    assert ensure_dataset(root, url=server.url) == root
    assert (root / 'images' / 'a.jpg').stat().st_size == 100
    assert names(root.parent) == COMPLETE
    assert ensure_dataset(root, url=server.url) == root
    assert len(server.ranges) == 1


def test_two_processes_download_once(tmp_path, serve):
    server = serve(tgz())
    server.go.clear()
    root = tmp_path / 'VOCSegmentation'
    logs = [tmp_path / 'log0', tmp_path / 'log1']
    processes = [start_process(root, server.url, log) for log in logs]
    deadline = time.monotonic() + 60
    while not (server.ranges and any('waiting' in log.read_text() for log in logs)) and time.monotonic() < deadline:
        time.sleep(0.02)
    server.go.set()
    assert [p.wait(60) for p in processes] == [0, 0], [log.read_text() for log in logs]
    assert len(server.ranges) == 1
    assert sum('waiting' in log.read_text() for log in logs) == 1
    assert (root / 'images').is_dir()


def test_interrupted_download_continues(tmp_path, serve):
    body = tgz(size=900_000)
    server = serve(body, cut=1_200_000)
    root = tmp_path / 'VOCSegmentation'
    with pytest.raises(UserError, match=r'start again to continue .*\.part'):
        ensure_dataset(root, url=server.url)
    (part,) = tmp_path.glob('*.part')
    got = part.stat().st_size
    assert 0 < got < len(body)
    assert not root.exists()
    ensure_dataset(root, url=server.url)
    assert f'bytes={got}-' in server.ranges
    assert (root / 'images' / 'a.jpg').read_bytes() == random.Random(0).randbytes(900_000)
    assert names(tmp_path) == COMPLETE


@pytest.mark.parametrize('spoil', [
    lambda body: body[:-4], lambda body: body[:len(body) // 2], lambda body: b'<html>quota exceeded</html>',
    lambda body: body[:-8] + bytes([body[-8] ^ 1]) + body[-7:],  # one bit of the checksum
    lambda body: body[:500] + bytes([body[500] ^ 1]) + body[501:],
], ids=['short', 'half', 'page', 'checksum', 'bit'])
def test_broken_archive(tmp_path, serve, spoil):
    broken = spoil(tgz(size=5000))
    root = tmp_path / 'VOCSegmentation'
    with pytest.raises(UserError, match='cannot be used .broken or cut short: .* was deleted'):
        ensure_dataset(root, url=serve(broken).url)
    assert names(tmp_path) == ['.VOCSegmentation.lock']
    with pytest.raises(UserError, match='cannot be used .broken or cut short: .* was left as it is; delete it'):
        ensure_dataset(place(tmp_path, broken))
    assert names(tmp_path) == ['.VOCSegmentation.lock', ARCHIVE_NAME]


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize('extra', [
    [('../x', tarfile.REGTYPE, '')],
    [('VOCSegmentation/../../x', tarfile.REGTYPE, '')],
    [('VOCSegmentation/l', SYM, '../../x')],
    [('VOCSegmentation/l', SYM, '/etc')],
    [('VOCSegmentation/l', SYM, '../beside')],
    [('VOCSegmentation/l', HARD, '../x')],
    [('VOCSegmentation/d', SYM, '.'), ('VOCSegmentation/d/up', SYM, '..')],
    [('VOCSegmentation/d', SYM, 'images'), ('VOCSegmentation/d/up', SYM, '../..')],
    [('VOCSegmentation/p', tarfile.FIFOTYPE, '')],
    [('VOCSegmentation/n', tarfile.CHRTYPE, '')],
], ids=lambda extra: '+'.join(f'{m[0]}>{m[2]}' for m in extra))
def test_refuses_members_that_leave(tmp_path, extra):
    root = place(tmp_path / 'db', tgz(extra))
    with pytest.raises(UserError, match='cannot be used .unsafe: .* was left as it is'):
        ensure_dataset(root)
    assert names(root.parent) == ['.VOCSegmentation.lock', ARCHIVE_NAME]
    assert names(tmp_path) == ['db']


def test_members_of_other_folders_are_left_out(tmp_path):
    members = [(name, tarfile.REGTYPE, '') for name in (f'{tmp_path}/x', 'beside/x', './VOCSegmentation/y')]
    root = ensure_dataset(place(tmp_path / 'db', tgz([('./', tarfile.DIRTYPE, ''), *members])))
    assert names(tmp_path) == ['db']
    assert names(root.parent) == COMPLETE
    assert names(root) == ['images', 'sets', 'y']


def test_old_pythons_are_named(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter')
    with pytest.raises(UserError, match='needs Python .* or later; update, or unpack it by hand'):
        ensure_dataset(place(tmp_path, tgz()))
    assert names(tmp_path) == [ARCHIVE_NAME]


def test_links_inside_are_kept(tmp_path):
    links = [('VOCSegmentation/images/b.jpg', SYM, 'a.jpg'),
             ('VOCSegmentation/images/c.jpg', HARD, 'VOCSegmentation/images/a.jpg')]
    root = ensure_dataset(place(tmp_path, tgz(links)))
    assert len({(root / 'images' / f'{n}.jpg').read_bytes() for n in 'abc'}) == 1


def test_interrupted_unpacking_is_no_data_set(tmp_path):
    root = place(tmp_path, tgz(files=('images/a.jpg', 'sets/train.txt', 'images/b.jpg')))
    assert start_process(root, 'unused', tmp_path / 'log', 'die').wait(60) == 9
    assert (tmp_path / '.unpacking-VOCSegmentation' / 'VOCSegmentation' / 'sets').is_dir()  # it died half way
    (tmp_path / 'log').unlink()
    assert not root.exists()
    ensure_dataset(root)
    assert names(root / 'images') == ['a.jpg', 'b.jpg']
    assert names(tmp_path) == COMPLETE


def test_full_disk_passes_and_leaves_the_archive(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(tarfile.TarFile, '_extract_member', full)
    with pytest.raises(OSError, match='No space'):
        ensure_dataset(place(tmp_path, tgz()))
    assert names(tmp_path) == ['.VOCSegmentation.lock', ARCHIVE_NAME]


def test_archive_of_something_else(tmp_path):
    with pytest.raises(UserError, match='holds no VOCSegmentation/sets/'):
        ensure_dataset(place(tmp_path, tgz(files=('images/a.jpg',))))
    assert not (tmp_path / 'VOCSegmentation').exists()


def test_unreachable_server(tmp_path, serve):
    server = serve(b'')
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=f'could not download .* by hand from {server.url} and put it to '):
        ensure_dataset(tmp_path / 'VOCSegmentation', url=server.url)
    assert names(tmp_path) == ['.VOCSegmentation.lock']


def test_google_drive_id_by_default(tmp_path, monkeypatch):
    def fake(url: str, output: str, **_: object) -> str:
        assert url == 'https://drive.google.com/uc?id=1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH'
        Path(output).write_bytes(tgz())
        return output

    monkeypatch.setattr('gdown.download', fake)
    assert (ensure_dataset(tmp_path / 'VOCSegmentation') / 'sets').is_dir()


def test_gdown_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(UserError, match='pip install gdown'):
        ensure_dataset(tmp_path / 'VOCSegmentation')


def test_unusable_places(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='is not a folder'):
        ensure_dataset(tmp_path / 'file')
    with pytest.raises(UserError, match='correct db_root'):
        ensure_dataset(tmp_path / 'file' / 'VOCSegmentation')
    with pytest.raises(UserError, match=r'^db_root \S+mistyped is not a folder; correct db_root, or make'):
        ensure_dataset(tmp_path / 'mistyped' / 'VOCSegmentation')
    assert not (tmp_path / 'mistyped').exists()
    for name in ('images', 'VOCdevkit'):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(UserError, match=rf'^db_root \S+{name} holds {name} and no VOCSegmentation/; set db'):
            ensure_dataset(tmp_path / name / 'VOCSegmentation')
