"""Read files of tensors: safetensors and, if allowed, pickles."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open

from stages.base.errors import DiffSynthError, UsageError
from stages.diffusion.layout import ALLOW, PICKLED
from stages.models import PICKLES


def read_tensors(key: str, path: str, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, except for the averaged weights (`model_ema.`) in some checkpoints.

    Args:
        key: The job key that names the file.
        path: The file.
        allow_pickle: Whether it may be a pickle.

    Raises:
        UsageError: It is a pickle, and those are not allowed.
        DiffSynthError: It cannot be read.
    """
    content = read_content(key, path, allow_pickle)
    nested = content.get("state_dict")
    tensors = nested if isinstance(nested, dict) else content
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def read_content(key: str, path: str, allow_pickle: bool = False) -> dict[str, object]:
    """Read everything in a file; a pickle may hold nested dictionaries and other objects. See `read_tensors`."""
    pickled = Path(path).suffix in PICKLES
    if pickled and not allow_pickle:
        raise UsageError(f"{key}: {path} is a pickle, which is refused by default: {PICKLED}", ALLOW)
    try:
        content = _unpickle(path) if pickled else _read_safetensors(path)
    except Exception as error:  # both formats have an exception of their own for every kind of damage
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffSynthError(f"{key}: {path} cannot be read: {reason}", "is the download complete?") from error
    if not isinstance(content, dict):
        raise DiffSynthError(f"{key}: {path} does not hold named tensors")
    return content


def _read_safetensors(path: str) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:  # cannot be iterated over
        return {name: file.get_tensor(name) for name in file.keys() if not name.startswith("model_ema.")}  # noqa: SIM118


def _unpickle(path: str) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it holds more than tensors, such as settings of its training
        with_stand_ins = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=pickle.load)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=with_stand_ins)


class _StandIn(dict[str, object]):
    """Replaces an object of a library that is not installed."""

    def __init__(self, *_: object, **__: object):
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Unpickles checkpoints with objects of libraries that are not installed."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (_StandIn,), {})
