"""Nodes of an API prompt around Reward Loader."""

from __future__ import annotations

from typing import Any


def loader(reward: str, **inputs: Any) -> dict[str, Any]:
    """A Reward Loader; `reward__model` stands for the input "reward.model"."""
    values = {"reward": reward, "weight": 1.0, "goal": "maximize", "target": 0.0}
    values |= {"watch_only": False} | {k.replace("__", "."): v for k, v in inputs.items()}
    return {"class_type": "DNO_RewardLoader", "inputs": values}


def sink(link: list[Any]) -> dict[str, Any]:
    """Catches the reward."""
    return {"class_type": "DNO_TestSink", "inputs": {"reward": link}}


def value(key: str) -> dict[str, Any]:
    """Gives what the test has put into `rooms.values` under that key."""
    return {"class_type": "DNO_TestValue", "inputs": {"key": key}}
