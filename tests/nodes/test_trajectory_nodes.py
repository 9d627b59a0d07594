from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from comfyui_dno.tests.nodes.synthetic_run import BRIGHTNESS, WATCHED, synthetic_run


@pytest.fixture(scope="module")
def rooms(comfy):
    from comfyui_dno.nodes import trajectory_nodes

    return trajectory_nodes


@pytest.fixture
def said(rooms, monkeypatch):
    """What the node "7" wrote on itself."""
    lines: dict[str, list[str]] = {"7": []}
    monkeypatch.setattr(rooms, "send_text", lambda line, node_id: lines[node_id].append(line))
    return lines["7"]


def execute(node, *args):
    """Run a node as ComfyUI does, under inference mode and on a copy of the class."""
    from comfy_api.internal import make_locked_method_func
    from comfy_api.latest import io

    node.GET_SCHEMA()
    copy = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    names = [item.id for item in node.SCHEMA.inputs]
    with torch.inference_mode():
        call = make_locked_method_func(node, "execute", copy)
        return call(**dict(zip(names, args, strict=False)))


def test_every_input_and_output_has_a_tooltip_that_helps(rooms):
    for node in (rooms.PickIteration, rooms.RewardCurve):
        schema = node.GET_SCHEMA()
        assert len(schema.description) > 50 and schema.search_aliases
        for item in (*schema.inputs, *schema.outputs):
            assert len(item.tooltip or "") > 20, f"{node.__name__}.{item.id}"


def test_pick_iteration_gives_the_latent_and_the_scored_image(rooms, said):
    latent, image = execute(rooms.PickIteration, synthetic_run(), 3).args
    assert latent["samples"].shape == (1, 4, 2, 2) and (latent["samples"] == 3).all()
    assert image.shape == (1, 16, 16, 3) and image.dtype == torch.float32
    assert torch.equal(image, torch.full_like(image, 48) / 255)


def test_a_picture_picked_without_sampling_again_carries_the_changes_of_its_run(rooms, said):
    from dataclasses import replace

    from comfyui_dno.nodes.recording import record_run

    run = replace(synthetic_run(), meta={"changes": "[1]"})
    prompt = {
        "3": {"class_type": "DNO_Sampler", "inputs": {"changes": ""}},
        "7": {"class_type": "DNO_PickIteration", "inputs": {"trajectory": ["3", 2], "index": 1}},
        "8": {"class_type": "DNO_LoadTrajectory", "inputs": {}},
    }
    workflow = {"nodes": [{"id": 3, "type": "DNO_Sampler", "widgets_values": []}]}
    hidden = SimpleNamespace(unique_id="7", prompt=prompt, extra_pnginfo={"workflow": workflow})
    record_run(hidden, run)
    assert prompt["3"]["inputs"] == {"changes": "[1]"}
    assert "[1]" in hidden.extra_pnginfo["workflow"]["nodes"][0]["widgets_values"]

    prompt["7"]["inputs"]["trajectory"] = ["8", 0]
    record_run(hidden, run)
    assert prompt["8"]["inputs"] == {}


def test_minus_one_is_the_best_of_every_image(rooms, said):
    run = synthetic_run(count=6, batch=3, score=lambda k, b, i: -abs(i - b - 1))
    latent, image = execute(rooms.PickIteration, run, -1).args
    assert latent["samples"][:, 0, 0, 0].tolist() == pytest.approx([1.0, 2.01, 3.02])
    assert (image[:, 0, 0, 0] * 255).round().tolist() == [16, 33, 50]
    assert said[0].startswith("best iteration: 1, 2, 3\n")


def test_another_index_is_the_same_iteration_for_the_whole_batch(rooms, said):
    run = synthetic_run(batch=3)
    latent, _ = execute(rooms.PickIteration, run, 0).args
    assert latent["samples"][:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.01, 0.02])
    assert said[0].startswith("iteration 0 of 4\n")


def test_beyond_the_end_is_the_last_iteration_and_the_node_says_so(rooms, said):
    latent, _ = execute(rooms.PickIteration, synthetic_run(), 99).args
    assert (latent["samples"] == 4).all()
    assert said[0].startswith("iteration 4, the last of this run (there is no iteration 99)\n")


def test_the_index_is_the_iteration_number_also_of_a_continued_run(rooms, said):
    run = synthetic_run(count=4, start=10)
    taken = [execute(rooms.PickIteration, run, i).args[0]["samples"].max().item() for i in (12, 3)]
    assert taken == [12, 10]
    assert "the first of this run" in said[1]


