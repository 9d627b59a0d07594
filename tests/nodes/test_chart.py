from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from comfyui_dno.dno_core import Settings, TermInfo
from comfyui_dno.nodes import chart, chart_axis, chart_pen, curves
from comfyui_dno.tests.nodes.synthetic_run import (
    AIMED,
    BRIGHTNESS,
    SMALLER,
    WATCHED,
    synthetic_run,
)


def picture(run, width=1024):
    return chart.draw(curves.reward_curve(run), width)


def count(image: Image.Image, colour: str) -> int:
    wanted = np.array(ImageColor.getrgb(colour))
    return int((np.abs(np.array(image).astype(int) - wanted).sum(-1) <= 6).sum())


class Texts:
    """Takes the pen's place and remembers where every text was drawn."""

    def __init__(self) -> None:
        self.boxes: list[tuple[str, float, float, float, float]] = []
        pen, boxes = chart_pen.Pen, self.boxes

        class Recording(pen):
            def text(self, at, text, size, fill, anchor="ls"):
                left = {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
                up = {"s": 0.75, "m": 0.5}[anchor[1]]
                length = self.length(text, size)
                x, y = at[0] - left * length, at[1] - up * size
                boxes.append((text, x, y, x + length, y + size))
                super().text(at, text, size, fill, anchor)

            def bold(self, at, text, size, fill):
                length = super().bold(at, text, size, fill)
                boxes.append((text, at[0], at[1] - 0.75 * size, at[0] + length, at[1]))
                return length

        self.pen = Recording


def drawn_texts(run):
    recorder = Texts()
    shown = curves.reward_curve(run)
    canvas = Image.new("RGB", (4, 4))
    height = chart._compose(shown, recorder.pen(canvas, 2))
    return recorder.boxes, height


def crowded_run():
    terms = [
        TermInfo(
            f"a reward with a long name, number {k}", "unit " * 40, 0.5, "maximize", 0.0, 1.0, k > 5
        )
        for k in range(8)
    ]
    return synthetic_run(
        terms,
        count=120,
        batch=16,
        score=lambda k, b, i: 10.0 ** (k - 3) * math.sin(i / 9 + b),
        quantile=lambda b, i: max(0.0, 0.5 + 0.5 * math.sin(i / 5 + b)),
        settings=lambda i: Settings(0.01 * (1 + i // 3), 1.0, (1.0,) * 6 + (0.0,) * 2),
        reason="a reason that takes many words " * 6,
        warnings=["A warning that is far longer than one line can hold. " * 5] * 3,
    )


@pytest.mark.parametrize("width", [512, 1024, 2048])
def test_the_chart_is_as_wide_as_asked_for(width):
    image = picture(synthetic_run(), width)
    assert image.mode == "RGB" and image.width == width
    assert 0.4 * width < image.height < width


def test_every_term_p_z_and_saturation_have_a_panel():
    terms = (BRIGHTNESS, WATCHED, SMALLER, AIMED)
    shown = curves.reward_curve(synthetic_run(terms))
    titles = [panel.title for panel in shown.panels]
    assert titles == [*(term.name for term in terms), "P(z), percentile", "saturated pixels"]
    assert [panel.unit for panel in shown.panels[:4]] == [term.unit for term in terms]
    roles = [panel.notes[0].text for panel in shown.panels[:4]]
    assert roles == [
        "maximize, weight 1",
        "watched, not optimized",
        "minimize, weight 2",
        "target 2.5, weight 1",
    ]


def test_the_header_says_iterations_seconds_reason_and_best():
    run = synthetic_run(count=4, reason="all 3 iterations done")
    shown = curves.reward_curve(run)
    assert shown.title == "3 iterations in 8.0 s"
    assert shown.lines == (
        "Ended: all 3 iterations done. Dot: the best iteration, 3.",
        "seed 7, cfg 3",
    )


def test_a_failure_is_told_once_as_a_warning():
    why = "Out of memory at iteration 5; the best before it is returned."
    shown = curves.reward_curve(synthetic_run(reason=why, warnings=[why]))
    assert shown.lines[0].startswith("Stopped early.") and why not in shown.lines[0]
    assert shown.warnings == (why,)


def test_the_best_iteration_of_every_image_is_marked_and_told():
    run = synthetic_run(count=6, batch=3, score=lambda k, b, i: -abs(i - b - 1))
    shown = curves.reward_curve(run)
    assert all(panel.marks == (1, 2, 3) for panel in shown.panels)
    assert "1 to 3" in shown.lines[0]


def test_gain_is_in_units_of_scale_and_in_the_direction_of_the_goal():
    run = synthetic_run(
        (SMALLER, AIMED), count=3, score=lambda k, b, i: [60_000 - 10_000 * i, 0.5 + i][k]
    )
    first, second = curves.reward_curve(run).panels[:2]
    assert first.notes[-1].text == "+1.0 x usual spread"
    assert second.notes[-1].text == "+2.0 x usual spread"
    assert second.guides == (2.5,)


def test_the_mean_is_drawn_over_the_images_of_a_batch():
    run = synthetic_run(count=3, batch=4, score=lambda k, b, i: b + i)
    panel = curves.reward_curve(run).panels[0]
    assert panel.lines == tuple((b, b + 1.0, b + 2.0) for b in range(4))
    assert panel.mean == (1.5, 2.5, 3.5)


def test_p_z_is_logarithmic_and_a_percentile_of_zero_stays_on_the_chart():
    run = synthetic_run(count=3, quantile=lambda b, i: [1.0, 0.1, 0.0][i])
    panel = next(p for p in curves.reward_curve(run).panels if p.title.startswith("P(z)"))
    assert panel.lines[0][:2] == pytest.approx((0.0, -1.0), abs=1e-6)
    assert panel.axis.low < panel.lines[0][2] < math.log10(1 / 1000)
    assert panel.notes[-1].text == "< 0.1 %" and panel.notes[-1].colour == chart.ORANGE


def test_the_worst_step_is_a_thin_line_where_it_was_measured():
    run = synthetic_run(count=3, batch=2, step_low=lambda b, i: [1.0, 0.1, 0.004][i] + 0.1 * b)
    panel = next(p for p in curves.reward_curve(run).panels if p.title.startswith("P(z)"))
    assert panel.thin == (pytest.approx((0.0, -1.0, math.log10(0.004)), abs=1e-6),)
    note = panel.notes[-1]
    assert (note.label, note.text, note.colour) == ("worst step", "0.4 %", chart.ORANGE)
    quiet = next(p for p in curves.reward_curve(synthetic_run()).panels if "P(z)" in p.title)
    assert all(math.isnan(value) for value in quiet.thin[0])
    assert all(note.label != "worst step" for note in quiet.notes)


def test_the_worst_step_is_in_the_picture():
    shown = curves.reward_curve(synthetic_run(step_low=lambda b, i: 0.05))
    without = tuple(replace(panel, thin=()) for panel in shown.panels)
    pictures = [chart.draw(c) for c in (shown, replace(shown, panels=without))]
    assert pictures[0].size == pictures[1].size
    assert pictures[0].tobytes() != pictures[1].tobytes()


def test_the_warning_zone_of_p_z_begins_where_noise_stops_being_typical():
    panel = curves.reward_curve(synthetic_run()).panels[1]
    (low, high, fill) = panel.bands[1]
    assert (high, fill) == (-2.0, chart.ORANGE_FILL) and low == panel.axis.low


def test_changed_settings_become_verticals_that_a_footnote_explains():
    def settings(i):
        return Settings(0.01 if i < 3 else 0.02, 1.0 if i < 5 else 2.5, (1.0 if i < 5 else 0.5,))

    shown = curves.reward_curve(synthetic_run(count=8, settings=settings))
    assert shown.changes == ((3, "a"), (5, "b"))
    assert shown.footnotes == (
        "a: iteration 3, learning rate 0.01 to 0.02",
        "b: iteration 5, gamma 1 to 2.5, weight of brightness 1 to 0.5",
    )


@pytest.mark.parametrize(
    ("meta", "marked"), [({"decay": "cosine"}, ()), ({"warmup": 3}, (4, 5)), ({}, (1, 2, 3, 4, 5))]
)
def test_a_learning_rate_on_its_schedule_is_no_changed_setting(meta, marked):
    run = synthetic_run(count=6, settings=lambda i: Settings(0.01 * (1 + i), 1.0, (1.0,)))
    shown = curves.reward_curve(replace(run, meta={**run.meta, **meta}))
    assert tuple(index for index, _ in shown.changes) == marked


def test_constant_settings_leave_no_verticals():
    shown = curves.reward_curve(synthetic_run())
    assert shown.changes == () and shown.footnotes == ()


@pytest.mark.parametrize("batch", [1, 16])
def test_a_run_of_one_record_is_a_dot(batch):
    run = synthetic_run(count=1, batch=batch)
    assert curves.reward_curve(run).title == "0 iterations in 2.0 s"
    assert count(picture(run), chart.BLUE) > 10


@pytest.mark.parametrize("level", [0.0, 0.3, -1e-9, 1e5, -123456789.0])
def test_a_constant_curve_lies_in_the_middle_of_its_panel(level):
    panel = curves.reward_curve(synthetic_run(score=lambda k, b, i: level)).panels[0]
    assert panel.axis.share(panel.mean[0]) == pytest.approx(0.5, abs=0.01)
    assert len(panel.axis.ticks) >= 1
    picture(synthetic_run(score=lambda k, b, i: level))


def test_a_hole_in_the_scores_interrupts_the_line_and_nothing_else():
    whole = synthetic_run(count=9, score=lambda k, b, i: i)
    holed = synthetic_run(count=9, score=lambda k, b, i: math.nan if i == 4 else i)
    blue = chart.BLUE
    assert 0 < count(picture(holed), blue) < count(picture(whole), blue)


def test_a_rising_score_is_drawn_rising():
    image = picture(synthetic_run(count=30, score=lambda k, b, i: i))
    blue = np.array(ImageColor.getrgb(chart.BLUE))
    near = np.abs(np.array(image).astype(int) - blue).sum(-1) <= 6
    near[:, : chart.LEFT] = False
    rows = [np.nonzero(near[:, x])[0].mean() for x in (200, 400, 600)]
    assert rows[0] > rows[1] + 10 > rows[2] + 20


def test_a_continued_run_keeps_its_iteration_numbers():
    shown = curves.reward_curve(synthetic_run(count=4, start=10))
    assert shown.x == (10, 11, 12, 13)
    assert shown.title.startswith("3 iterations")


def test_labels_never_overlap_and_never_leave_the_picture():
    for run in (crowded_run(), synthetic_run((BRIGHTNESS, WATCHED, AIMED), count=400)):
        boxes, height = drawn_texts(run)
        for text, left, top, right, bottom in boxes:
            inside = left >= 0 and top >= 0 and right <= chart.WIDTH and bottom <= height
            assert inside, text
        for i, (one, a0, b0, a1, b1) in enumerate(boxes):
            for other, c0, d0, c1, d1 in boxes[i + 1 :]:
                overlap = min(a1, c1) - max(a0, c0) > 0.5 and min(b1, d1) - max(b0, d0) > 1.5
                assert not (overlap and one and other), f"{one!r} over {other!r}"


def test_the_text_recorder_would_notice_an_overlap():
    recorder = Texts()
    pen = recorder.pen(Image.new("RGB", (4, 4)), 1)
    pen.text((10, 20), "one", 14, "black")
    pen.text((12, 22), "two", 14, "black")
    (_, a0, b0, a1, b1), (_, c0, d0, c1, d1) = recorder.boxes
    assert min(a1, c1) > max(a0, c0) and min(b1, d1) > max(b0, d0)


@pytest.mark.parametrize(
    ("rough", "step"), [(0.9, 1), (1.0, 1), (1.1, 2), (3, 5), (6, 10), (0.03, 0.05), (2e5, 2e5)]
)
def test_ticks_step_by_one_two_or_five(rough, step):
    assert chart_axis.nice_step(rough) == pytest.approx(step)


def test_tick_labels_are_as_fine_as_the_step():
    number = chart_axis.number
    assert number(0.30000001, 0.1) == "0.3"
    assert number(-1e-12, 0.2) == "0.0"
    assert number(120_000, 20_000) == "120,000"
    assert number(0.025, 0.005, percent=True) == "2.5 %"
    assert number(2.5e7, 5e6) == "2.5e+07"


def test_durations_read_well():
    words = [curves.duration(s) for s in (0.42, 9.97, 63, 252, 7500)]
    assert words == ["0.4 s", "10 s", "63 s", "4 min 12 s", "2 h 5 min"]
