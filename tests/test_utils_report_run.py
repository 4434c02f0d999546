"""report.html: what is in it, that it needs nothing else, and how a browser shows it."""
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.report import folder
from utils.report.folder import FolderRun
from utils.report.pictures import class_bars, curve_of_clusters, to_svg
from utils.report.results import save_results
from utils.report.run import read_history, write_run_report
from utils.run.errors import UserError
from utils.run.files import PALETTE
from utils.run.log import MetricsWriter

CLASSES = ('background', 'cat & <dog>', 'fish')
CONFUSION = np.array([[90, 10, 0], [5, 15, 0], [0, 0, 0]])
VOID_TAGS = {'meta', 'link', 'img', 'source'}


class Page(HTMLParser):
    """Reads a page: its text, its attributes by name; and sees that every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.attributes, self.open, self.tags = '', [], [], set()
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def noise(path: Path, height: int = 60, width: int = 40) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope='module')
def output_dir(tmp_path_factory) -> Path:
    """A run that left everything that a report shows, under names that must be escaped."""
    folder = tmp_path_factory.mktemp('run')
    writer = MetricsWriter(folder)
    for step in range(5):
        writer.add_scalars(dict.fromkeys(('train/loss', 'train/saliency', 'train/accuracy', 'bank/rank'), step / 7), 0,
                           step)
        writer.add_scalars({'train/lr': step / 7, 'val/miou': step / 7}, step)
        writer.add_picture('views', Image.new('RGB', (8, 9), (step, step, step)), step)
    results = save_results({'kmeans': {'mIoU': 45.678, 'std': 1.5, 'num_runs': 5,
                             'IoU': {'background': 81.25, 'cat & <dog>': 12.5}},
                  'overclustering': [{'num_clusters': 5, 'mIoU': 30.0, 'std': 1.0}],
                  'clusters': {'num_clusters': 2, 'sizes': [31, 17], 'silhouette': {'2': 0.5, '3': None}}}, folder)
    Image.new('RGB', (9, 9)).save(folder / 'cluster.jpg')
    pictures = {'Predictions': [('<i>a', noise(folder / 'a.png')), ('large', noise(folder / 'wide.png', 300, 2000))],
                'Clusters': [('cluster_1', folder / 'cluster.jpg')],
                'Nearest neighbours': [('x', noise(folder / 'high.png', 2000, 150))]}
    config = {'output_dir': str(folder), 'config_name': 'a<script>', 'moco_kwargs': {'K': 40}}
    write_run_report(config, 'Title <b>', results, CLASSES, {'kmeans': CONFUSION}, pictures)
    return folder


@pytest.mark.parametrize('content', [b'{"kmeans": {"mIoU": 4', b'', b'[]', b'\xff\xfe'])
def test_damaged_results_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'results.json').write_bytes(content)
    with pytest.raises(UserError, match=r'results\.json is damaged; restore it or move it away'):
        save_results({'linear': {'mIoU': 1}}, tmp_path)
    assert (tmp_path / 'results.json').read_bytes() == content


def test_the_report_holds_what_the_run_left(output_dir: Path) -> None:
    shown = Page(output_dir / 'report.html')
    for text in ('Title <b>', 'a<script>', 'cat & <dog>', '<i>a', '45.68 ± 1.50 (n = 5)', 'moco_kwargs.K', '40',
                 'IoU of each class', 'number of clusters', 'ignore label', 'cluster_1',
                 'epoch 0', 'epoch 2', 'epoch 4', 'Over-clustering', 'Confusion matrix: K-means'):
        assert text in shown.text, text
    assert 'epoch 1' not in shown.text
    assert [shown.text.index(text) for text in ('31', '17')]
    assert 'true > its predicted' in shown.text
    assert '--ink:#{:02x}{:02x}{:02x}'.format(*PALETTE[1]) in shown.values('style')
    assert 'cat & <dog> as background: 25.00 %' in shown.values('title')
    plots = [base64.b64decode(uri.partition(',')[2]).decode() for uri in shown.values('srcset')]
    assert len(plots) == 1 + 1 + 1 + 5  # classes; over-clustering; silhouettes; losses in one, and four others
    assert all('<svg' in plot for plot in plots)


def test_the_report_needs_nothing_else(output_dir: Path) -> None:
    path = output_dir / 'report.html'
    shown = Page(path)
    assert 'script' not in shown.tags
    for name in ('src', 'srcset', 'href'):
        assert shown.values(name)
        assert all(value.startswith('data:') for value in shown.values(name))
    assert not re.search(r'https?:|url\(|@import', path.read_text())
    large = [uri for uri in shown.values('src') if uri.startswith('data:image/jpeg')]
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))).size for uri in large]
    assert [size for size in sizes if size != (9, 9)] == [(1400, 210), (150, 2000)]  # their width is limited


def test_a_run_without_anything_has_its_config(tmp_path: Path) -> None:
    write_run_report({'output_dir': str(tmp_path), 'config_name': 'none', 'epochs': 0}, 'Pretraining', {})
    assert 'epochs' in Page(tmp_path / 'report.html').text


def test_a_failing_report_is_a_warning(tmp_path: Path, caplog, monkeypatch) -> None:
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    write_run_report({'output_dir': str(tmp_path), 'config_name': 'x'}, 'Run', {},
                     pictures={'Predictions': [('x', tmp_path / 'broken.png')]})
    assert re.fullmatch(r'report.html could not be made \(UnidentifiedImageError: cannot .*\); nothing else is missing',
                        caplog.messages[-1])
    run = FolderRun(output := tmp_path / 'out', '', tmp_path / 'images', 'mask', method='x')
    run.collect([(Path('a'), ''), (Path('b'), ''), (Path('c'), 'damaged')])
    assert run.join()
    (output / 'sheet.png').write_bytes(b'no picture')
    monkeypatch.setattr(folder, '_contact_sheet', lambda *_: None)
    monkeypatch.setattr(folder, 'save_image', lambda *_: None)
    summary = run.finish([*'abc'], {}, {}, 'sheet.png', lambda name: [])
    assert summary.startswith('3 images: 2 masks written, 0 there already, 1')
    assert caplog.messages[-1].startswith('report.html could not be made')
    assert json.loads((output / 'report.json').read_text())['masks_written'] == 2
    assert not (output / 'report.html').exists()


def test_plots_need_no_display_and_no_backend_of_a_notebook() -> None:
    code = ('from utils.report.pictures import line_panels, to_image; from utils.run.script import run_script; '
            'run_script(lambda: to_image(lambda: line_panels({"a": {"b": [(0, 1)]}})))')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[1], env={
        **os.environ, 'MPLBACKEND': 'module://matplotlib_inline_that_is_not_installed'})


def test_steps_that_were_done_again_count_once_and_the_latest_time(tmp_path: Path, caplog) -> None:
    path, expected = tmp_path / 'metrics.jsonl', {}
    for first, last, value in ((0, 7, 1.0), (4, 9, 2.0)):  # killed while it wrote step 6, resumed at 4
        writer = MetricsWriter(tmp_path)
        for step in range(first, last):
            writer.add_scalars({'train/loss': value}, 1, step)
            writer.add_picture('views', Image.new('RGB', (8, 9), (int(value), 0, 0)), step)
        path.write_bytes(path.read_bytes()[:-3])
        expected |= dict.fromkeys(range(first, last - 1), value)
        scalars, pictures = read_history(tmp_path)
        assert dict(scalars['train/loss']) == expected
    assert [Image.open(picture).getpixel((0, 0))[0] for _, picture in pictures['views']] == [1] * 4 + [2] * 5
    assert not caplog.messages


@pytest.mark.parametrize('line', ['{"epoch": 1, "train/lo', '', '[3]', '{"train/loss": 1.0}', '{"epoch": 2, "x": "y"}'])
def test_a_damaged_line_of_metrics_is_told_unless_a_kill_left_it(tmp_path: Path, caplog, line: str) -> None:
    path, good = tmp_path / 'metrics.jsonl', '{"step": 7, "epoch": 1, "train/loss": 0.5}\n'
    path.write_text(f'{good}{line}\n')
    assert read_history(tmp_path)[0] == {'train/loss': [(7, 0.5)]}
    assert not caplog.messages
    path.write_text(f'{good}{line}\n{good}')
    assert read_history(tmp_path)[0] == {'train/loss': [(7, 0.5)]}
    assert [message.partition('metrics.jsonl')[2] for message in caplog.messages] == [
        ': line 2 is damaged, and its values are missing in the curves']


def test_bars_of_several_columns() -> None:
    figure = class_bars({'LC': {'before': {'IoU': {'background': 10.0}}, 'after': {'IoU': {
        'background': 20.0, 'fish': 5.0}, 'IoU_std': {'background': 1.0, 'fish': None}}}})
    axes = figure.axes[0]
    assert [[bar.get_width() for bar in column] for column in axes.containers if len(column) == 2 and
            hasattr(column, 'datavalues')] == [[10.0, pytest.approx(np.nan, nan_ok=True)], [20.0, 5.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['background', 'fish']
    assert [text.get_text() for text in axes.texts] == ['10.0', '20.0', '5.0']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['before', 'after']


def test_a_number_stays_in_the_panel_where_the_deviation_leaves_it() -> None:
    axes = class_bars({'K-means': {'': {'IoU': {'fish': 76.0}, 'IoU_std': {'fish': 42.5}}}}).axes[0]
    assert axes.texts[0].get_position()[0] < 100 + 2 < axes.get_xlim()[1]

def test_curves_of_many_columns_are_seen_on_a_dark_page() -> None:
    curves = {str(i): [{'num_clusters': 5, 'mIoU': i}, {'num_clusters': 9, 'mIoU': i + 1}] for i in range(8)}
    light, dark = (to_svg(partial(curve_of_clusters, curves), theme) for theme in ('light', 'dark'))
    assert b'stroke: #0072b2' in light
    assert b'stroke: #56b4e9' in dark
    assert b'#000000' not in dark


def browse(page_file: Path, profile: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
         '--disable-background-networking', '--hide-scrollbars', '--enable-logging=stderr',
         f'--user-data-dir={profile}', *options, page_file.as_uri()],
        capture_output=True, text=True, timeout=300, check=True)


@pytest.mark.skipif(shutil.which('chromium') is None, reason='no chromium')
def test_a_browser_shows_the_report_on_light_and_dark_screens_wide_and_narrow(output_dir: Path, tmp_path: Path) -> None:
    report, profile = output_dir / 'report.html', tmp_path / 'profile'
    for width in (400, 1400):
        for scheme, ground in ((1, 255), (0, 20)):  # of the blink setting: 0 is dark
            picture = tmp_path / f'{width}_{scheme}.png'
            done = browse(report, profile, f'--window-size={width},900', f'--screenshot={picture}',
                          f'--blink-settings=preferredColorScheme={scheme}')
            assert 'CONSOLE' not in done.stderr
            shown = np.asarray(Image.open(picture).convert('RGB'))
            assert shown.shape[1] == width
            assert shown[2, 2].tolist()[0] == ground
            assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
    # the same page with a script, which the page itself forbids, tells what sticks out, and that the console is heard
    told, script = tmp_path / 'told.html', 'let e = document.documentElement; console.error(1)'
    told.write_text(re.sub('<meta http-equiv=.*?>', '', report.read_text()) +
                    f'<script>{script}; document.title = "beyond " + (e.scrollWidth - e.clientWidth)</script>')
    done = browse(told, profile, '--window-size=400,900', '--dump-dom')
    assert '<title>beyond 0</title>' in done.stdout
    assert 'CONSOLE' in done.stderr
