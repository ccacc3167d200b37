"""Load networks of transformers from folders of weights. Code in such a folder is never run."""

from __future__ import annotations

from typing import Any

from stages.annotators.controlnet_aux import quiet
from stages.base.errors import DiffSynthError
from stages.models.weights import Weights, explained, pick_device

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def pretrained(weights: Weights, kind: str, what: str, device: str) -> tuple[Any, Any]:
    """Return the image processor and the network in a folder of weights.

    Args:
        weights: The folder, which holds FILES.
        kind: The name of a class of transformers.
        what: What the folder should hold, for messages.
        device: auto, cpu, mps, cuda or cuda:N.

    Raises:
        DiffSynthError: The folder holds something else, or lacks tensors.
    """
    folder = weights.folder()
    with quiet(), explained(weights.key, f"{folder} ({what})"):
        import transformers
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        network, info = getattr(transformers, kind).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := info["missing_keys"]:  # transformers would fill them with random numbers
        raise DiffSynthError(
            f"{weights.key}: {folder} lacks {len(missing)} tensors, such as {sorted(missing)[0]}", f"choose {what}"
        )
    return processor, network.to(pick_device(device)).eval()
