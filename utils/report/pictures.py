"""Pictures: images side by side, in grids, with masks, labels and captions; and plots, as pictures or as SVG.

Matplotlib takes a second to come, at the first plot.
"""
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from utils.run.files import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = 18  # height of a caption, pixels
PART = 200  # longer side of an image in a panel at most, pixels: four and their captions fit a screen
# Okabe and Ito's colours, which colour-blind readers tell apart; lighter ones come first on a dark page
COLOURS = {'light': ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00'),
           'dark': ('#56B4E9', '#E69F00', '#2CC295', '#CC79A7', '#F0E442', '#D55E00')}
TEXT = {'light': '#1f2328', 'dark': '#e6e9ee'}
MARKERS, HATCHES = 'osD^vPX*', ('', '//', '..', 'xx')
MARKED = 30  # points of a line, at most
Point = tuple[float, float] | tuple[float, float, float | None]  # x, y, standard deviation
Draw = Callable[[], 'Figure']


def panel(images: Sequence[np.ndarray], captions: Sequence[str]) -> Image.Image:
    """(H, W, 3) uint8 images or (H, W) uint8 class ids of one size side by side under captions, large ones smaller."""
    small = [thumbnail(image, PART) for image in images]
    row = montage([PALETTE[image] if image.ndim == 2 else image for image in small], len(small), gap=4)
    canvas = Image.new('RGB', (row.width, row.height + CAPTION), 'white')
    canvas.paste(row, (0, CAPTION))
    for number, caption in enumerate(captions):
        ImageDraw.Draw(canvas).text((number * (small[0].shape[1] + 4) + 2, 3), caption, fill='black')
    return canvas


