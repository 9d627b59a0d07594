"""Doing the units: each is one file, written when it is done; a killed command goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .curves import Curve, record
from .files import write_atomically, write_text
from .judging import Judge
from .plan import Unit
from .setting import Bench, Lab, climbed

_AT_WORK: dict[str, Any] = {}
"""What a process keeps from unit to unit: its lab and its judge."""


class Units:
    """The finished units of `folder`, and the processes that make the missing ones.

    One worker works in this process; several are processes of one thread each. To be closed by
    `with`.
    """

    def __init__(self, folder: Path, workers: int = 1, plain_samples: int = 16) -> None:
        self._folder = folder
        self._start = (folder, plain_samples)
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, spawn, _start_worker, self._start)

    def __enter__(self) -> Units:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def do(self, units: Iterable[Unit]) -> dict[str, str]:
        """Make what is missing; returns what failed: unit name -> the error in a line."""
        missing = {unit.name: unit for unit in units if not self.path(unit).is_file()}
        failed: dict[str, str] = {}
        for done, (unit, error) in enumerate(self._done(list(missing.values())), 1):
            if error:
                failed[unit.name] = error
            line = f"{done}/{len(missing)} {describe(unit)}: {error or 'done'}"
            print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)
        return failed

    def _done(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, str]]:
        if self._pool is None:
            if units:
                _start(*self._start)
            for unit in units:
                yield unit, _try(unit)
            return
        futures = {self._pool.submit(_try, unit): unit for unit in units}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def path(self, unit: Unit) -> Path:
        return self._folder / f"{unit.name}.json"

    @property
    def results(self) -> Path:
        """Where the tables of these units are."""
        return self._folder.parent

    def curves(self, units: Iterable[Unit]) -> list[Curve] | None:
        """The curves of these units, or None while one is missing."""
        found: list[Curve] = []
        for unit in units:
            if not self.path(unit).is_file():
                return None
            content = json.loads(self.path(unit).read_text(encoding="utf-8"))
            found += [Curve(**curve) for curve in content["curves"]]
        return found

    def pictures(self, unit: Unit) -> Path:
        """First pictures over last ones, a column a case."""
        return self.path(unit).with_suffix(".png")


def describe(unit: Unit) -> str:
    recipe = unit.recipe
    settings = {**recipe.options, "eta": recipe.eta, "reward": recipe.reward, "knob": unit.knob}
    text = json.dumps(settings).replace('"', "").strip("{}")
    return f"{recipe.method} {text}, {len(unit.cases)} cases"


def _start_worker(folder: Path, plain_samples: int) -> None:
    """As `_start`, in a process that ends with the command, however that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _start(folder, plain_samples)


def _start(folder: Path, plain_samples: int) -> None:
    torch.set_num_threads(1)
    if _AT_WORK.get("folder") != folder:
        lab = _AT_WORK.get("lab") or Lab()
        judge = Judge(lab, folder / "plain", plain_samples)
        _AT_WORK.update(folder=folder, lab=lab, judge=judge)


def _try(unit: Unit) -> str:
    try:
        run(unit, _AT_WORK["lab"], _AT_WORK["judge"], _AT_WORK["folder"])
    except Exception as error:  # one broken arm must not cost the others their night
        return f"{type(error).__name__}: {error}"
    return ""


def run(unit: Unit, lab: Lab, judge: Judge, folder: Path) -> None:
    """Do one unit and write its file (and a strip of pictures beside it)."""
    recipe = unit.recipe
    module, function = recipe.method.rsplit(".", 1)
    method = getattr(import_module(f".{module}", __package__), function)
    judge.prepare(unit.cases)
    terms = climbed(recipe.reward, unit.cases, **recipe.reward_options)

    def work(bench: Bench) -> tuple[list[Curve], list[Tensor]]:
        run = method(bench, unit.knob, recipe.iterations, **recipe.options)
        return record(run, bench, judge)

    curves, pictures = lab.at_bench(
        unit.cases, terms, work, eta=recipe.eta, steps=recipe.steps, cfg=recipe.cfg
    )
    content = {"unit": asdict(unit), "curves": [curve.as_dict() for curve in curves]}
    path = folder / f"{unit.name}.json"
    write_atomically(path.with_suffix(".png"), lambda part: _strip(pictures).save(part))
    write_text(path, json.dumps(content) + "\n")


def _strip(rows: Sequence[Tensor]) -> Image.Image:
    pixels = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    levels = (pixels.clamp(0, 1) * 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
