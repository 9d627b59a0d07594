"""Direct Noise Optimization: the method, in plain PyTorch.

Tang et al., "Inference-Time Alignment of Diffusion Models with Direct Noise Optimization",
ICML 2025 (arXiv 2405.18881). Start at `optimize`; the words are those of the paper: noise z,
the map M(z), reward, probability regularizer, P(z).
"""

from .check import GradientMismatch, verify_gradient
from .estimators.gradient import Auto, Backpropagation, GradientEstimator, require_gradients
from .estimators.probes import WideMap
from .estimators.zeroth_order import Hybrid1, Hybrid2, ZoSgd
from .light_history import lights_of_run
from .lights import warning_lights
from .loop import Iteration, Part, Settings, Update, optimize
from .noise_map.coarse import CoarseMap, Coarsening, coarse_sigmas
from .noise_map.gradient_modes import EXACT, GradientMode, ModalMap
from .noise_map.late import LateMap, held_noises, late_begin
from .noise_map.sampler import Denoiser, NoiseMap, Path, SamplerMap, sample, sweep, vjp
from .noise_map.steps import Step, ddim_steps, flow_steps, noise_count, vp_sigmas
from .objective import Reward, Term, TermInfo, climbed, objective, weights_of
from .optimizers import OPTIMIZERS, NoiseOptimizer
from .probability.norms import NormRegularizer, SphereProjection
from .probability.regularizers import NoRegularizer, PermutationRegularizer, Regularizer
from .probability.spectral import SpectralWhitening
from .probability.typicality import TYPICAL, Typicality, TypicalityReading, null_distribution
from .problem import Decoder, Evaluation, FunctionDecoder, NonFinite, Problem
from .schedule import DECAYS, learning_rate_at
from .screening import Screening, screen
from .stop import (
    StopChoice,
    StopRule,
    after_iterations,
    after_seconds,
    at_target,
    first_reason,
    on_plateau,
    when_untypical,
    when_watched_falls,
)
from .trajectories.continuation import NotTheSameRun
from .trajectories.file import TrajectoryFileError, load_trajectory, save_trajectory
from .trajectories.redraw import Redraw
from .trajectories.trajectory import Frames, Record, Recorder, Trajectory, best_iterations

__all__ = [
    "DECAYS",
    "EXACT",
    "OPTIMIZERS",
    "TYPICAL",
    "Auto",
    "Backpropagation",
    "CoarseMap",
    "Coarsening",
    "Decoder",
    "Denoiser",
    "Evaluation",
    "Frames",
    "FunctionDecoder",
    "GradientEstimator",
    "GradientMismatch",
    "GradientMode",
    "Hybrid1",
    "Hybrid2",
    "Iteration",
    "LateMap",
    "ModalMap",
    "NoRegularizer",
    "NoiseMap",
    "NoiseOptimizer",
    "NonFinite",
    "NormRegularizer",
    "NotTheSameRun",
    "Part",
    "Path",
    "PermutationRegularizer",
    "Problem",
    "Record",
    "Recorder",
    "Redraw",
    "Regularizer",
    "Reward",
    "SamplerMap",
    "Screening",
    "Settings",
    "SpectralWhitening",
    "SphereProjection",
    "Step",
    "StopChoice",
    "StopRule",
    "Term",
    "TermInfo",
    "Trajectory",
    "TrajectoryFileError",
    "Typicality",
    "TypicalityReading",
    "Update",
    "WideMap",
    "ZoSgd",
    "after_iterations",
    "after_seconds",
    "at_target",
    "best_iterations",
    "climbed",
    "coarse_sigmas",
    "ddim_steps",
    "first_reason",
    "flow_steps",
    "held_noises",
    "late_begin",
    "learning_rate_at",
    "lights_of_run",
    "load_trajectory",
    "noise_count",
    "null_distribution",
    "objective",
    "on_plateau",
    "optimize",
    "require_gradients",
    "sample",
    "save_trajectory",
    "screen",
    "sweep",
    "verify_gradient",
    "vjp",
    "vp_sigmas",
    "warning_lights",
    "weights_of",
    "when_untypical",
    "when_watched_falls",
]
