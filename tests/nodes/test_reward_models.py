"""Reward Loader's model widgets: what they offer, what a choice stands for, what is missing."""

from __future__ import annotations

import asyncio
import json
import runpy
from pathlib import Path

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.rewards import Input, PixelReward, RewardError, Spec, register
from comfyui_dno.rewards.files.source import RemoteFile, Source
from comfyui_dno.tests.nodes.reward_prompts import loader, sink, value

FILE = Source("judge.pt", (RemoteFile("http://127.0.0.1:9/judge.pt"),), "MIT", "http://page/file")
FOLDER = Source(
    "tower",
    (
        RemoteFile("http://127.0.0.1:9/config.json", "config.json"),
        RemoteFile("http://127.0.0.1:9/model.safetensors", "model.safetensors"),
    ),
    "Apache-2.0",
    "http://page/folder",
)
BY_HAND = Source("by-hand.pt", (), "MIT", "http://page/by-hand")
FILE_INPUT = Input(
    "model",
    "model",
    FILE.name,
    "The file with the weights of the judge.",
    choices=("built in",),
    suffixes=(".pt", ".safetensors"),
    sources=(FILE, BY_HAND),
)
FOLDER_INPUT = Input(
    "tower", "model", FOLDER.name, "The folder of the tower.", folders=True, sources=(FOLDER,)
)


@pytest.fixture
def roots(rooms, tmp_path, monkeypatch):
    """Two model folders: ComfyUI's own, and one from extra_model_paths.yaml."""
    folders = [tmp_path / "own", tmp_path / "extra"]
    for folder in folders:
        folder.mkdir()
    paths = ([str(folder) for folder in folders], set())
    monkeypatch.setitem(rooms.folder_paths.folder_names_and_paths, "dno_rewards", paths)
    return folders


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")


@pytest.fixture
def judge(monkeypatch):
    """A registered reward with a model input of both sorts; what reached its `create`."""
    received = {}

    def create(model, clip_vision, precision="auto"):
        received.update(model=model, clip_vision=clip_vision)
        return PixelReward("judge", "mean", 1.0, lambda images: images.mean(dim=(1, 2, 3)))

    tower = Input("clip_vision", "clip_vision", None, "A CLIP_VISION in place of the model.")
    monkeypatch.setattr(rewards, "_registered", {})
    register(Spec("judge", "The judge", "mean", "For tests.", create, (FILE_INPUT, tower)))
    return received


def test_extra_model_paths_come_first_and_take_the_downloads(comfy, rooms, tmp_path, monkeypatch):
    from comfyui_dno.nodes.extension import DNOExtension

    monkeypatch.setattr(rooms.folder_paths, "folder_names_and_paths", {})
    (tmp_path / "disk").mkdir()
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path}\n  dno_rewards: disk\n", encoding="utf-8")
    reader = runpy.run_path(str(comfy.path / "utils" / "extra_config.py"))  # as main.py has it
    reader["load_extra_path_config"](str(config))
    asyncio.run(DNOExtension().on_load())
    own = Path(rooms.folder_paths.models_dir) / "dno_rewards"
    assert rooms.models.roots() == [tmp_path / "disk", own]


def test_known_models_are_offered_whether_they_are_there_or_not(rooms, roots):
    options = rooms.models.model_options(FILE_INPUT)
    download = "download judge.pt (MIT)"
    assert options == ["built in", "judge.pt", "by-hand.pt", download]
    fill(roots[0], "judge.pt", "mine.safetensors", "notes.txt")
    fill(roots[1], "deep/er/theirs.pt", "judge.pt")
    options = rooms.models.model_options(FILE_INPUT)
    assert options == [
        *("built in", "judge.pt", "by-hand.pt"),
        *("mine.safetensors", "deep/er/theirs.pt", download),
    ]


def test_folders_are_offered_where_they_hold_a_model_and_not_their_files(rooms, roots):
    fill(roots[0], "clip/config.json", "clip/model.safetensors", "empty/readme.md")
    fill(roots[1], "maker/other/open_clip_config.json", ".hidden/config.json")
    assert list(rooms.models.found_models(FOLDER_INPUT)) == ["clip", "maker/other"]
    assert list(rooms.models.found_models(FILE_INPUT)) == []


def test_a_loop_of_links_ends(rooms, roots):
    fill(roots[0], "a/judge.pt")
    (roots[0] / "a" / "again").symlink_to(roots[0], target_is_directory=True)
    assert "a/judge.pt" in rooms.models.found_models(FILE_INPUT)


def test_links_that_lead_nowhere_take_nothing_else_out_of_the_list(rooms, roots):
    fill(roots[0], "judge.pt", "ein Preis \u00e9.pt")
    (roots[0] / "itself.pt").symlink_to(roots[0] / "itself.pt")
    (roots[0] / "gone.pt").symlink_to(roots[0] / "deleted.pt")
    (roots[0] / "folder.pt").mkdir()
    assert set(rooms.models.found_models(FILE_INPUT)) == {"judge.pt", "ein Preis \u00e9.pt"}
    assert rooms.RewardLoader.GET_NODE_INFO_V1()["input"]


