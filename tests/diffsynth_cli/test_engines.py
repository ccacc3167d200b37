"""Options that choose where chunks run, and what is said if they cannot."""

from __future__ import annotations

import socket
import sys

import pytest

import diffsynth_cli as ds
from diffsynth_cli.__main__ import main
from tests.processes import SERVER
from tests.typing import Cli, MakeJob


@pytest.mark.parametrize("words", [["--workers", "2"], ["--ray-address", "local"], ["--gpus-per-worker", "1"]])
def test_options_of_the_cluster_need_its_engine(words: list[str], make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("extract", make_job(1), *words)
    assert code == 2 and "are for a Ray cluster" in output and "--engine ray" in output


def test_a_misspelled_engine_is_corrected(make_job: MakeJob, cli: Cli) -> None:
    code, output = cli("run", make_job(1), "--engine", "rya")
    assert code == 2 and "did you mean 'ray'?" in output
    with pytest.raises(ds.UsageError, match="unknown engine 'rya'"):
        ds.run(make_job(1), engine="rya")


def test_a_missing_cluster_is_reported_and_nothing_is_started(make_job: MakeJob, cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    job = make_job(1)
    code, output = cli("run", job, "--engine", "ray", "--ray-address", address)
    assert code == 1 and f"no Ray cluster answers at {address}" in output and "ray start --head" in output
    assert not (job.parent / "out").exists()


def test_without_ray_it_says_what_to_install(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, output = cli("run", make_job(1), "--engine", "ray")
    assert code == 2 and "pip install 'diffsynth-cli[ray]'" in output


@pytest.mark.slow
def test_running_locally_does_not_import_ray(make_job: MakeJob) -> None:
    process = SERVER.Process(target=run_without_ray, args=(str(make_job(1)),))
    process.start()
    process.join()
    assert process.exitcode == 0


def run_without_ray(job: str) -> None:
    sys.exit(main(["run", job, "-q"]) or int("ray" in sys.modules))
