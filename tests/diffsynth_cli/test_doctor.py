"""`diffsynth doctor`: each check on this machine, what each failure looks like, and the exit code."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import diffsynth_cli as ds
from diffsynth_cli import checks, health
from diffsynth_cli.results import Finding, Health
from native import Backend, binding, library
from native.arguments import Array
from stages.models import hub, weights
from tests.typing import Cli, Keys, MakeJob, Render


def examined(name: str, subject: health.Subject | None = None) -> Finding:
    """The finding of one check."""
    outcome = health.examined(health.CHECKS[name], subject or health.Subject())
    assert outcome is not None
    return Finding(name, *outcome)


def findings(cli: Cli, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    """Run `doctor --json`. Return the exit code and the findings by the names of their checks."""
    code, output = cli("doctor", *arguments, "--json")
    found = json.loads(output)
    assert found["can_run"] is (code == 0)
    return code, {finding["check"]: finding for finding in found["findings"]}


def test_this_machine_can_run_jobs_and_every_lack_has_advice(cli: Cli) -> None:
    code, found = findings(cli)
    assert code == 0 and set(found) == set(health.CHECKS) - {"job"}
    assert all(bool(finding["advice"]) is (finding["health"] != "ok") for finding in found.values()), found
    assert torch.__version__ in found["PyTorch"]["detail"]
    assert "h264, hevc, vp9, av1, prores, ffv1" in found["codecs"]["detail"]
    assert "HF_HUB_OFFLINE" in found["hub"]["detail"]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_fits_the_terminal(columns: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, output = cli("doctor", "-q")
    assert code == 0 and output.strip().endswith("Jobs can run here.")
    assert max(map(len, output.splitlines())) <= int(columns)


def test_a_job_that_can_run_is_described_and_nothing_is_written(cli: Cli, make_job: MakeJob, tmp_path: Path) -> None:
    code, found = findings(cli, make_job(3))
    assert code == 0 and found["job"]["detail"].startswith("can run: 3 frames")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"model_id": "owner/model"}, "model_id: owner/model is not a local folder"),
        ({"input_video": "nowhere.mp4"}, "input_video: no such file"),
        ({"device": "cuda:99"}, "device: cuda:99 is not available"),
        ({"promt": "x"}, "did you mean 'prompt'?"),
    ],
)
def test_a_job_that_cannot_run_is_a_failure(keys: Keys, expected: str, cli: Cli, make_job: MakeJob) -> None:
    code, found = findings(cli, make_job(**keys))
    assert code == 1 and found["job"]["health"] == "failed" and expected in found["job"]["detail"], found["job"]


@pytest.mark.slow
def test_a_finished_job_is_complete(render: Render, make_job: MakeJob) -> None:
    render()
    assert examined("job", health.Subject(make_job())).detail == "it is complete"


def test_a_job_that_overwrites_a_file_of_the_users_cannot_run(cli: Cli, make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/video.mp4").write_text("mine")
    code, found = findings(cli, make_job())
    assert code == 1 and "video.mp4 exists" in found["job"]["detail"]


def test_options_of_a_job_need_a_job(cli: Cli) -> None:
    code, output = cli("doctor", "--device", "cpu")
    assert code == 2 and "need a job" in output


def test_a_check_that_raises_or_hangs_has_failed(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def broken(subject: health.Subject) -> health.Outcome:
        raise AttributeError("no such symbol")

    def slow(subject: health.Subject) -> None:
        time.sleep(5)

    monkeypatch.setitem(health.CHECKS, "PyTorch", broken)
    code, found = findings(cli)
    assert code == 1 and found["PyTorch"]["detail"] == "AttributeError: no such symbol"
    hanging = health.examined(slow, health.Subject(), patience=0.05)
    assert hanging is not None and hanging[0] is Health.FAILED and "no answer" in hanging[1]


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=99", "nowhere>=1", 'unneeded; extra == "x"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    found = examined("packages")
    assert found.health is Health.FAILED and "numpy>=99 (" in found.detail
    assert "nowhere>=1 (not installed)" in found.detail and "unneeded" not in found.detail


def test_back_ends_that_differ_or_match_wrong_patches_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined("patch matching").health is Health.OK
    match, equal = binding.match, library.library_path().exists()

    def off_by_one(share: float) -> Callable[..., binding.Fields]:
        def wrong(source: Array, target: Array, *, backend: str, **options: int) -> binding.Fields:
            fields = match(source, target, backend=backend, patch_match_iterations=6)
            if backend == Backend.NUMBA:
                fields.nnf[:, : int(share * fields.nnf.shape[1])] += 1
            return fields

        return wrong

    monkeypatch.setattr(binding, "match", off_by_one(1.0))
    assert "numba found wrong patches" in examined("patch matching").detail
    monkeypatch.setattr(binding, "match", off_by_one(0.03))
    found = examined("patch matching")
    assert found.health is (Health.FAILED if equal else Health.OK)
    assert not equal or "different results" in found.detail


def test_without_the_library_numba_matches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EBSYNTH_LIBRARY", str(tmp_path / "none.so"))
    assert "make native" in examined("libebsynth").advice
    assert examined("patch matching").health is Health.OK


def test_a_library_that_cannot_be_loaded_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setenv("EBSYNTH_LIBRARY", str(tmp_path / "broken.so"))
    for name in ("libebsynth", "patch matching"):
        found = examined(name)
        assert found.health is Health.FAILED and "cannot load" in found.detail


def test_a_driver_that_is_older_than_the_librarys_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "driver_cuda", lambda: (11, 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    built = {"version": 65538, "compiler": "GNU", "cpu_kernels": "avx2", "cuda_built": 1, "cuda_toolkit": "13.0",
             "cuda_architectures": "75 80"}  # fmt: skip
    monkeypatch.setattr(library, "library_path", lambda: Path(__file__))
    monkeypatch.setattr(binding, "info", lambda: built)
    assert "the driver supports CUDA 11.4" in examined("libebsynth").detail
    found = examined("GPU")
    assert found.health is Health.WARNING and found.detail.startswith("driver for CUDA 11.4")
    monkeypatch.setattr(binding, "info", lambda: {**built, "cuda_built": 0})
    assert "without CUDA, though there is a GPU" in examined("libebsynth").detail


def test_a_hub_that_does_not_answer_delays_nothing(monkeypatch: pytest.MonkeyPatch, make_job: MakeJob) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts connections and never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert "timed out" in hub.why_unreachable(0.1)
        subject = health.Subject(make_job(model_id="owner/model"))
        vars(subject)["hub_problem"] = "timed out"
        began = time.monotonic()
        assert "timed out" in examined("hub", subject).detail
        assert "owner/model" in examined("job", subject).detail
        assert time.monotonic() - began < 3 and not hub.hub_settings().offline


def test_a_token_is_never_printed(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, output = cli("doctor", "--json")
    assert code == 0 and "with an access token" in output and "hf_secret" not in output


def test_too_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ENOUGH_DISK", 1e18)
    monkeypatch.setattr(checks, "ENOUGH_MEMORY", 1e18)
    assert {examined("disk").health, examined("memory").health} == {Health.WARNING}


def test_the_api_returns_what_the_command_shows(make_job: MakeJob) -> None:
    done = ds.doctor(make_job(3))
    assert done.can_run and [finding.check for finding in done.findings] == list(health.CHECKS)
    worse = replace(done, findings=(*done.findings, Finding("x", Health.FAILED, "", "")))
    assert not worse.can_run
