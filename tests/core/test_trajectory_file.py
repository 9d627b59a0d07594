"""A run in a file: everything comes back to the bit, and whatever is no run is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_models import FakeReward, red, small_noise, small_problem, steady, wave
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyui_dno.dno_core import (
    NoRegularizer,
    Record,
    Recorder,
    Term,
    Trajectory,
    TrajectoryFileError,
    Typicality,
    load_trajectory,
    optimize,
    save_trajectory,
)
from comfyui_dno.dno_core.trajectories import atomic as atomic_room
from comfyui_dno.dno_core.trajectories.file import FORMAT
from comfyui_dno.dno_core.trajectories.plain import from_json, to_json


def recorded(count: int = 4, optimizer: str = "adam", **options: Any) -> Trajectory:
    terms = (Term(FakeReward(wave, name="wave", scale=2.0)), Term(FakeReward(red), watch=True))
    problem = small_problem(terms=terms)
    recorder = Recorder(problem.infos, **options)
    iterations = optimize(
        problem,
        small_noise(),
        steady(0.1, weights=(1.0, 0.0)),
        seed=0,
        optimizer=optimizer,
        regularizer=NoRegularizer(),
        typicality=Typicality(permutations=5),
    )
    for iteration in itertools.islice(iterations, count):
        recorder.add(iteration, iteration.latent)
    meta = {"seed": 2**64 - 1, "cfg": 0.1 + 0.2, "prompt": "a d\u00fcck", "seeds": [1, 2]}
    return recorder.finish("asked to", ["careful"], meta)


def assert_same(a: Trajectory, b: Trajectory) -> None:
    for item in dataclasses.fields(Trajectory):
        x, y = getattr(a, item.name), getattr(b, item.name)
        if item.name in ("latents", "images"):
            x, y = ([frames[i] for i in range(len(a.records))] for frames in (x, y))
            assert all(s.dtype == t.dtype and torch.equal(s, t) for s, t in zip(x, y, strict=True))
        elif isinstance(x, Tensor):
            assert x.dtype == y.dtype and torch.equal(x, y), item.name
        elif item.name == "optimizer_state":
            assert x.keys() == y.keys()
            assert all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)
        else:
            assert x == y, item.name


@pytest.mark.parametrize(("optimizer", "count"), [("adam", 4), ("sgd", 4), ("adam", 1)])
def test_a_saved_run_comes_back_to_the_bit(optimizer: str, count: int, tmp_path: Path) -> None:
    run = recorded(count, optimizer)
    assert (run.optimizer_state != {}) == (count > 1)
    file = tmp_path / "new folder" / "run.dno.safetensors"
    save_trajectory(run, file)
    assert_same(run, load_trajectory(file))


def test_other_tools_can_read_the_file(tmp_path: Path) -> None:
    run, file = recorded(), tmp_path / "run.safetensors"
    save_trajectory(run, file)
    tensors = load_file(file)
    assert torch.equal(tensors["last_noise"], run.last_noise)
    assert tensors["images"].shape == (4, *run.images[0].shape)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": FORMAT, "version": "2"}
    data = json.loads(tensors["run"].numpy().tobytes())
    assert data["records"][2]["index"] == 2 and data["terms"][0]["name"] == "wave"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_precision_keep_it(dtype: torch.dtype, tmp_path: Path) -> None:
    problem = small_problem()
    recorder = Recorder(problem.infos)
    for iteration in itertools.islice(optimize(problem, small_noise(), steady(), seed=0), 2):
        recorder.add(iteration, iteration.latent.to(dtype))
    run = recorder.finish("")
    save_trajectory(run, tmp_path / "run")
    assert_same(run, load_trajectory(tmp_path / "run"))


def test_a_run_that_lies_in_files_is_saved_and_loaded_frame_by_frame(tmp_path: Path) -> None:
    spilled = recorded(byte_cap=500, folder=tmp_path / "temp")
    assert len(list((tmp_path / "temp").iterdir())) > 4
    save_trajectory(spilled, tmp_path / "run")
    back = load_trajectory(tmp_path / "run", 500, tmp_path / "temp 2")
    assert len(list((tmp_path / "temp 2").iterdir())) > 4
    assert_same(spilled, back)


def test_a_deleted_picture_is_told_as_such_and_no_file_is_left(tmp_path: Path) -> None:
    run = recorded(byte_cap=0, folder=tmp_path / "temp")
    for file in (tmp_path / "temp").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="is gone"):
        save_trajectory(run, tmp_path / "out" / "run")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e22])
def test_every_double_survives_json(value: float) -> None:
    back = from_json(tuple[float, ...], to_json((value, 3)))
    assert back == (value, 3.0) and math.copysign(1, back[0]) == math.copysign(1, value)


def test_infinities_are_written_as_standard_json() -> None:
    text = to_json({"a": [math.inf, -math.inf, math.nan], "b": 1})
    assert json.loads(text) == {
        "a": [{"float": "inf"}, {"float": "-inf"}, {"float": "nan"}],
        "b": 1,
    }
    back = from_json(dict[str, Any], text)
    assert back["a"][:2] == [math.inf, -math.inf] and math.isnan(back["a"][2])


@pytest.mark.parametrize("depth", [400, 800, 100_000])
def test_nesting_without_end_is_read_or_refused(depth: int) -> None:
    text = '{"a": ' + "[" * depth + "]" * depth + "}"
    try:
        from_json(dict[str, Any], text.encode("utf-8"))
    except ValueError as error:
        assert "JSON" in str(error) and depth > 400


def test_what_is_not_plain_is_not_written() -> None:
    with pytest.raises(TypeError, match="Tensor"):
        to_json({"a": torch.ones(1)})
    with pytest.raises(TypeError, match="dict"):
        to_json({1: "a number as a key would come back as text"})


def test_a_file_from_before_a_field_was_added_still_loads(tmp_path: Path) -> None:
    """New fields of Record have defaults and come last."""

    @dataclasses.dataclass(frozen=True)
    class Newer(Record):
        later: tuple[float, ...] | None = None

    run = recorded(2)
    assert from_json(Newer, to_json(run.records[1])).later is None
    with pytest.raises(ValueError, match="'later', which only a newer version"):
        newer = Newer(**vars(run.records[1]), later=(0.5, 0.5))
        from_json(Record, to_json(newer))


class FullDisk:
    """A file that takes so many bytes and then raises what a full disk raises."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> None:
        self._room -= len(bytes(data))
        if self._room < 0:
            raise OSError(28, "No space left on device")
        self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def fill_disk_at(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open
    monkeypatch.setattr(
        atomic_room, "open", lambda *given: FullDisk(real(*given), room), raising=False
    )


@pytest.mark.parametrize("room", [0, 100, 3000, 9000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.dno.safetensors"
    save_trajectory(recorded(2), file)
    before = file.read_bytes()
    fill_disk_at(room, monkeypatch)
    with pytest.raises(TrajectoryFileError, match="No space left on device. Free some space") as e:
        save_trajectory(recorded(4), file)
    assert str(file) in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_before_the_new_name_leaves_nothing(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(atomic_room.os, step, fail)
    kind = TrajectoryFileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind):
        save_trajectory(recorded(2), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_file_replaces_it_whole(tmp_path: Path) -> None:
    save_trajectory(recorded(4), tmp_path / "run")
    shorter = recorded(2)
    save_trajectory(shorter, tmp_path / "run")
    assert_same(shorter, load_trajectory(tmp_path / "run"))


def tensors_and_text(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = load_file(file)
    return tensors, json.loads(tensors["run"].numpy().tobytes())


def rewritten(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor], dict[str, Any]], Any],
    metadata: dict[str, str] | None = None,
) -> Path:
    """A file of a good run, changed in one place and written by safetensors itself."""
    file = tmp_path / "changed.dno.safetensors"
    save_trajectory(recorded(3), file)
    tensors, data = tensors_and_text(file)
    text = change(tensors, data)
    text = json.dumps(data) if text is None else text
    if "run" in tensors:
        tensors["run"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    save_file(tensors, file, metadata or {"format": FORMAT, "version": "1"})
    return file


def refusal(file: Path) -> str:
    before = file.read_bytes()
    with pytest.raises(TrajectoryFileError) as error:
        load_trajectory(file)
    assert file.name in str(error.value), "the file is named"
    assert file.read_bytes() == before, "and left alone"
    assert str(error.value).count(". ") >= 1 and str(error.value).endswith(".")
    return str(error.value)


def set_path(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


NAN, INF = {"float": "nan"}, {"float": "inf"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("records",), [], "holds no run"),
        (("terms",), [], "holds no run"),
        (("best",), [], "holds no run"),
        (("best",), [0, 3], "best iteration"),
        (("best_noise_at",), [0, -1], "best iteration"),
        (("best",), [0, 0.5], "best"),
        (("records", 1, "scores", 0, 1), NAN, "NaN"),
        (("records", 1, "scores", 0, 1), INF, "infinite"),
        (("records", 1, "quantile"), [0.5], "1 numbers for 2 images"),
        (("records", 1, "noise_rms", 0), NAN, "NaN"),
        (("records", 1, "settings", "learning_rate"), NAN, "NaN"),
        (("records", 1, "scores"), [[0.0, 0.0]], "one score"),
        (("records", 1, "settings", "weights"), [1.0], "one weight"),
        (("records", 1, "index"), 7, "iteration 7"),
        (("records", 1, "index"), True, "True"),
        (("records", 1, "seconds"), "fast", "'fast'"),
        (("records", 1, "scores"), 5, "5"),
        (("records", 1), "text", "'text'"),
        (("records", 1, "surprise"), 1, "newer version"),
        (("surprise",), 1, "newer version"),
        (("terms", 0, "goal"), "explode", "'explode'"),
        (("terms", 0, "scale"), 0.0, "scale"),
        (("terms", 0, "watch"), 1, "1"),
        (("meta",), [], "meta"),
        (("warnings",), [3], "3"),
    ],
)
def test_a_value_that_cannot_be_is_named(
    path: tuple[Any, ...], value: Any, said: str, tmp_path: Path
) -> None:
    file = rewritten(tmp_path, lambda tensors, data: set_path(data, path, value))
    assert said in refusal(file)


def test_fewer_records_than_frames_are_refused(tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        data["records"].pop()
        data["best"] = data["best_noise_at"] = [0, 0]

    assert "for 2 iterations" in refusal(rewritten(tmp_path, drop))


def missing(name: str) -> Callable[..., None]:
    def drop(tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        del tensors[name]

    return drop


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    return lambda tensors, data: tensors.update({name: change(tensors[name]).contiguous()})


def holed(value: Tensor) -> Tensor:
    value = value.clone()
    value.view(-1)[3] = math.nan
    return value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (missing("latents"), "no 'latents'"),
        (missing("last_noise"), "no 'last_noise'"),
        (missing("run"), "no 'run'"),
        (changed("last_noise", holed), "'last_noise' holds NaN"),
        (changed("latents", holed), "'latents' holds NaN"),
        (changed("optimizer.exp_avg", holed), "'optimizer.exp_avg' holds NaN"),
        (changed("last_noise", lambda z: z[:, :1]), "for 2 images"),
        (changed("best_noise", lambda z: z[:2]), "different shapes"),
        (changed("last_noise", lambda z: z.to(torch.int32)), "int32"),
        (changed("optimizer.exp_avg", lambda z: z[:1]), "'optimizer.exp_avg' has shape"),
        (changed("images", lambda images: images.float()), "float32"),
        (changed("images", lambda images: images[..., :2]), "'images' has shape"),
        (changed("images", lambda images: images[:2]), "'images' has shape"),
        (changed("latents", lambda latents: latents[:, :1]), "'latents' has shape"),
        (lambda tensors, data: tensors.update(more=torch.ones(1)), "'more'"),
        (lambda tensors, data: "{cut", "JSON"),
        (lambda tensors, data: '{"a": NaN}', "JSON"),
        (lambda tensors, data: "[" * 100_000, "JSON"),
        (lambda tensors, data: "[]", "run is []"),
        (lambda tensors, data: "{}", "no 'terms'"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(
    change: Callable[..., Any], said: str, tmp_path: Path
) -> None:
    assert said in refusal(rewritten(tmp_path, change))


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_is_refused(share: float, tmp_path: Path) -> None:
    file = tmp_path / "cut.dno.safetensors"
    save_trajectory(recorded(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert "cut short" in refusal(file)


def test_changed_bytes_end_in_an_error_that_names_the_file_or_in_a_run(tmp_path: Path) -> None:
    """Header, JSON and data in turn; anything but the one error would be a hole."""
    file = tmp_path / "changed.dno.safetensors"
    save_trajectory(recorded(2), file)
    good = file.read_bytes()
    header, text = 8 + int.from_bytes(good[:8], "little"), good.rfind(b'{"terms"')
    dice, refused = random.Random(1), 0
    for place in 150 * [(0, 8), (8, header), (text, len(good)), (header, text)]:
        changed = bytearray(good)
        changed[dice.randrange(*place)] = dice.choice(b'0123456789"{}[],-.eN\x00\xff')
        file.write_bytes(changed)
        try:
            assert load_trajectory(file).batch == 2
        except TrajectoryFileError as error:
            assert file.name in str(error)
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "text", ['{"float": []}', '{"float": "1"}', "1e999", "9" * 400, "-9007199254740993", "[1.0]"]
)
def test_odd_numbers_are_no_floats_and_no_crash(text: str) -> None:
    try:
        assert from_json(float, text.encode()) == math.inf and text == "1e999"
    except ValueError as error:
        assert "run is" in str(error)


def test_a_picture_is_no_run(tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "duck.dno.safetensors"
    Image.new("RGB", (64, 64), "red").save(file, format="PNG")
    assert "no trajectory file" in refusal(file)


def test_another_safetensors_file_is_no_run(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"a": torch.ones(2)}, file)
    assert "something else" in refusal(file)
    save_file({"a": torch.ones(2)}, file, {"format": "pt"})
    assert "something else" in refusal(file)


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    newer = {"format": FORMAT, "version": "3"}
    assert "Update the pack" in refusal(rewritten(tmp_path, lambda *_: None, newer))
    for wrong in ("", "0", "-1", "one", "1.5"):
        odd = {"format": FORMAT, "version": wrong}
        assert "its version is" in refusal(rewritten(tmp_path, lambda *_: None, odd))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.dno.safetensors", tmp_path):
        with pytest.raises(TrajectoryFileError, match="is not there. Choose another"):
            load_trajectory(path)