def montage(images: Sequence[np.ndarray], columns: int, gap: int = 8) -> Image.Image:
    """(H, W, 3) uint8 images of any size in rows of ``columns``, on white."""
    height, width = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    canvas = Image.new('RGB', (columns * width - gap, -(-len(images) // columns) * height - gap), 'white')
    for index, image in enumerate(images):
        canvas.paste(Image.fromarray(image), (index % columns * width, index // columns * height))
    return canvas


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 half covered by the colours of its labels (H, W); label 0 covers nothing."""
    mixed = cv2.addWeighted(image, 0.5, PALETTE[labels], 0.5, 0)
    np.copyto(mixed, image, where=(labels == 0)[..., None])
    return mixed


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 with the outlines of a mask (H, W) in yellow."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, (255, 255, 0), 1)


def pca_colours(maps: np.ndarray) -> np.ndarray:
    """The three main directions of all vectors of maps (N, D, h, w) as red, green and blue: (N, h, w, 3) uint8.

    The 1st percentile of a direction is 0 and the 99th is 255, over all maps, so that one colour means one thing. With
    D < 3 the last channels are 0.
    """
    number, dim, height, width = maps.shape
    points = maps.transpose(0, 2, 3, 1).reshape(-1, dim).astype(np.float64)
    points -= points.mean(0)
    main = np.linalg.eigh(points.T @ points)[1][:, ::-1][:, :3]  # D x 3, unit columns
    main = main * np.where(main[abs(main).argmax(0), range(main.shape[1])] < 0, -1, 1)  # their sign means nothing
    values = points @ main
    low, high = np.percentile(values, (1, 99), axis=0)
    colours = np.zeros((len(points), 3), np.uint8)
    colours[:, :main.shape[1]] = 255 * ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return colours.reshape(number, height, width, 3)


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) or label map (H, W), uint8, made smaller so that its longer side is at most ``side``."""
    scale = side / max(image.shape[:2])
    size = [max(1, round(scale * length)) for length in image.shape[1::-1]]
    by = cv2.INTER_NEAREST if image.ndim == 2 else cv2.INTER_AREA
    return image if scale >= 1 else cv2.resize(image, size, interpolation=by)


def legend(classes: Sequence[str]) -> Image.Image:
    """A square in the colour of each class beside its name; of classes of one name the first alone."""
    names = list(dict.fromkeys(classes))
    ruler = ImageDraw.Draw(Image.new('L', (1, 1)))
    width = CAPTION + 10 + int(max(ruler.textlength(name) for name in names))
    canvas = Image.new('RGB', (min(4, len(names)) * width + 4, -(-len(names) // 4) * CAPTION + 4), 'white')
    draw = ImageDraw.Draw(canvas)
    for place, name in enumerate(names):
        x, y = place % 4 * width + 4, place // 4 * CAPTION + 4
        colour = tuple(PALETTE[classes.index(name)].tolist())
        draw.rectangle((x, y, x + CAPTION - 6, y + CAPTION - 6), colour, 'black')
        draw.text((x + CAPTION, y), name, fill='black')
    return canvas


def class_bars(protocols: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> 'Figure':
    """Bars of the IoU of each class, a panel a protocol, of {title: {column: entry}}.

    An entry holds 'IoU' {class: percent} and may hold 'IoU_std'. A class that a column lacks has no bar.
    """
    from matplotlib.figure import Figure
    columns = list(dict.fromkeys(name for entries in protocols.values() for name in entries))
    classes = {title: list(dict.fromkeys(name for entry in entries.values() for name in entry['IoU']))
               for title, entries in protocols.items()}
    most = max(len(classes[title]) * (0.5 + len(entries)) for title, entries in protocols.items())
    figure, bars = Figure(figsize=(4.6 * len(protocols), 1.3 + 0.16 * most), layout='constrained'), {}
    for axes, (title, entries) in zip(figure.subplots(1, len(protocols), squeeze=False)[0], protocols.items(),
                                      strict=True):
        names, height, ink = classes[title], 1 / (0.5 + len(entries)), axes.title.get_color()
        for i, (column, entry) in enumerate(entries.items()):
            places = np.arange(len(names)) + (i - (len(entries) - 1) / 2) * height
            values, number = [entry['IoU'].get(name, np.nan) for name in names], columns.index(column)
            spread = [(entry.get('IoU_std') or {}).get(name) or 0 for name in names]
            bars[column] = axes.barh(
                places, values, height, color=f'C{number}', hatch=HATCHES[number // 6 % len(HATCHES)], edgecolor=ink,
                linewidth=0.3, xerr=spread if any(spread) else None, capsize=1.5, ecolor=ink)
            for place, value, std in zip(places, values, spread, strict=True):
                if not np.isnan(value):  # within the panel, also where the standard deviation goes beyond 100
                    axes.text(min(value + std, 100) + 1.5, place, f'{value:.1f}', va='center', fontsize='x-small')
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.set(title=title, xlabel='IoU, %', xticks=range(0, 101, 25), xlim=(0, 112))  # room for numbers
        axes.grid(axis='x', alpha=0.3)
    _legend(figure, bars)
    return figure


def line_panels(panels: Mapping[str, Mapping[str, Sequence[Point]]], x: str = '', y: str = '',
                ticks: Mapping[str, Sequence[str]] | None = None, levels: Mapping[str, float] = {}) -> 'Figure':
    """Lines with error bars, panels in rows of up to three.

    Args:
        panels: {title: {name of a line: points in the order of x}}, at least one.
        x, y: what the axes show, with the unit.
        ticks: {title: words that stand for x = 0, 1, ...}.
        levels: {name of a line: y}, broken lines through all panels: what was there before.
    """
    from matplotlib.figure import Figure
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, handles = Figure(figsize=(4.4 * columns, 3.1 * rows), layout='constrained'), {}
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for name, points in lines.items():
            if not points:  # of a table that is not complete yet
                continue
            places, heights, spread = zip(*((*point, None)[:3] for point in points), strict=True)
            number = names.index(name)
            handles[name] = axes.errorbar(places, heights, [one or 0 for one in spread] if any(spread) else None,
                                          color=f'C{number}', marker=MARKERS[number % len(MARKERS)], capsize=3,
                                          markevery=-(-len(points) // MARKED))
        if ticks:
            axes.set_xticks(range(len(ticks[title])), ticks[title], fontsize='small')
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(title=title, xlabel=x)
        axes.grid(axis='y', alpha=0.3)
    for axes in grid[:len(panels)]:
        for name, level in levels.items():
            if name in names:
                colour = f'C{names.index(name)}'
                handles['initial weights'] = axes.axhline(level, color=colour, linestyle='--', linewidth=1)
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    figure.supylabel(y, fontsize='medium')
    _legend(figure, handles)
    return figure


def curve_of_clusters(columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> 'Figure':
    """mIoU over the number of clusters, a line a column of entries that hold 'num_clusters', 'mIoU' and maybe 'std'."""
    return line_panels({'Over-clustering': {column: sorted((point['num_clusters'], point['mIoU'], point.get('std'))
                                                           for point in points) for column, points in columns.items()}},
                       'number of clusters', 'mIoU, %')


def _legend(figure: 'Figure', handles: Mapping[str, Any]) -> None:
    if len(handles) > 1:
        fit = int(11 * figure.get_figwidth() / (8 + max(map(len, handles))))  # about 11 letters an inch
        figure.legend(handles.values(), handles, loc='outside upper center', ncols=max(1, fit), fontsize='small')


def _render(draw: Draw, theme: str, style: Mapping[str, str], **options: Any) -> io.BytesIO:
    import matplotlib as mpl
    from cycler import cycler
    inked = 'text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color', 'grid.color'
    file, settings = io.BytesIO(), {
        **dict.fromkeys(inked, TEXT[theme]), 'axes.prop_cycle': cycler(color=COLOURS[theme]), 'axes.axisbelow': True,
        'axes.spines.top': False, 'axes.spines.right': False, 'axes.titlesize': 11, 'lines.markersize': 4, **style}
    with mpl.rc_context(settings):  # type: ignore[arg-type]
        draw().savefig(file, **options)
    return file


def to_image(draw: Draw) -> Image.Image:
    """A plot as a picture, 120 pixels an inch."""
    return Image.open(_render(draw, 'light', {}, dpi=120)).convert('RGB')


def to_svg(draw: Draw, theme: str) -> bytes:
    """A plot on a clear ground for a 'light' or a 'dark' page; its letters are outlines, which need no font."""
    clear = dict.fromkeys(('figure.facecolor', 'axes.facecolor', 'legend.facecolor'), 'none')
    return _render(draw, theme, {**clear, 'svg.hashsalt': 'plot'}, format='svg', metadata={'Date': None}).getvalue()
