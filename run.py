"""Direct Noise Optimization for ComfyUI: one command shows it, one tests it, one opens it.

    python run.py demo [--output DIR]     a picture that climbs its reward, in a real ComfyUI
    python run.py test [pytest arguments] the tests; --comfyui VERSION or all: against others
    python run.py ui                      the same workflow in the browser
    python run.py bench [--quick]         the benchmarks; --gpu: what only a GPU shows

Each command does its own set-up. Python 3.10 or newer is all it needs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("Python 3.10 or newer is needed. Install it, then start run.py with it.")

from launcher import comfyui, demo, environment
from launcher.terminal import Problem


def ready(group: str) -> tuple[Path, Path]:
    """(interpreter, ComfyUI tree) fit for group "run" or "test", made if they are missing.

    The user's own ComfyUI runs in the interpreter that started us if that one is complete; nothing
    is ever installed into it.
    """
    tree = comfyui.own_tree()
    if tree is not None:
        comfyui.check_version(tree)
        if environment.is_complete(sys.executable, group):
            return Path(sys.executable), tree
    python = environment.prepare(group)
    return python, tree or comfyui.fetch(python)


def run_demo(output: Path, gpu: bool) -> int:
    python, tree = ready("run")
    result = demo.demo(python, tree, output.absolute(), gpu)
    print(
        f"\nReward {result['reward_before']:.3f} -> {result['reward_after']:.3f} in "
        f"{result['iterations']} iterations, {result['seconds']:.0f} s.\n"
        f"Percentile of P(z) among plain samples: {result['p_z_percentile_before']:.0f} -> "
        f"{result['p_z_percentile_after']:.0f}.\n"
        f"See before.png, after.png, curve.png and result.json in {output.absolute()}"
    )
    return 0


def run_tests(arguments: list[str], version: str) -> int:
    """The tests, against the ComfyUI of `ready`, a pinned version, or "all" of them in turn."""
    if not version:
        python, tree = ready("test")
        return pytest_against(python, tree, arguments)
    python = environment.prepare("test")
    codes = {}
    for each in comfyui.SOURCES if version == "all" else (version,):
        tree = comfyui.fetch(python, each)
        print(f"\nThe tests against ComfyUI {each}", flush=True)
        codes[each] = pytest_against(python, tree, arguments)
    print("\n" + "\n".join(f"ComfyUI {each}: {verdict(code)}" for each, code in codes.items()))
    return max(codes.values())


def verdict(code: int) -> str:
    return "failed" if code else "passed"


def pytest_against(python: Path, tree: Path, arguments: list[str]) -> int:
    settings = dict(os.environ, COMFYUI_PATH=str(tree), OMP_NUM_THREADS="1")
    command = [str(python), "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=environment.ROOT, env=settings).returncode


def run_benchmarks(arguments: list[str], gpu: bool) -> int:
    python, tree = ready("test")
    script = environment.ROOT / "benchmarks" / ("gpu.py" if gpu else "bench.py")
    settings = dict(os.environ, COMFYUI_PATH=str(tree))
    return subprocess.run([str(python), str(script), *arguments], env=settings).returncode


def run_ui(open_browser: bool) -> int:
    python, tree = ready("run")
    demo.ui(python, tree, open_browser)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("demo", help="run first light and write its three pictures")
    show.add_argument("--output", type=Path, default=Path("dno-demo"), metavar="DIR")
    show.add_argument("--gpu", action="store_true", help="use the GPU (default: the CPU)")
    tests = commands.add_parser(
        "test",
        help="run the tests; arguments go to pytest",
        add_help=False,
        allow_abbrev=False,
    )
    tests.add_argument("--comfyui", choices=[*comfyui.SOURCES, "all"], default="")
    page = commands.add_parser("ui", help="open first light in the browser")
    page.add_argument("--no-browser", action="store_true", help="only print the address")
    bench = commands.add_parser(
        "bench",
        help="run the benchmarks; arguments go to benchmarks/bench.py, or to gpu.py",
        add_help=False,
        allow_abbrev=False,
    )
    bench.add_argument("--gpu", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command not in ("test", "bench"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    passed_on = {"test": without(arguments[1:], "--comfyui"), "bench": rest}
    known.rest = passed_on.get(known.command, [])
    return known


def without(arguments: list[str], option: str) -> list[str]:
    """The arguments but for one option and its value, in their order."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(option + "="):
            kept.append(argument)
        skip = argument == option and not skip
    return kept


def stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    chosen = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may lack a letter of pip's output
            stream.reconfigure(errors="replace")
    try:
        if chosen.command == "demo":
            return run_demo(chosen.output, chosen.gpu)
        if chosen.command == "test":
            return run_tests(chosen.rest, chosen.comfyui)
        if chosen.command == "bench":
            return run_benchmarks(chosen.rest, chosen.gpu)
        return run_ui(not chosen.no_browser)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{error}. Repair that, then run the same command again.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
