"""video.mp4 is encoded in segments, which survive a kill and may be encoded in any order."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from diffsynth_cli.failures import Interrupted
from stages import deflicker as stage
from stages.base.cache import FrameCache
from stages.base.engine import Chunk, LocalEngine, Task
from stages.deflicker import EncodeTask
from tests.conftest import write_job
from tests.stages.test_smooth import stopped
from tests.typing import Cli

LENGTH = 4  # frames per segment
FRAMES = 10


@pytest.fixture
def job(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished job whose video has three segments. The video is removed."""
    monkeypatch.setattr(stage, "SEGMENT", LENGTH)
    job = write_job(tmp_path, FRAMES, num_inference_steps=1, combine_pattern=[0])
    assert cli("run", job, "-q") == (0, "")
    return job


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first frame of each segment that is encoded."""
    starts: list[int] = []
    run = EncodeTask.run

    def watched(self: EncodeTask, cache: FrameCache, start: int, stop: int) -> None:
        run(self, cache, start, stop)
        starts.append(start)

    monkeypatch.setattr(EncodeTask, "run", watched)
    return starts


def taken(video: Path) -> bytes:
    """Remove a video and return its bytes."""
    content = video.read_bytes()
    video.unlink()
    return content


def interrupted(*_: object) -> None:
    raise Interrupted


def segments(job: Path) -> list[str]:
    """The names of all segments that are stored."""
    folder = job.parent / "out/cache.zarr/segments"
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_any_order_gives_the_same_bytes(
    job: Path, cli: Cli, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    video, forward = job.parent / "out/video.mp4", LocalEngine.map

    def backward(self: LocalEngine, task: Task, cache: FrameCache, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        return forward(self, task, cache, [*chunks][::-1])

    ordered = taken(video)
    monkeypatch.setattr(LocalEngine, "map", backward)
    assert cli("deflicker", job, "-q") == (0, "")
    assert encoded == [8, 4, 0] and video.read_bytes() == ordered
    assert not (job.parent / "out/cache.zarr/segments").exists()


def test_no_segment_is_encoded_twice(job: Path, cli: Cli, encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    video = job.parent / "out/video.mp4"
    straight, run = taken(video), EncodeTask.run
    with monkeypatch.context() as patch:
        patch.setattr(EncodeTask, "run", stopped(run, 2))
        assert cli("deflicker", job)[0] == 130
    assert encoded == [0] and segments(job) == ["0"] and not video.exists()
    with monkeypatch.context() as patch:
        patch.setattr(stage, "join", interrupted)
        assert cli("deflicker", job)[0] == 130
    assert encoded == [0, 4, 8] and segments(job) == ["0", "4", "8"] and not video.exists()
    assert cli("deflicker", job, "-q") == (0, "")
    assert encoded == [0, 4, 8] and video.read_bytes() == straight and segments(job) == []


def test_segments_at_another_frame_rate_are_not_used(
    job: Path, cli: Cli, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = job.parent / "out/video.mp4"
    straight = taken(video)
    with monkeypatch.context() as patch:
        patch.setattr(EncodeTask, "run", stopped(EncodeTask.run, 3))
        assert cli("deflicker", job, "--set", "fps=10")[0] == 130
    assert segments(job) == ["0", "4"]
    assert cli("deflicker", job, "-q") == (0, "")
    assert encoded == [0, 4, 0, 4, 8] and video.read_bytes() == straight and segments(job) == []


def test_a_damaged_segment_is_encoded_again(job: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    video = job.parent / "out/video.mp4"
    straight = taken(video)
    with monkeypatch.context() as patch:
        patch.setattr(EncodeTask, "run", stopped(EncodeTask.run, 3))
        assert cli("deflicker", job)[0] == 130
    (damaged,) = (job.parent / "out/cache.zarr/segments").glob("*/4")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    encoded: list[int] = []
    real = EncodeTask.run

    def run(task: EncodeTask, cache: FrameCache, start: int, stop: int) -> None:
        encoded.append(start)
        real(task, cache, start, stop)

    monkeypatch.setattr(EncodeTask, "run", run)
    assert cli("deflicker", job, "-q") == (0, "")
    assert encoded == [4, 8] and video.read_bytes() == straight and segments(job) == []


def test_a_segment_that_is_damaged_while_it_is_used_is_named(
    job: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = job.parent / "out/video.mp4"
    straight = taken(video)
    real = EncodeTask.run

    def run(task: EncodeTask, cache: FrameCache, start: int, stop: int) -> None:
        real(task, cache, start, stop)
        if start == 4:
            cache.store.put(task.name(start), b"damaged")

    with monkeypatch.context() as patch:
        patch.setattr(EncodeTask, "run", run)
        code, output = cli("deflicker", job)
    assert code == 1 and "/4' is damaged" in output and "encode it again with" in output and not video.exists()
    assert cli("deflicker", job, "-q") == (0, "")
    assert video.read_bytes() == straight and segments(job) == []


def test_progress_counts_what_is_stored(job: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(job.parent / "out/video.mp4")
    with monkeypatch.context() as patch:
        patch.setattr(EncodeTask, "run", stopped(EncodeTask.run, 2))
        assert cli("deflicker", job)[0] == 130
    events = [json.loads(line) for line in cli("deflicker", job, "--json")[1].splitlines()]
    begun = next(index for index, event in enumerate(events) if event.get("stage") == "video.mp4")
    assert (events[begun]["done"], events[begun]["total"]) == (LENGTH, FRAMES)
    assert [event["done"] for event in events[begun:] if event["event"] == "advance"] == [8, 10]
