"""`run.py demo` and `run.py ui`: first light in a private ComfyUI."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .comfyui import cache_dir
from .environment import ROOT
from .server import PACK_NAME, ComfyServer, failure, make_base, unlink_pack
from .terminal import Bar, Problem, tail

WORKFLOW = ROOT / "workflows" / "api" / "first_light.json"
SAMPLER = "DNO_Sampler"
PICTURES = ("before", "after", "curve")


@contextlib.contextmanager
def private_base() -> Iterator[Path]:
    """A base directory for one run, removed afterwards."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="run-", dir=cache_dir()))
    try:
        make_base(base)
        yield base
    finally:
        unlink_pack(base)
        shutil.rmtree(base, ignore_errors=True)


def demo(python: Path, tree: Path, output: Path, gpu: bool) -> dict[str, Any]:
    """Run first light over HTTP; write three pictures and result.json into `output`.

    Returns what result.json holds. Raises Problem with what to do.
    """
    workflow = read_workflow()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with private_base() as base:
        log = output / "comfyui.log"
        with start_server(python, tree, base, log, cpu=not gpu) as server:
            entry = run_with_progress(server, workflow)
            if (message := failure(entry)) is not None:
                raise Problem(
                    f"The demo workflow failed in {message}\nThe whole log is in {log}.\n"
                    + tail(server.log_text())
                )
            save_pictures(server, workflow, entry, output)
            result = read_result(entry, workflow)
            result["seconds_total"] = round(time.monotonic() - started, 1)
            result["versions"] = versions(server)
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def read_workflow() -> dict[str, Any]:
    try:
        return dict(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise Problem(
            f"The demo's workflow {WORKFLOW} cannot be read ({error}). Restore the file from the "
            "repository."
        ) from error


def start_server(
    python: Path, tree: Path, base: Path, log: Path, cpu: bool, extra: tuple[str, ...] = ()
) -> ComfyServer:
    """A server that is about to start, with a bar; the caller enters it."""
    return _AnnouncedServer(python, tree, base, log, cpu, extra)


class _AnnouncedServer(ComfyServer):
    def __enter__(self) -> ComfyServer:
        print("Starting ComfyUI ...", flush=True)
        started = time.monotonic()
        super().__enter__()
        try:
            self._check_nodes()
            took = time.monotonic() - started
            print(f"ComfyUI is up ({took:.0f} s): {self.url}", flush=True)
        except BaseException:
            self.stop()
            raise
        return self

    def _check_nodes(self) -> None:
        if SAMPLER not in self.object_info(SAMPLER):
            raise Problem(
                "ComfyUI started without the DNO nodes. Its log says why; restore the pack's files "
                f"from the repository.\n{tail(self.log_text(), 40)}"
            )


def run_with_progress(server: ComfyServer, workflow: dict[str, Any]) -> dict[str, Any]:
    """Queue the workflow and draw the sampler's progress until it ends; its history entry."""
    events = server.events()
    try:
        with Bar("Optimizing noise".ljust(18)) as bar:
            prompt_id = server.prompt(workflow)
            while (entry := server.history(prompt_id)) is None:
                event = events.receive(timeout=1.0)
                if event is None and not server.is_alive():
                    return server.wait(prompt_id, timeout=1)
                if event is not None and event.get("type") == "progress_state":
                    for node, state in event["data"]["nodes"].items():
                        if _class(workflow, node) == SAMPLER and state["max"] > 0:
                            share = state["value"] / state["max"]
                            bar.update(0.98 * share, f"{time.monotonic() - bar.started:.0f} s")
            return entry
    except ConnectionError:
        return server.wait(prompt_id)
    finally:
        events.close()


def _class(workflow: dict[str, Any], node: str) -> str:
    return str(workflow.get(node, {}).get("class_type", ""))


def save_pictures(
    server: ComfyServer, workflow: dict[str, Any], entry: dict[str, Any], output: Path
) -> None:
    """Fetch before, after and curve: the SaveImage nodes whose file prefix ends in that word."""
    found = set()
    for node, outputs in entry["outputs"].items():
        prefix = str(workflow.get(node, {}).get("inputs", {}).get("filename_prefix", ""))
        name = re.split(r"[/_ -]", prefix)[-1]
        if name in PICTURES and outputs.get("images"):
            (output / f"{name}.png").write_bytes(server.image(outputs["images"][0]))
            found.add(name)
    if missing := set(PICTURES) - found:
        raise Problem(
            f"The run ended without the pictures {', '.join(sorted(missing))}. Restore the "
            "workflows folder from the repository."
        )


def read_result(entry: dict[str, Any], workflow: dict[str, Any]) -> dict[str, Any]:
    """The numbers the sampler put beside its outputs."""
    for node, outputs in entry["outputs"].items():
        if _class(workflow, node) == SAMPLER and outputs.get("dno"):
            return dict(outputs["dno"][0])
    raise Problem("The sampler reported no numbers. Restore the nodes folder from the repository.")


def versions(server: ComfyServer) -> dict[str, str]:
    system = server.system_stats()["system"]
    return {
        "pack": pack_version(),
        "comfyui": str(system["comfyui_version"]),
        "torch": str(system["pytorch_version"]),
        "python": str(system["python_version"]).split()[0],
    }


def pack_version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    return found.group(1) if found else "unknown"


def has_gpu(python: Path) -> bool:
    """True if that interpreter's torch sees an accelerator ComfyUI can use."""
    code = (
        "import sys, torch;"
        "sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def ui(python: Path, tree: Path, open_browser: bool) -> None:
    """Serve ComfyUI with the pack and open first light in the browser, until Ctrl-C."""
    base = cache_dir() / "ui"
    make_base(base)
    log = base / "comfyui.log"
    with start_server(python, tree, base, log, cpu=not has_gpu(python)) as server:
        page = f"{server.url}/?template=first_light&source={PACK_NAME}"
        print(f"Open {page}\nStop with Ctrl-C.", flush=True)
        if open_browser:
            webbrowser.open(page)
        while server.is_alive():
            time.sleep(0.5)
        raise Problem(f"ComfyUI ended. The end of its log says why.\n{tail(server.log_text())}")
