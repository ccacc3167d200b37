"""Finding weights and devices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Never

import pytest
import torch
from huggingface_hub import HfApi

from stages.base.errors import DiffSynthError
from stages.models import weights
from stages.models.weights import check_files, explained, find_files, first_existing, pick_device, pick_gpu
from tests.hub import PINNED, fill_cache


def test_files_of_a_folder_are_found_or_named(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    assert find_files("key", str(tmp_path), ("a.pth",)) == tmp_path
    with pytest.raises(DiffSynthError, match=f"key: {tmp_path} lacks b.pth, c.pth"):
        find_files("key", str(tmp_path), ("a.pth", "b.pth", "c.pth"))


def test_the_first_existing_name_is_used(tmp_path: Path) -> None:
    (tmp_path / "b.pth").touch()
    assert find_files("key", str(tmp_path), [("a.pth", "b.pth")]) == tmp_path
    assert first_existing(tmp_path, ("a.pth", "b.pth")) == "b.pth"
    (tmp_path / "a.pth").touch()
    assert first_existing(tmp_path, ("a.pth", "b.pth")) == "a.pth"
    with pytest.raises(DiffSynthError, match=f"key: {tmp_path} lacks c.pth$"):
        find_files("key", str(tmp_path), [("c.pth", "d.pth")])


@pytest.mark.parametrize(("name", "expected"), [("owner/model", None), ("owner/model@v1", "v1")])
def test_only_required_files_of_a_hub_model_are_downloaded(
    name: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake hub has one file under its second name and one under both."""
    asked: list[str] = []

    def download(name: str, revision: str | None, allow_patterns: Sequence[str]) -> str:
        assert (name, revision) == ("owner/model", expected)
        asked.extend(allow_patterns)
        for file in allow_patterns:
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    available = {("owner/model", expected): ["a.fp16", "b", "b.fp16", "c"]}
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda _, name, revision: available[name, revision])
    assert find_files("key", name, [("a", "a.fp16"), ("b", "b.fp16"), "c"]) == tmp_path
    assert asked == ["a.fp16", "b", "c"]


@pytest.mark.parametrize("reason", ["[Errno -2] Name or service not known", ""])
def test_without_a_network_the_message_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    class ConnectError(Exception):
        """The HTTP library's, which is no OSError."""

    def fail(self: HfApi, name: str, revision: str | None) -> Never:
        raise ConnectError(reason)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    for ask in (check_files, find_files):
        with pytest.raises(DiffSynthError, match=f"key: owner/model .* a.bin .* {re.escape(reason or 'ConnectError')}"):
            ask("key", "owner/model", ["a.bin"])


def test_a_revision_is_read_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    newest = fill_cache(tmp_path, "owner/model", {"a.bin": b"new"})
    pinned = fill_cache(tmp_path, "owner/model@v1", {"a.bin": b"old"})
    assert newest != pinned
    for name, folder in {"": newest, "@main": newest, "@v1": pinned, f"@{PINNED}": pinned}.items():
        assert find_files("key", f"owner/model{name}", ["a.bin"]) == folder
    with pytest.raises(DiffSynthError, match=r"a\.bin .*downloads are disabled") as missing:
        find_files("key", "owner/model@v2", ["a.bin"])
    assert "https://huggingface.co/owner/model/resolve/v2/" in missing.value.hint
    for name in ("owner/model@", "@v1", "a/b/c@v1"):
        with pytest.raises(DiffSynthError, match=f"{name} is neither a folder nor a hub id"):
            find_files("key", name, ["a.bin"])


def test_unavailable_and_unknown_devices_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(DiffSynthError, match="device: cuda:1 is not available"):
            pick_device("cuda:1")
    with pytest.raises(DiffSynthError, match="device: unknown device 'toaster'"):
        pick_device("toaster")


def test_only_nvidia_gpus_are_used_for_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_gpu("cpu") is None and pick_gpu("mps") is None
    monkeypatch.setattr(weights, "_has_driver", lambda: False)
    monkeypatch.setattr(weights, "pick_device", lambda name: pytest.fail("torch is not asked where there is no driver"))
    assert pick_gpu("auto") is None
    monkeypatch.setattr(weights, "_has_driver", lambda: True)
    for found, expected in (("cuda:0", torch.device("cuda:0")), ("cpu", None)):
        monkeypatch.setattr(weights, "pick_device", lambda name, found=found: torch.device(found))
        assert pick_gpu("auto") == expected


def test_errors_of_loaders_become_one_message() -> None:
    with pytest.raises(DiffSynthError, match=r"key: model cannot be loaded: first line$"), explained("key", "model"):
        raise RuntimeError("first line\nsecond line")
    with pytest.raises(DiffSynthError, match="out of memory while loading model"), explained("key", "model"):
        raise torch.OutOfMemoryError("CUDA out of memory")