def test_a_choice_becomes_a_path_and_a_built_in_one_stays_as_it_is(run, roots, judge):
    fill(roots[1], "judge.pt", "sub/mine.pt")
    for choice, expected in {
        "built in": "built in",
        "judge.pt": str(roots[1] / "judge.pt"),
        "sub/mine.pt": str(roots[1] / "sub" / "mine.pt"),
        "download judge.pt (MIT)": str(roots[1] / "judge.pt"),
    }.items():
        assert run({"1": loader("judge", reward__model=choice), "2": sink(["1", 0])}).terms
        assert judge["model"] == expected


def test_a_missing_model_is_named_with_its_folder_and_its_source(run, roots, judge):
    done = run({"1": loader("judge", reward__model="judge.pt"), "2": sink(["1", 0])})
    assert not judge
    assert f"judge.pt is not in {roots[0]}" in done.error
    assert "Choose 'download judge.pt (MIT)' in the model widget" in done.error
    assert "http://page/file" in done.error


def test_a_model_that_can_only_be_had_by_hand_offers_no_download(rooms, roots):
    with pytest.raises(RewardError, match="http://page/by-hand"):
        rooms.models.model_path(FILE_INPUT, "by-hand.pt", "The judge", lambda *_: None)
    fill(roots[0], "by-hand.pt")
    path = rooms.models.model_path(FILE_INPUT, "by-hand.pt", "The judge", lambda *_: None)
    assert path == str(roots[0] / "by-hand.pt")


def test_an_incomplete_folder_is_handed_on_for_the_loader_to_say_what_it_lacks(rooms, roots):
    fill(roots[0], "tower/config.json")
    fill(roots[1], "tower/config.json", "tower/model.safetensors")
    complete = rooms.models.model_path(FOLDER_INPUT, "tower", "x", lambda *_: None)
    assert complete == str(roots[1] / "tower")
    (roots[1] / "tower" / "model.safetensors").unlink()
    assert rooms.models.located(FOLDER_INPUT, "tower") == roots[0] / "tower"
    assert rooms.models.located(FOLDER_INPUT, "download tower (Apache-2.0)") is None


def test_a_download_choice_downloads_once_into_the_first_folder(run, roots, judge, monkeypatch):
    from comfyui_dno.nodes import reward_models

    asked = []

    def download(source, root, report):
        asked.append((source, root))
        report(3, 7)
        fill(root, source.name)
        return root / source.name

    monkeypatch.setattr(reward_models, "download", download)
    prompt = {
        "1": loader("judge", reward__model="download judge.pt (MIT)"),
        "2": sink(["1", 0]),
    }
    assert run(prompt).terms and run(prompt).terms
    assert asked == [(FILE, roots[0])]
    assert judge["model"] == str(roots[0] / "judge.pt")


def test_a_cancel_ends_a_download(run, roots, judge, monkeypatch):
    import comfy.model_management as management

    from comfyui_dno.nodes import reward_models
    from comfyui_dno.rewards.heartbeat import heartbeat

    reached = []

    def download(source, root, report):
        management.interrupt_current_processing()
        heartbeat()
        reached.append(source)

    monkeypatch.setattr(reward_models, "download", download)
    choice = "download judge.pt (MIT)"
    done = run({"1": loader("judge", reward__model=choice), "2": sink(["1", 0])})
    assert done.terms is None and done.error is None and not reached


def test_a_connected_clip_vision_stands_in_for_the_model_which_is_not_looked_for(
    run, rooms, roots, judge, tmp_path
):
    import comfy.clip_vision

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "image_size": 14, "patch_size": 7, "projection_dim": 6}
    sizes |= {"num_channels": 3, "hidden_act": "gelu", "model_type": "clip_vision_model"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(sizes), encoding="utf-8")
    with torch.inference_mode():
        rooms.values["vision"] = comfy.clip_vision.ClipVisionModel(str(config))
    node = loader("judge", reward__model="judge.pt", reward__clip_vision=["v", 0])
    assert run({"v": value("vision"), "1": node, "2": sink(["1", 0])}).terms
    assert judge["clip_vision"].width == 6 and judge["model"] == "judge.pt"


def test_the_fingerprint_follows_the_files_and_never_downloads(rooms, roots, judge, monkeypatch):
    from comfyui_dno.nodes import reward_models

    def download(*_):
        raise AssertionError("asking for the fingerprint downloaded")

    monkeypatch.setattr(reward_models, "download", download)

    def fingerprint(choice):
        return rooms.RewardLoader.fingerprint_inputs(reward={"reward": "judge", "model": choice})

    assert fingerprint("download judge.pt (MIT)") == fingerprint("built in") == []
    fill(roots[0], "judge.pt")
    first = fingerprint("download judge.pt (MIT)")
    assert first and first == fingerprint("judge.pt")
    (roots[0] / "judge.pt").write_bytes(b"other weights")
    assert fingerprint("judge.pt") != first
    assert fingerprint(None) == rooms.RewardLoader.fingerprint_inputs(reward=None) == []


def test_listing_the_rewards_loads_no_model(rooms, roots, judge, monkeypatch):
    fill(roots[0], "judge.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a schema loaded weights"))
    rooms.RewardLoader.GET_NODE_INFO_V1()
    assert not judge


def test_a_transfer_says_how_far_it_is():
    from comfyui_dno.nodes.comfy_bridge.transfers import transfer_line

    assert transfer_line(1_250_000_000, 3_940_000_000) == "downloading: 1.25 of 3.94 GB"
    assert transfer_line(500_000, 3_700_000) == "downloading: 0.50 of 3.70 MB"
    assert transfer_line(2_000_000, 0) == "downloading: 2.00 MB"
