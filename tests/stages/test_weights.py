"""Finding files and devices. (Loading is tested where things are loaded.)"""

from __future__ import annotations

import pytest
import torch

from stages.base.errors import DiffSynthError
from stages.weights import explained, find_files, pick_device


def test_files_of_a_folder_are_found_or_named(tmp_path):
    (tmp_path / "a.pth").touch()
    assert find_files("key", str(tmp_path), ("a.pth",)) == tmp_path
    with pytest.raises(DiffSynthError, match=f"key: {tmp_path} lacks b.pth, c.pth"):
        find_files("key", str(tmp_path), ("a.pth", "b.pth", "c.pth"))


def test_devices():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(DiffSynthError, match="device: cuda:1 is not there"):
            pick_device("cuda:1")


def test_what_a_loader_raises_becomes_one_message():
    with pytest.raises(DiffSynthError, match=r"key: model cannot be loaded: first line$"), explained("key", "model"):
        raise RuntimeError("first line\nsecond line")
    with pytest.raises(DiffSynthError, match="no memory left for model"), explained("key", "model"):
        raise torch.OutOfMemoryError("CUDA out of memory")
