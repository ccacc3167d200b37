"""Options of the smoothers that DiffSynth published: every option declared once, with type, bounds and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.base.mistakes import Strict
from stages.base.numbers import Count, Offset

# Keys of DiffSynth's smoothers that mean nothing here: programs, folders, cards, processes, a choice of engines.
OBSOLETE_KEYS = ("bin_path", "cache_path", "engine_name", "gpu_id", "n_jobs", "num_iter", "threads_per_block")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


PatchSize = Annotated[int, Field(ge=3, le=31), AfterValidator(_odd)]
EnhanceFactor = Annotated[float, Field(ge=-1000, le=1000)]


class SmootherConfig(Strict):
    postprocessing: dict[Literal["contrast", "sharpness", "color", "brightness"], EnhanceFactor] = Field(
        default_factory=dict
    )
    """Pillow's ImageEnhance factors (1 = unchanged), applied in the order given after smoothing."""


class PatchOptions(Strict):
    """How frames are carried onto each other."""

    patch_size: PatchSize = 21
    """Side of the patches in pixels, odd."""
    guide_weight: float = Field(100.0, ge=0, le=1e6)
    """Weight of differences between the guides; those between the styles have weight 1."""


class EbsynthConfig(PatchOptions, SmootherConfig):
    """Every frame is the mean of itself and of its neighbours, carried onto it by guided synthesis."""

    smooth_index: list[Offset] = Field(default_factory=lambda: [-3, -2, -1, 1, 2, 3])
    """Which neighbours, as offsets."""


class MatchingOptions(PatchOptions):
    """How PySynth carries frames onto each other."""

    num_iter: int = Field(6, ge=1, le=64)
    """Rounds of search and vote at each size of the picture."""


class VideoPatchMatchConfig(SmootherConfig):
    """Remap and blend over the whole video through blending tables. Frames are enhanced before and after."""

    ebsynth_config: MatchingOptions = MatchingOptions()
    """How frames are carried onto each other."""


class PySynthConfig(SmootherConfig):
    """Remap and blend: every pair in the window (slowest) or blending tables (fastest)."""

    speed: Literal["fastest", "slowest"] = "fastest"
    window_size: Count | None = None
    """Frames to each side, any number; null: the whole video."""
    ebsynth_config: MatchingOptions = MatchingOptions()
    """How frames are carried onto each other."""

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, data: Any) -> Any:
        """Older files give the options of `ebsynth_config` beside the others."""
        if not isinstance(data, dict):
            return data
        moved = {key: data[key] for key in MatchingOptions.model_fields if key in data}
        rest = {key: value for key, value in data.items() if key not in moved}
        return {**rest, "ebsynth_config": {**moved, **rest.get("ebsynth_config", {})}} if moved else data


PUBLISHED: dict[str, type[SmootherConfig]] = {
    "EbsynthSmoother": EbsynthConfig,
    "VideoPatchMatchSmoother": VideoPatchMatchConfig,
    "PySynthSmoother": PySynthConfig,
}


def drop_obsolete(name: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of the smoother `name` without keys that are no longer needed, and these keys."""
    unused = set(OBSOLETE_KEYS) - set(MatchingOptions.model_fields if name == "PySynthSmoother" else ())
    kept, dropped = _split(config, unused)
    if isinstance(nested := kept.get("ebsynth_config"), dict):
        kept["ebsynth_config"], more = _split(nested, set(OBSOLETE_KEYS) - set(MatchingOptions.model_fields))
        dropped += [f"ebsynth_config.{key}" for key in more]
    return kept, dropped


def _split(config: dict[str, Any], unused: set[str]) -> tuple[dict[str, Any], list[str]]:
    """What is left without the keys `unused`, and those of them that hold anything."""
    dropped = sorted(key for key in unused if config.get(key) is not None)
    return {key: value for key, value in config.items() if key not in unused}, dropped
