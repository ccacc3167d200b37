"""Names of control maps in the cache, for the stages that read them."""

from __future__ import annotations

from typing import cast

from stages.annotators import ANNOTATORS
from stages.base.cache import FrameCache
from stages.base.fingerprint import Inputs, fingerprint
from stages.jobs.job import NOT_RUN


def map_names(inputs: Inputs) -> list[tuple[str, str] | None]:
    """Return the arrays of each ControlNet's maps of frames and of references. None for a ControlNet that is skipped.

    The names contain a hash of what the maps are made from. Equal maps share an array, which remains valid when other
    parts of the job change.

    Args:
        inputs: The inputs of the stage that makes the maps.
    """
    keys = inputs["keys"]
    annotators = cast("list[dict[str, object]]", keys["controlnet_processor"])

    def named(group: str, annotator: dict[str, object], *more: object) -> str:
        options = ANNOTATORS.get(str(annotator["name"]))
        style = keys["style_image"] if options is not None and options.uses_style_image else None
        digest = fingerprint([annotator, style, inputs["after"], *more])
        return f"{group}/{annotator['name']}-{digest[:8]}"

    return [
        None if annotator == cast("object", NOT_RUN)
        else (named("control", annotator), named("control_reference", annotator, keys["frames_reference"]))
        for annotator in annotators
    ]  # fmt: skip


def recorded_maps(cache: FrameCache) -> list[tuple[str, str]]:
    """Return the arrays of the maps in the cache, one pair per ControlNet that is run."""
    inputs = cache.recorded("control")
    return [pair for pair in map_names(inputs) if pair is not None] if inputs else []
