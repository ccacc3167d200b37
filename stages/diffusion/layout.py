"""File names of models in diffusers layout, and checks that they exist.

Imports neither torch nor diffusers, so that a job is checked quickly.
"""

from __future__ import annotations

import json
from pathlib import Path

from stages.models import SINGLE_FILES, embedded
from stages.models.weights import Names, check_files, check_tensor_file, find_files, first_existing

# Files and subfolders of a model that are read.
CONFIGS = ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")
NETWORKS = ("text_encoder", "unet", "vae")
ALSO_DOWNLOADED = ("tokenizer/*",)
# File names of weights. Pickles are only read if they are allowed.
WEIGHTS = ("{}.safetensors", "{}.fp16.safetensors")
PICKLED_WEIGHTS = ("{}.bin", "{}.fp16.bin")
# Why pickles are refused, and how to allow them.
PICKLED = "loading a pickle can run code on this machine"
ALLOW = 'convert it to .safetensors; or, if you trust its source, set "allow_pickle": true or use --allow-pickle'


def is_single_file(name: str) -> bool:
    """Return whether this is the path of a file, not a folder or a hub id."""
    return name.endswith(SINGLE_FILES) and not Path(name).is_dir()


def find_model(key: str, name: str, parts: tuple[str, ...], allow_pickle: bool = False) -> Path:
    """Return the folder of an embedded, local or hub model, downloading it if necessary.

    Args:
        key: The job key that names the model.
        name: An embedded model, a folder or a hub id.
        parts: The subfolders of its networks, "" for the folder itself. NETWORKS also needs tokenizer and scheduler.
        allow_pickle: Whether weights may be pickles.

    Raises:
        DiffSynthError: Files are missing.
    """
    files, also = files_of(parts, allow_pickle)
    return find_files(key, str(embedded(name) or name), files, also, _hint(name, parts, allow_pickle))


def check_model(key: str, name: str, parts: tuple[str, ...], allow_pickle: bool = False) -> None:
    """Check that a model can be loaded, as far as its files tell, without downloading or reading it.

    Args:
        key: The job key that names the model.
        name: An embedded model, a single file, a folder or a hub id.
        parts: The subfolders of its networks, as for `find_model`.
        allow_pickle: Whether weights may be pickles.

    Raises:
        DiffSynthError: Files are missing or truncated, or the hub cannot be asked for them.
    """
    if is_single_file(name):
        check_tensor_file(key, Path(name))
        return
    hint = _hint(name, parts, allow_pickle)
    folder = check_files(key, str(embedded(name) or name), files_of(parts, allow_pickle)[0], hint)
    if folder is None:  # to be downloaded
        return
    for part in parts:
        weights = first_existing(folder, weight_names(part, allow_pickle))
        if weights is not None:
            check_tensor_file(key, folder / weights)


def guidance_is_input(name: str, allow_pickle: bool = False) -> bool:
    """Whether the U-Net of a model takes the scale of guidance as an input, by its configuration."""
    if is_single_file(name):
        return False
    config = find_model("model_id", name, NETWORKS, allow_pickle) / "unet/config.json"
    return json.loads(config.read_text(encoding="utf-8")).get("time_cond_proj_dim") is not None


def weight_names(part: str, allow_pickle: bool) -> tuple[str, ...]:
    """Return the file names that the weights of a network may have, the preferred one first."""
    return _weights(part, WEIGHTS + PICKLED_WEIGHTS * allow_pickle)


def vae_part(name: str) -> str:
    """Return the subfolder of the VAE if the folder is that of a whole model, else an empty string."""
    return "vae" if (Path(name) / "vae/config.json").exists() else ""


def files_of(parts: tuple[str, ...], allow_pickle: bool) -> tuple[tuple[Names, ...], tuple[str, ...]]:
    """Return the files of a model that are read, and patterns of files to download as well. See `find_model`."""
    whole = parts == NETWORKS
    configs: tuple[Names, ...] = CONFIGS if whole else ()
    files = (file for part in parts for file in (_config(part), weight_names(part, allow_pickle)))
    return (*configs, *files), ALSO_DOWNLOADED if whole else ()


def _config(part: str) -> str:
    return str(Path(part, "config.json"))


def _weights(part: str, forms: tuple[str, ...]) -> tuple[str, ...]:
    if part != "text_encoder":  # which transformers saves, with names of its own
        return tuple(str(Path(part, form.format("diffusion_pytorch_model"))) for form in forms)
    stems = ["pytorch_model" if form in PICKLED_WEIGHTS else "model" for form in forms]
    return tuple(str(Path(part, form.format(stem))) for form, stem in zip(forms, stems, strict=True))


def _hint(name: str, parts: tuple[str, ...], allow_pickle: bool) -> str:
    pickled = not allow_pickle and any(first_existing(Path(name), _weights(part, PICKLED_WEIGHTS)) for part in parts)
    if pickled:
        return f"its weights are pickles (.bin), which are refused by default: {PICKLED}. {ALLOW}"
    return "is it a Stable Diffusion 1.x model (or ControlNet) in diffusers layout?"
