"""A chart of stacked panels over one x axis, drawn with Pillow; knows nothing of what it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from PIL import Image, ImageColor

from .chart_axis import Axis, whole_axis
from .chart_pen import Pen, Point

WIDTH = 1024
OVERSAMPLE = 2
MARGIN, LEFT, SIDE = 24, 84, 190
"""Outer margin; where the plots begin; the column of notes at their right."""
HEADING, GAP, INSET, LINE = 28, 22, 12, 19
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 20, 14, 13
X_TICKS = 12

INK, GREY, RULE, FRAME = "#1f2328", "#636c76", "#e6e9ec", "#b4bcc4"
BLUE, GREEN, PURPLE, BROWN, ORANGE = "#0072b2", "#00795b", "#a9447f", "#7d6200", "#bf4b00"
GREEN_FILL, ORANGE_FILL = "#eaf5f1", "#fcebdf"


@dataclass(frozen=True)
class Note:
    """A line beside a panel: `label` in grey, then `text`."""

    text: str
    label: str = ""
    colour: str = INK


@dataclass(frozen=True)
class Panel:
    """One quantity over x. Values are in the axis' space (a log axis takes logarithms).

    `lines`: one an image, a value an x; `mean`: the bold one over them. `marks`: for every line
    the position that is dotted. `thin`: lines in grey behind them. `bands`: (low, high, colour)
    behind; `guides`: dashed levels. `low_note` stands at the axis' low end.
    """

    title: str
    unit: str
    lines: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    axis: Axis
    colour: str
    marks: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()
    low_note: Note | None = None
    bands: tuple[tuple[float, float, str], ...] = ()
    guides: tuple[float, ...] = ()
    thin: tuple[tuple[float, ...], ...] = ()
    height: int = 124


@dataclass(frozen=True)
class Chart:
    """`lines` stand below the title. `x`: rising whole numbers. `changes`: (x, letter) of the
    dashed verticals."""

    title: str
    lines: tuple[str, ...]
    x: tuple[int, ...]
    x_label: str
    panels: tuple[Panel, ...]
    warnings: tuple[str, ...] = ()
    changes: tuple[tuple[int, str], ...] = ()
    footnotes: tuple[str, ...] = ()


def draw(chart: Chart, width: int = WIDTH) -> Image.Image:
    """The chart as an RGB picture `width` pixels wide; its height follows from what it holds."""
    scale = width / WIDTH
    height = _compose(chart, Pen(Image.new("RGB", (1, 1)), scale * OVERSAMPLE))
    size = (width * OVERSAMPLE, round(height * scale) * OVERSAMPLE)
    canvas = Image.new("RGB", size, "white")
    _compose(chart, Pen(canvas, scale * OVERSAMPLE))
    return canvas.reduce(OVERSAMPLE)


def _compose(chart: Chart, pen: Pen) -> float:
    """Draw from top to bottom; returns the height that it took."""
    right = WIDTH - MARGIN
    room = right - MARGIN
    y = MARGIN + 16.0
    pen.bold((MARGIN, y), pen.fit(chart.title, room, TITLE_SIZE), TITLE_SIZE, INK)
    for text in filter(None, chart.lines):
        for line in pen.wrap(text, room, TEXT_SIZE):
            y += LINE + 2
            pen.text((MARGIN, y), line, TEXT_SIZE, GREY)
    for warning in chart.warnings:
        y += 8
        for line in pen.wrap(warning, room - 14, TEXT_SIZE):
            y += LINE
            pen.text((MARGIN + 14, y), line, TEXT_SIZE, ORANGE)
            pen.box((MARGIN, y - LINE + 4), (MARGIN + 4, y + 4), ORANGE)
    axis = whole_axis(chart.x[0], chart.x[-1], X_TICKS)
    if chart.changes:
        y += GAP
        _letters(chart, axis, pen, y)
        y -= 12
    for panel in chart.panels:
        y += GAP
        _heading(panel, pen, y)
        y += HEADING
        _plot(chart, panel, axis, pen, y)
        y += panel.height
    y += 18
    for x, label in axis.ticks:
        pen.text((_across(axis, x), y), label, SMALL_SIZE, GREY, "ms")
    y += LINE
    pen.text(
        ((_across(axis, axis.low) + _across(axis, axis.high)) / 2, y),
        chart.x_label,
        TEXT_SIZE,
        GREY,
        "ms",
    )
    y += 8 if chart.footnotes else 0
    for note in chart.footnotes:
        for line in pen.wrap(note, room, SMALL_SIZE):
            y += LINE
            pen.text((MARGIN, y), line, SMALL_SIZE, GREY)
    return y + MARGIN


def _heading(panel: Panel, pen: Pen, y: float) -> None:
    room = WIDTH - MARGIN - LEFT
    title = pen.fit(panel.title, room * 0.6, TEXT_SIZE + 1)
    begin = LEFT + 12 + pen.bold((LEFT, y + 16), title, TEXT_SIZE + 1, panel.colour)
    pen.text(
        (begin, y + 16), pen.fit(panel.unit, WIDTH - MARGIN - begin, SMALL_SIZE), SMALL_SIZE, GREY
    )


def _plot(chart: Chart, panel: Panel, axis: Axis, pen: Pen, top: float) -> None:
    end, bottom = WIDTH - MARGIN - SIDE, top + panel.height

    def down(value: float) -> float:
        return bottom - panel.axis.share(value) * panel.height

    for low, high, colour in panel.bands:
        pen.box((LEFT, down(high)), (end, down(low)), colour)
    for x, _ in axis.ticks:
        pen.line([(_across(axis, x), top), (_across(axis, x), bottom)], RULE, 1)
    for value, label in panel.axis.ticks:
        pen.line([(LEFT, down(value)), (end, down(value))], RULE, 1)
        pen.text((LEFT - 8, down(value)), label, SMALL_SIZE, GREY, "rm")
    for x, _ in chart.changes:
        pen.dashes((_across(axis, x), top), (_across(axis, x), bottom), GREY)
    for value in panel.guides:
        pen.dashes((LEFT, down(value)), (end, down(value)), panel.colour)
    for edge in (top, bottom):
        pen.line([(LEFT, edge), (end, edge)], FRAME, 1)

    def place(values: tuple[float, ...]) -> list[Point | None]:
        return [
            (_across(axis, x), down(value)) if math.isfinite(value) else None
            for x, value in zip(chart.x, values, strict=True)
        ]

    for line in panel.thin:
        _curve(pen, place(line), GREY, 1)
    if len(panel.lines) > 1:
        tint = _tint(panel.colour, 0.5 if len(panel.lines) <= 6 else 0.35)
        for line in panel.lines:
            _curve(pen, place(line), tint, 1)
    _curve(pen, place(panel.mean), panel.colour, 2.5)
    several = len(panel.lines) > 1
    for line, position in zip(panel.lines, panel.marks, strict=False):
        point = place(line)[position]
        if point is not None:
            pen.dot(point, 3.2 if several else 5, panel.colour)
    _notes(panel, pen, end + 18, top, bottom)


def _curve(pen: Pen, points: list[Point | None], colour: str, width: float) -> None:
    """A line through the points, broken where one is missing; lone points become dots."""
    for there, run in groupby(points, key=lambda point: point is not None):
        stretch = [point for point in run if point is not None]
        if there and len(stretch) == 1:
            pen.dot(stretch[0], width, colour, 0)
        elif there:
            pen.line(stretch, colour, width)


def _notes(panel: Panel, pen: Pen, x: float, top: float, bottom: float) -> None:
    room = WIDTH - MARGIN - x
    column = max((pen.length(n.label, SMALL_SIZE) for n in panel.notes if n.label), default=0) + 10
    y = top + 11
    for note in panel.notes:
        indent = column if note.label else 0
        pen.text((x, y), note.label, SMALL_SIZE, GREY)
        pen.text(
            (x + indent, y), pen.fit(note.text, room - indent, SMALL_SIZE), SMALL_SIZE, note.colour
        )
        y += LINE - 1
    if panel.low_note is not None:
        text = pen.fit(panel.low_note.text, room, SMALL_SIZE)
        pen.text((x, bottom - 4), text, SMALL_SIZE, panel.low_note.colour)


def _letters(chart: Chart, axis: Axis, pen: Pen, y: float) -> None:
    """The letters above the dashed verticals; one too close to the last is left out."""
    free = -math.inf
    for x, letter in chart.changes:
        at = _across(axis, x)
        if letter and at >= free:
            pen.text((at, y), letter, SMALL_SIZE, INK, "ms")
            free = at + pen.length(letter, SMALL_SIZE) + 6


def _across(axis: Axis, x: float) -> float:
    begin, end = LEFT + INSET, WIDTH - MARGIN - SIDE - INSET
    return begin + axis.share(x) * (end - begin)


def _tint(colour: str, share: float) -> str:
    """The colour mixed with white."""
    mixed = [round(255 - (255 - c) * share) for c in ImageColor.getrgb(colour)[:3]]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
