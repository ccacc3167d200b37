"""What docs/security.md claims: files of a stranger cannot make the program run code, or read or write elsewhere."""

from __future__ import annotations

import json
import pickle
import re
import socket
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.conftest import scene, write_images
from tests.typing import Cli, MakeJob

ROOT = Path(__file__).parent.parent
NAMES = ("-o", "50%d", "a\nerror: b", "[bold]c", "d\x1b[31m", "$(touch ran)", "';touch ran;'")


class Evil:
    """Unpickling this creates a file named `ran` in the current folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_every_claim_names_a_test_that_exists() -> None:
    claimed = re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text())
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(claimed) > 20 and [name for name in claimed if f"def {name}(" not in tests] == []


def test_a_program_that_a_job_names_is_not_run(
    tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ebsynth").write_text("#!/bin/sh\ntouch ran\n")
    Path("ebsynth").chmod(0o755)
    config = {"bin_path": str(tmp_path / "ebsynth"), "cache_path": "cache", "smooth_index": [-1, 1], "patch_size": 3}
    code, output = cli("run", make_job(2, post_smoother="EbsynthSmoother", post_smoother_config=config))
    assert code == 0 and "no longer needed" in output
    assert not Path("ran").exists() and not Path("cache").exists()


@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle", "os.system"])
def test_nothing_in_a_cache_is_run(
    codec: str, tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(2)
    assert cli("extract", job, "-q")[0] == 0
    frames = tmp_path / "out/cache.zarr/frames"
    metadata = json.loads((frames / "zarr.json").read_text())
    metadata["codecs"] = [{"name": codec, "configuration": {"id": "pickle"}}]
    (frames / "zarr.json").write_text(json.dumps(metadata))
    chunks = [path for path in frames.rglob("*") if path.is_file() and path.name != "zarr.json"]
    older = {"zarr_format": 2, "shape": [2], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle"}]}
    (frames / ".zarray").write_text(json.dumps(older | {"compressor": None, "fill_value": None, "order": "C"}))
    for path in (*chunks, frames / "0", *(tmp_path / "out/cache.zarr/marks").iterdir()):
        path.write_bytes(pickle.dumps(Evil()))
    for command in ("status", "verify", "control"):
        code, output = cli(command, job)
        assert code in (0, 1, 2) and "Traceback" not in output and "bug" not in output, (command, output)
    assert not Path("ran").exists()


def test_a_job_with_local_models_uses_no_network(make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("downloaded"))
    assert cli("run", make_job(2), "-q") == (0, "")


@pytest.mark.parametrize("key", ["model_id", "controlnet_model_id", "vae", "controlnet_processor"])
def test_only_models_that_the_job_names_are_asked_for(
    key: str, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def look(name: str, **_: object) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("not downloaded yet")

    def ask(_: object, name: str, **__: object) -> list[str]:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", look)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", ask)
    depth = {"name": "depth", "model": "owner/model"}
    named = {"controlnet_model_id": ["owner/model"], "controlnet_processor": [depth]}
    code, output = cli("run", make_job(2, **{key: named.get(key, "owner/model")}))
    assert code in (1, 2) and "owner/model" in output
    assert set(asked) == {"owner/model"}


@pytest.mark.parametrize("name", NAMES)
def test_results_are_written_into_the_output_folder_whatever_its_name(
    name: str, tmp_path: Path, make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(2, output_path=f"results/{name}", keep_frames=True)
    before = files_below(tmp_path)
    assert cli("run", job, "-q", "--preview") == (0, "")
    assert cli("export", job, "--codec", "vp9", "-q")[0] == 0
    folder = tmp_path / "results" / name
    made = {"video.mp4", "video-vp9.webm", "preview.png", "config.json", "frames", "cache.zarr"}
    assert {path.name for path in folder.iterdir()} == made
    outside = files_below(tmp_path) - before - {Path("results") / name / path for path in files_below(folder)}
    assert outside == {Path("results"), Path("results") / name}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_images_and_outputs_are_only_names(
    name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / name, [scene(index) for index in range(3)])
    for index, image in enumerate(sorted(folder.iterdir())):
        image.rename(folder / f"{name}{index}.png")
    before = files_below(tmp_path)
    code, output = cli("smooth", f"./{name}/../{name}", "-o", f"./{name}.mp4", "--window", 1)
    assert code == 0 and "\x1b" not in output, output
    code, output = cli("metrics", f"./{name}", f"./{name}.mp4")
    assert code == 0 and "\x1b" not in output, output
    assert files_below(tmp_path) - before == {Path(f"{name}.mp4")}


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "\x9b31m", "\u202egpj.x", "[bold red]x[/bold red]", "[/nothing]"])
def test_text_of_a_job_is_shown_as_it_is(text: str, make_job: MakeJob, cli: Cli) -> None:
    job = make_job(2)
    assert cli("run", job, "-q") == (0, "")
    code, output = cli("render", make_job(2, prompt=text))
    assert code == 1 and "render is stale" in output
    assert ("[" in text) == (text in output) and not re.search(r"[\x1b\x07\x9b\u202e]", output)
    _, output = cli("render", make_job(2, prompt=text), "--json")
    assert not re.search(r"[\x1b\x07\x9b\u202e]", output)
    code, output = cli("status", job)
    assert code == 0 and not re.search(r"[\x1b\x07\x9b\u202e]", output)
    code, output = cli("extract", make_job(2, input_video=f"{text}\nerror: forged"))
    assert code == 2 and not re.search(r"[\x1b\x07\x9b\u202e]", output)
    assert [line for line in output.splitlines() if line.startswith("error: forged")] == []
    code, output = cli("status", make_job(2, **{f"{text}x": 1}))
    assert code == 2 and "unknown key" in output and not re.search(r"[\x1b\x07\x9b\u202e]", output)


def test_markup_in_a_path_is_shown_as_it_is(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "a[/]", [scene(index) for index in range(3)])
    code, output = cli("metrics", "a[/]", "a[/]")
    assert code == 0 and "a[/]" in output


def test_only_the_console_makes_markup_of_text() -> None:
    sources = [*(ROOT / "diffsynth_cli").rglob("*.py")]
    found = [path.name for path in sources if "rich.markup" in path.read_text()]
    assert sorted(found) == ["console.py", "options.py"], "use console.literal"  # options.py: of descriptions in code


def test_an_address_in_place_of_a_file_is_not_opened(
    make_job: MakeJob, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    for address in ("http://127.0.0.1:9/a.mp4", "tcp://127.0.0.1:9", "pipe:0", "concat:job.json|job.json"):
        code, output = cli("extract", make_job(2, input_video=address))
        assert code == 2 and "no such file" in output, output
