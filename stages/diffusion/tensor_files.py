"""Files of tensors: safetensors, and pickles where those are allowed."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open

from stages.base.errors import DiffSynthError, UsageError
from stages.diffusion.layout import ALLOW, PICKLED
from stages.models import PICKLES


def read_tensors(key: str, path: str, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The tensors in a file that the job's `key` names, but for the copies (`model_ema.`) that training kept.

    Raises DiffSynthError if it cannot be read, UsageError if it is a pickle and those are not allowed.
    """
    content = read_content(key, path, allow_pickle)
    nested = content.get("state_dict", content)
    return {name: value for name, value in nested.items() if isinstance(value, torch.Tensor)}


def read_content(key: str, path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """All that is in such a file: of a pickle, nested dictionaries and other objects, too. Raises as `read_tensors`."""
    pickled = Path(path).suffix in PICKLES
    if pickled and not allow_pickle:
        raise UsageError(f"{key}: {path} is a pickle, which is not read unasked: {PICKLED}", ALLOW)
    try:
        content = _unpickle(path) if pickled else _read_safetensors(path)
    except Exception as error:  # both formats have an exception of their own for every kind of damage
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(f"{key}: {path} cannot be read: {reason}", "is the download complete?") from error
    if not isinstance(content, dict):
        raise DiffSynthError(f"{key}: {path} holds no tensors by name, but a {type(content).__name__}")
    return content


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:  # names are to be had by keys() alone
        return {name: file.get_tensor(name) for name in file.keys() if not name.startswith("model_ema.")}  # noqa: SIM118


def _unpickle(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # more than tensors: what its trainer kept beside them
        with_stand_ins = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=pickle.load)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=with_stand_ins)


class _StandIn(dict):
    """An object of a library that is not installed, emptied."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Knows that checkpoints hold objects of their trainers' libraries, which need not be installed."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (_StandIn,), {})
