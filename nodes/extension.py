"""What the pack offers ComfyUI."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from .advanced_sampler_node import SamplerAdvanced
from .comfy_bridge.progress import prompt_server
from .demo_nodes import DemoModel
from .estimator_node import ZOGradientEstimator
from .live import routes
from .regularizer_node import ProbabilityRegularizer
from .reward_loader import RewardLoader
from .reward_mix import RewardMix
from .reward_models import FOLDER_TYPE
from .sampler_node import Sampler
from .stop_node import StopRules
from .trajectory_file_nodes import LoadTrajectory, SaveTrajectory
from .trajectory_nodes import PickIteration, RewardCurve


class DNOExtension(ComfyExtension):
    async def on_load(self) -> None:
        folder = Path(folder_paths.models_dir) / FOLDER_TYPE
        folder_paths.add_model_folder_path(FOLDER_TYPE, str(folder))
        server = prompt_server()
        if server is not None:
            routes.register(server.routes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            Sampler,
            SamplerAdvanced,
            RewardLoader,
            RewardMix,
            ProbabilityRegularizer,
            ZOGradientEstimator,
            StopRules,
            PickIteration,
            RewardCurve,
            SaveTrajectory,
            LoadTrajectory,
            DemoModel,
        ]
