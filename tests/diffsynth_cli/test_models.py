"""`diffsynth models`: what is listed, checked and downloaded, with a hub's cache and a server on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

import diffsynth_cli as ds
from diffsynth_cli.results import ModelFiles, Place
from stages.jobs.job_file import read_job
from stages.jobs.models import needed_models
from templates import DOWNLOADS, Task
from tests.conftest import CONTROLNET, MODEL
from tests.diffsynth_cli.test_names import diffsynth
from tests.hub import PINNED, files_of, fill_cache, hub_server
from tests.typing import Cli, MakeJob

CARD = b"---\nlicense: creativeml-openrail-m\n---\n# A model\n"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def by_name(found: tuple[ModelFiles, ...]) -> dict[str, ModelFiles]:
    return {model.name: model for model in found}


def test_every_model_that_a_task_downloads_is_listed(cli: Cli) -> None:
    code, output = cli("models", "--offline", "--json")
    listed = {model["name"]: model for model in json.loads(output)["models"]}
    assert code == 1 and {name for name in DOWNLOADS if not name.endswith(".pth")} - {"Intel/dpt-large"} <= {
        *listed,
        "Lykon/dreamshaper-7",  # of published jobs
        "lllyasviel/control_v11p_sd15_openpose",
    }
    assert set(listed["stable-diffusion-v1-5/stable-diffusion-v1-5"]["keys"]) == {str(task) for task in Task}
    assert "latent-consistency/lcm-lora-sdv1-5" in cli("models", "--task", "text_guided_lcm", "--offline")[1]


def test_embedded_and_local_models_are_checked(make_job: MakeJob, cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"cut off")
    keys = {"model_id": "mini", "controlnet_model_id": [str(CONTROLNET), "mini/canny"],
            "controlnet_processor": ["canny", "canny"]}  # fmt: skip
    found = by_name(ds.models(make_job(**keys), check=True))
    assert {name: model.place for name, model in found.items()} == {
        "mini": Place.EMBEDDED, "mini/canny": Place.EMBEDDED, str(CONTROLNET): Place.LOCAL,
    }  # fmt: skip
    assert all(model.ready and model.bytes > 1000 and model.damaged == () for model in found.values())
    lora = by_name(ds.models(make_job(**keys, loras=["broken.safetensors"]), check=True))[str(broken)]
    assert lora.damaged == (str(broken),) and not lora.ready
    code, output = cli("models", make_job(**keys, loras=["gone.safetensors"]))
    assert code == 0 and "missing" in output
    assert cli("models", make_job(**keys, loras=["gone.safetensors"]), "--check")[0] == 1


def test_the_same_model_is_listed_once(make_job: MakeJob) -> None:
    job = make_job(
        controlnet_model_id=[str(CONTROLNET)] * 3, controlnet_processor=["canny"] * 3, controlnet_scale=[1.0, 1.0, 0.0]
    )
    found = by_name(ds.models(job))
    assert found[str(CONTROLNET)].keys == ("controlnet_model_id[0]", "controlnet_model_id[1]")


def test_a_model_in_the_hubs_cache_has_a_licence_and_a_damaged_one_is_found(
    make_job: MakeJob, cli: Cli, hub_cache: Path
) -> None:
    folder = fill_cache(hub_cache, "owner/model", {**files_of(MODEL), "README.md": CARD})
    job = make_job(model_id="owner/model")
    model = by_name(ds.models(job, check=True, offline=True))["owner/model"]
    assert model.place is Place.CACHE and model.licence == "creativeml-openrail-m" and model.damaged == ()
    assert cli("models", job, "--offline", "--check")[0] == 0
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).resolve().write_bytes(data)
        model = by_name(ds.models(job, check=True, offline=True))["owner/model"]
        assert str(folder / name) in (model.damaged or ())
    code, output = cli("models", job, "--check")
    assert code == 1 and "damaged" in output and "--fetch" in output


def test_files_that_the_cache_lacks_are_named(make_job: MakeJob, cli: Cli, hub_cache: Path) -> None:
    files = {name: data for name, data in files_of(MODEL).items() if not name.startswith("vae/")}
    fill_cache(hub_cache, "owner/model", files)
    code, output = cli("models", make_job(model_id="owner/model"), "--offline")
    assert code == 1 and "to download" in output and "lacks vae/config.json" in output.replace("\n", "")
    code, output = cli("models", make_job(model_id="owner/model"), "--fetch")
    assert code == 1 and "downloads are disabled by HF_HUB_OFFLINE" in output


@pytest.mark.slow
def test_what_is_missing_is_downloaded_and_the_job_runs(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(2, model_id="owner/model", controlnet_model_id=["owner/net"])
    unused = {"model.ckpt": b"x" * 10_000_000, "unet/diffusion_pytorch_model.bin": b"x"}
    models = {"owner/model": {**files_of(MODEL), "README.md": CARD, **unused}, "owner/net": files_of(CONTROLNET)}
    with hub_server({**models, "owner/other": models["owner/net"]}) as (address, asked):
        here = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        shown, fetched, checked = diffsynth(
            ("models", job, "--json"),
            ("models", job, "--fetch", "-q"),
            ("models", job, "--check", "--json"),
            **here,
            HF_HUB_OFFLINE="0",
        )
    (ran,) = diffsynth(("run", job, "-q"), **here, HF_HUB_OFFLINE="1")  # finds them, though the hub has more files
    model, net = json.loads(shown[1])["models"]
    read = sum(len(data) for name, data in files_of(MODEL).items() if name.partition("/")[0] != "safety_checker")
    assert shown[0] == 0 and model["place"] == net["place"] == "hub" and not model["ready"]
    assert 0 < model["download"] <= read and 0 < net["download"] <= sum(map(len, models["owner/net"].values()))
    assert fetched[0] == 0 and fetched[1].count("owner/model") == 2, fetched
    assert not {path for path in asked if "other" in path or path.endswith((".ckpt", ".bin"))}
    model, net = json.loads(checked[1])["models"]
    assert model["ready"] and net["ready"] and model["place"] == "hub cache" and model["damaged"] == []
    assert model["licence"] == "creativeml-openrail-m" and model["bytes"] > 0
    assert (ran[0], ran[1].strip()) == (0, "")


@pytest.mark.slow
def test_a_revision_is_downloaded_and_the_job_runs(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(2, model_id="owner/model@v1.5", controlnet_model_id=["owner/net@refs-pr-1"])
    newer: dict[str, dict[str, bytes]] = {"owner/model": {"a": b""}, "owner/net": {"a": b""}}
    models = {"owner/model@v1.5": files_of(MODEL), "owner/net@refs-pr-1": files_of(CONTROLNET)}
    with hub_server({**newer, **models}) as (address, asked):
        here = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        shown, fetched = diffsynth(
            ("models", job, "--json"), ("models", job, "--fetch", "-q"), **here, HF_HUB_OFFLINE="0"
        )
    checked, ran = diffsynth(("models", job, "--check", "--json"), ("run", job, "-q"), **here, HF_HUB_OFFLINE="1")
    assert [model["name"] for model in json.loads(shown[1])["models"]] == [*models] and fetched[0] == 0, fetched
    assert "/api/models/owner/model/revision/v1.5" in asked and not [path for path in asked if "/main" in path]
    assert all(model["ready"] and PINNED in model["folder"] for model in json.loads(checked[1])["models"])
    assert (ran[0], ran[1].strip()) == (0, "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--task", "fashion", "JOB"], "a job and a task"),
        (["--set", "prompt=x"], "need a job"),
        (["--offline", "--fetch"], "offline"),
        (["--task", "fash"], "did you mean 'fashion'?"),
    ],
)
def test_contradictions_are_refused(options: list[str], expected: str, make_job: MakeJob, cli: Cli) -> None:
    job = str(make_job())
    code, output = cli("models", *(job if option == "JOB" else option for option in options))
    assert code == 2 and expected in output


def test_needed_models_are_those_that_stages_check(make_job: MakeJob) -> None:
    job, _ = read_job(
        make_job(
            controlnet_model_id=[str(CONTROLNET), "owner/net"], controlnet_processor=["hed", "hed"],
            controlnet_scale=[1.0, 0.0], vae="owner/vae",
        )
    )  # fmt: skip
    assert [(each.key, each.name) for each in needed_models(job)] == [
        ("model_id", str(MODEL)), ("controlnet_model_id[0]", str(CONTROLNET)), ("vae", "owner/vae"),
        ("controlnet_processor[0]", "lllyasviel/Annotators"),
    ]  # fmt: skip


def test_models_that_an_annotator_works_with_are_needed_too(make_job: MakeJob) -> None:
    job, _ = read_job(
        make_job(controlnet_processor=[{"name": "person_mask", "model": "owner/sam", "detector": "owner/detector"}])
    )
    found = {each.key: each.name for each in needed_models(job)}
    assert found["controlnet_processor[0]"] == "owner/sam"
    assert found["controlnet_processor[0].detector"] == "owner/detector"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(columns: int, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, output = cli("models", "--offline", "-q")
    assert max(map(len, output.splitlines()[:-1])) <= columns
