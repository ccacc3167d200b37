"""Valid and extreme numbers in every job key: each job is planned, or refused by the name of the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.numpy import save_file

from diffsynth_cli.console import QuietReporter
from stages import extract
from stages.all_stages import all_stages, stages_of
from stages.annotators import ANNOTATORS, Weighted
from stages.base.cache import FrameCache
from stages.base.engine import Run
from stages.base.errors import DiffSynthError
from stages.base.preflight import check_ahead
from stages.jobs.job import Job
from stages.jobs.job_file import read_job
from tests.conftest import CONTROLNET, MODEL, scene, write_images
from tests.typing import Keys
from tools.fuzz.slots import Slot, put, slots

STAGES = list(all_stages().values())
BASE = {
    "model_id": str(MODEL), "controlnet_model_id": [str(CONTROLNET)], "input_video": "images", "output_path": "out",
    "prompt": "winter", "style_image": "images/0.png", "combine_pattern": [0],
}  # fmt: skip
WILD = (
    st.sampled_from([-1, 0, 1e18, 10**20, 1e300, 1e-300, 5e-324, 2**63, float("inf"), float("-inf"), float("nan")])
    | st.integers()
    | st.floats()
)
SLOTS = slots()


def valid(slot: Slot) -> SearchStrategy[float]:
    """Numbers within the bounds of a slot, and on them."""
    bounds = [bound for bound in (slot.low, slot.high) if bound is not None]
    if slot.is_integer:
        low, high = (None if bound is None else int(bound) for bound in (slot.low, slot.high))
        inside: SearchStrategy[float] = st.integers(low, high)
    else:
        inside = st.floats(slot.low, slot.high)
    return (
        inside | st.sampled_from([int(bound) if slot.is_integer else bound for bound in bounds]) if bounds else inside
    )


changes = st.lists(
    st.sampled_from(SLOTS).flatmap(lambda slot: st.tuples(st.just(slot), valid(slot) | WILD)), min_size=1, max_size=3
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 6 frames, and every file that annotators and LoRA keys name."""
    folder = tmp_path_factory.mktemp("numbers")
    write_images(folder / "images", (scene(index) for index in range(6)))
    save_file({}, folder / "file.safetensors")
    for model in ANNOTATORS.values():
        for name in model.files if issubclass(model, Weighted) else ():
            path = folder / "weights" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({}, path)
    return folder


def finished(job: Keys) -> Keys:
    """`job` with the files that its parts name, and an annotator for its ControlNet."""
    maps = job.get("controlnet_processor") or ["canny"]
    named = [{**item, "path": "images"} if isinstance(item, dict) and "path" in item else item for item in maps]
    loras = [{**item, "path": "file.safetensors"} for item in job.get("loras", ())]
    return {**job, "controlnet_processor": named, "loras": loras}


def test_every_key_that_takes_numbers_is_tried() -> None:
    numeric = {slot.key for slot in SLOTS}
    assert {"fps", "start_time", "loras", "smoother_config", "post_smoother_config", "controlnet_processor"} <= numeric
    assert numeric <= Job.model_fields.keys()


def test_every_place_has_numbers_to_try() -> None:
    for slot in SLOTS:
        valid(slot).validate()


@pytest.mark.slow
@settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changed=changes)
def test_a_job_is_refused_by_key_or_planned(changed: list[tuple[Slot, float]], workshop: Path) -> None:
    data: Keys = BASE
    for slot, number in changed:
        data = put(data, slot, number)
    path = workshop / "job.json"
    path.write_text(json.dumps(finished(data)))
    try:
        job, _ = read_job(path, (), STAGES)
        run = Run(job, FrameCache(workshop / "out/cache.zarr"), QuietReporter(), stages=stages_of(job))
        check_ahead([*run.stages.values()], run, workshop / "out")
        assert extract.plan(run, resume=False).frames > 0
    except DiffSynthError as refusal:
        text = f"{refusal.message} {refusal.hint}"
        assert any(slot.name in text or slot.key in text for slot, _ in changed), text