def test_the_node_tells_scores_and_the_percentile_of_p_z(rooms, said):
    run = synthetic_run((BRIGHTNESS, WATCHED), batch=2, quantile=lambda b, i: 0.04 + 0.3 * b)
    execute(rooms.PickIteration, run, 2)
    assert said == ["iteration 2 of 4\nbrightness 0.2  clip_score 0.2\nP(z) percentile 4.0 %"]


def test_picking_changes_nothing_in_the_trajectory(rooms, said):
    run = synthetic_run(batch=2)
    before = [(run.latents[i], run.images[i]) for i in range(5)]
    latent, image = execute(rooms.PickIteration, run, 2).args
    with torch.inference_mode():
        latent["samples"].add_(100)
        image.zero_()
    for i, (latents, images) in enumerate(before):
        assert torch.equal(run.latents[i], latents) and torch.equal(run.images[i], images)


def test_a_picked_image_is_saved_as_the_very_pixels_that_were_scored():
    """ComfyUI's SaveImage multiplies by 255 and cuts off the fraction."""
    levels = torch.arange(256, dtype=torch.uint8)
    image = levels.to(torch.float32) / 255
    assert torch.equal((255.0 * image).to(torch.uint8), levels)


def test_a_deleted_frame_is_told_in_two_sentences(rooms, said):
    class Gone:
        def __getitem__(self, index):
            raise FileNotFoundError("The picture of iteration 2 is gone. Run the sampler again.")

    from dataclasses import replace

    run = replace(synthetic_run(), images=Gone())
    with pytest.raises(FileNotFoundError, match="is gone"):
        execute(rooms.PickIteration, run, 2)


def test_both_nodes_show_their_image_and_run_without_a_node_behind_them(rooms, said):
    for node in (rooms.PickIteration, rooms.RewardCurve):
        done = execute(node, synthetic_run())
        assert node.GET_SCHEMA().is_output_node
        (shown,) = done.ui.as_dict()["images"]
        assert shown["filename"].endswith(".png")


def test_reward_curve_gives_an_image_that_can_be_saved(rooms, said):
    (image,) = execute(rooms.RewardCurve, synthetic_run(batch=2), 1024).args
    assert image.dtype == torch.float32 and image.shape[0] == 1
    assert image.shape[2:] == (1024, 3)
    assert 0 <= image.min() and image.max() == 1


def test_reward_curve_is_drawn_at_the_width_asked_for(rooms, said):
    assert execute(rooms.RewardCurve, synthetic_run(), 640).args[0].shape[2] == 640


def test_the_schemas_are_json(rooms):
    import json

    for node in (rooms.PickIteration, rooms.RewardCurve):
        info = SimpleNamespace(**json.loads(json.dumps(node.GET_NODE_INFO_V1())))
        assert info.output_node and "DNO_TRAJECTORY" in str(info.input)


def redrawn_run():
    """Five iterations whose last one was drawn again at full quality, a little less bright."""
    from comfyui_dno.dno_core import Redraw

    run = synthetic_run()
    redraw = Redraw(
        winners=(4,),
        taken=(True,),
        before=((-0.05,),),
        after=((0.3125,),),
        seconds=1.0,
        latents=torch.tensor([-1.0, -2.0]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 2, 2),
        images=torch.tensor([5, 6], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 1, 32, 32, 3),
    )
    return run.with_redraw(redraw)


@pytest.mark.parametrize(("index", "level", "value"), [(-1, 6, -2), (0, 5, -1), (2, 32, 2)])
def test_pick_iteration_gives_result_and_first_picture_at_full_quality(
    rooms, said, index, level, value
):
    latent, image = execute(rooms.PickIteration, redrawn_run(), index).args
    assert (latent["samples"] == value).all()
    assert torch.equal(image, torch.full_like(image, level) / 255)
    assert ("drawn at full quality" in said[0]) == (index < 1)
    assert ("as it was in the run" in said[0]) == (index == 2)


def test_the_chart_says_what_the_result_scores_at_full_quality(rooms):
    from comfyui_dno.nodes.curves import reward_curve

    line = "At full quality, from the first picture to the result: brightness -0.05 to 0.312."
    assert line in reward_curve(redrawn_run()).lines
    assert not any("full quality" in line for line in reward_curve(synthetic_run()).lines)
    plain, more = (
        execute(rooms.RewardCurve, run()).args[0] for run in (synthetic_run, redrawn_run)
    )
    assert more.shape[1] > plain.shape[1], "a line of its own"


def test_load_trajectory_says_that_the_result_is_at_full_quality(comfy):
    from comfyui_dno.nodes.trajectory_file_nodes import described

    assert "the result is drawn at full quality" in described(redrawn_run())
    assert "full quality" not in described(synthetic_run())
