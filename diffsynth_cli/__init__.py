"""Restyle videos with Stable Diffusion and ControlNet, and remove flicker: the program, and its Python API.

    import diffsynth_cli as ds

    ds.run("job.json", overrides={"prompt": "winter, snow"})
    ds.smooth("original.mp4", "stylised.mp4", "smooth.mp4")

docs/python.md has more.
"""

from diffsynth_cli.cleaning import clean
from diffsynth_cli.health import doctor
from diffsynth_cli.jobs import export, report, run, status, verify
from diffsynth_cli.masks import mask
from diffsynth_cli.model_files import models
from diffsynth_cli.planning import plan
from diffsynth_cli.previews import preview
from diffsynth_cli.results import (
    CleanResult,
    DiffSynthWarning,
    DoctorResult,
    Finding,
    Health,
    JobPlan,
    JobStatus,
    MetricsResult,
    Mode,
    ModelFiles,
    Place,
    PlannedWork,
    PreviewCell,
    PreviewResult,
    Removable,
    RunResult,
    SmoothResult,
    VideoMetrics,
)
from diffsynth_cli.videos import ebsynth, metrics, smooth
from native import Backend
from stages.base.errors import DiffSynthError, UsageError
from stages.base.reporting import Reporter
from stages.codecs import Codec

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "CleanResult",
    "Codec",
    "DiffSynthError",
    "DiffSynthWarning",
    "DoctorResult",
    "Finding",
    "Health",
    "JobPlan",
    "JobStatus",
    "MetricsResult",
    "Mode",
    "ModelFiles",
    "Place",
    "PlannedWork",
    "PreviewCell",
    "PreviewResult",
    "Removable",
    "Reporter",
    "RunResult",
    "SmoothResult",
    "UsageError",
    "VideoMetrics",
    "clean",
    "doctor",
    "ebsynth",
    "export",
    "mask",
    "metrics",
    "models",
    "plan",
    "preview",
    "report",
    "run",
    "smooth",
    "status",
    "verify",
]
