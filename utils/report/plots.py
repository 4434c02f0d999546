"""Plots: bars per class, curves over the number of clusters, and curves over training; as pictures or as SVG."""
from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

# Okabe and Ito's colours, which colour-blind readers tell apart; markers and hatches tell them apart in grey
COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#000000')
MARKERS = 'osD^vPX*'
HATCHES = ('', '//', '..', 'xx')
LINE_STYLES = ('-', '--', ':', '-.')
# of plots on the pages of utils.report.page; on the dark one lighter colours come first
TEXT = {'light': '#1f2328', 'dark': '#e6e9ee'}
LINES = {'light': COLOURS[:6], 'dark': ('#56B4E9', '#E69F00', '#2CC295', '#CC79A7', '#F0E442', '#D55E00')}
Points = Sequence[tuple[float, float]]


def class_bars(tasks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Bars of the IoU of each class, a panel a task, and one legend above all.

    Args:
        tasks: {title: {column: entry}}; an entry holds 'IoU' {class: percent} and may hold 'IoU_std'.
            A class that a column lacks has no bar.
    """
    most = max(len(_classes(columns)) for columns in tasks.values())
    inks = {column: i for i, column in enumerate(dict.fromkeys(name for columns in tasks.values() for name in columns))}
    inches = max(5, 2 + 0.55 * most)
    figure = Figure(figsize=(inches, 3.6 * len(tasks)), layout='constrained')
    for axes, (title, columns) in zip(figure.subplots(len(tasks), squeeze=False)[:, 0], tasks.items(), strict=True):
        names = _classes(columns)
        width = 0.8 / len(columns)
        for i, (column, entry) in enumerate(columns.items()):
            places = np.arange(len(names)) + (i - (len(columns) - 1) / 2) * width
            heights = [entry['IoU'].get(name, np.nan) for name in names]
            spread = entry.get('IoU_std')
            axes.bar(places, heights, width, label=column, color=COLOURS[inks[column] % len(COLOURS)],
                     edgecolor='white', linewidth=0.3, capsize=1.5,
                     hatch=HATCHES[inks[column] // len(COLOURS) % len(HATCHES)],
                     yerr=None if spread is None else [spread.get(name) or 0 for name in names],
                     error_kw={'elinewidth': 0.7})
        axes.set_xticks(np.arange(len(names)), names, rotation=45, ha='right')
        axes.set_xlabel('class')
        axes.set_ylabel('IoU, %')
        axes.set_ylim(0, 100)
        _finish(axes, title)
        axes.get_legend().remove()  # it would hide bars
    handles = {name: bar for axes in figure.axes for bar, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    in_a_row = max(1, int(11 * inches / (8 + max(map(len, handles)))))  # about 11 letters an inch
    figure.legend(handles.values(), handles, loc='outside upper center', ncols=in_a_row, fontsize='small')
    return figure


def cluster_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """mIoU over the number of clusters, a line a column.

    Args:
        curves: {column: points}; a point holds 'num_clusters', 'mIoU' in percent and may hold its 'std'.
    """
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for i, (column, points) in enumerate(curves.items()):
        ordered = sorted(points, key=lambda point: point['num_clusters'])
        axes.errorbar([point['num_clusters'] for point in ordered], [point['mIoU'] for point in ordered],
                      [point.get('std') or 0 for point in ordered], label=column, capsize=3,
                      marker=MARKERS[i % len(MARKERS)])
    axes.set_xlabel('number of clusters')
    axes.set_ylabel('mIoU, %')
    axes.set_ylim(bottom=0)
    _finish(axes, 'Over-clustering')
    return figure


def training_curves(title: str, x: str, y: str, curves: Mapping[str, Points]) -> Figure:
    """Lines over training under one title; a legend if there are several.

    Args:
        x, y: what the axes show, with the unit.
        curves: {name: (x, y) points in the order of x}.
    """
    figure = Figure(figsize=(4.2, 2.7), layout='constrained')
    axes = figure.subplots()
    for (name, points), style in zip(curves.items(), LINE_STYLES, strict=False):
        places, heights = zip(*points, strict=True)
        axes.plot(places, heights, style, label=name, linewidth=1.5, marker='.' if len(points) < 30 else None)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, title)
    if len(curves) == 1:
        axes.legend().remove()
    return figure


def sweep_panels(groups: Mapping[str, Mapping[str, Mapping[str, tuple[float, float | None]]]],
                 before: Mapping[str, float], columns: int = 3) -> Figure:
    """One panel a group: the figures of each variant, with error bars, and one legend above all.

    Args:
        groups: {group: {variant: {figure: (mean, standard deviation or None) in percent}}}, at least one.
        before: {figure: percent}, drawn as broken lines through all panels.
        columns: panels a row.
    """
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.6 * min(columns, len(groups)), 3.1 * rows + 0.4), layout='constrained')
    names = list(dict.fromkeys(name for variants in groups.values() for found in variants.values() for name in found))
    panels = list(figure.subplots(rows, min(columns, len(groups)), squeeze=False, sharey=True).flat)
    lines: dict[str, Any] = {}
    line = None
    for axes, (title, variants) in zip(panels, groups.items(), strict=False):
        for i, name in enumerate(names):
            points = [(place, *found[name]) for place, found in enumerate(variants.values()) if name in found]
            ink = COLOURS[i % len(COLOURS)]
            if points:
                places, means, spreads = zip(*points, strict=True)
                lines[name] = axes.errorbar(places, means, [spread or 0 for spread in spreads], capsize=3, color=ink,
                                            marker=MARKERS[i % len(MARKERS)])
            if name in before:
                line = axes.axhline(before[name], color=ink, linestyle='--', linewidth=1)
        axes.set_xticks(np.arange(len(variants)), list(variants), fontsize='small')
        axes.set_title(title)
        axes.grid(axis='y', alpha=0.3)
        axes.margins(x=0.08)
    for axes in panels[len(groups):]:
        axes.set_axis_off()
    figure.supylabel('mIoU, %')
    if line:
        lines['before'] = line
    figure.legend(lines.values(), lines, loc='outside upper center', ncols=len(lines), fontsize='small')
    return figure


def _classes(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The classes of any column, in their order."""
    return list(dict.fromkeys(name for entry in columns.values() for name in entry['IoU']))


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.grid(axis='y', alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.legend(fontsize='small')


def to_image(draw: Callable[[], Figure]) -> Image.Image:
    """A plot as a picture, 120 pixels an inch.

    Args:
        draw: makes the plot.
    """
    with mpl.rc_context({'axes.prop_cycle': cycler(color=COLOURS)}):
        figure = draw()
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(120)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')


def to_svg(draw: Callable[[], Figure], theme: str) -> str:
    """A plot on a clear ground for a 'light' or a 'dark' page; its letters are outlines, which need no font.

    Args:
        draw: makes the plot.
    """
    text = TEXT[theme]
    inked = 'text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color'
    inks: dict[Any, Any] = dict.fromkeys(inked, text)
    clear = dict.fromkeys(('figure.facecolor', 'axes.facecolor', 'legend.facecolor'), 'none')
    style = {**inks, **clear, 'grid.color': text, 'axes.prop_cycle': cycler(color=LINES[theme]),
             'svg.hashsalt': 'plot', 'font.size': 10, 'axes.titlesize': 11,
             'axes.spines.top': False, 'axes.spines.right': False}
    with mpl.rc_context(style):
        text_file = io.StringIO()
        draw().savefig(text_file, format='svg', metadata={'Date': None})
    return text_file.getvalue()
