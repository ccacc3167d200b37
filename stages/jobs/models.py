"""The models that a job reads, for checks before its stages and for `diffsynth models`."""

from __future__ import annotations

from dataclasses import dataclass

from stages.diffusion.layout import NETWORKS, files_of, is_single_file, vae_part
from stages.jobs.job import Job
from stages.models.weights import Names

Network = tuple[str, str, tuple[str, ...]]
"""The job's key, the name of a model, and its parts, as for `check_model`."""


def networks(job: Job) -> list[Network]:
    """Return the models of Stable Diffusion and ControlNet that are loaded. ControlNets of scale 0 are not."""
    nets = [
        (f"controlnet_model_id[{index}]", name, ("",))
        for index, (name, runs) in enumerate(zip(job.controlnet_model_id, job.networks_run, strict=True))
        if runs
    ]
    if job.upscale is not None and job.upscale.model is not None:
        nets.append(("upscale.model", job.upscale.model, ("",)))
    vae = [] if job.vae is None else [("vae", job.vae, (vae_part(job.vae),))]
    return [("model_id", job.model_id, NETWORKS), *nets, *vae]


def tensor_files(job: Job) -> list[tuple[str, str]]:
    """Return the job's keys and the paths of LoRA and textual inversion files."""
    loras = [(f"loras[{index}]", lora.path) for index, lora in enumerate(job.loras)]
    return loras + [(f"embeddings[{index}]", embedding.path) for index, embedding in enumerate(job.embeddings)]


@dataclass(frozen=True)
class Needed:
    """Files of a model.

    Attributes:
        key: The job's key that names it.
        name: An embedded model, an absolute path or a hub id.
        files: The files that are read. Empty if `name` is a single file.
        also: Patterns of further files to download.
    """

    key: str
    name: str
    files: tuple[Names, ...] = ()
    also: tuple[str, ...] = ()


def needed_models(job: Job) -> list[Needed]:
    """Return all models that a job reads."""
    found = [
        Needed(key, name) if is_single_file(name) else Needed(key, name, *files_of(parts, job.allow_pickle))
        for key, name, parts in networks(job)
    ]
    found += [Needed(key, path) for key, path in tensor_files(job)]
    for index, (annotator, runs) in enumerate(zip(job.controlnet_processor, job.networks_run, strict=True)):
        weights = annotator.weights(f"controlnet_processor[{index}]") if runs else None
        if weights is not None:
            found += [Needed(part.key, part.name, part.files) for part in (weights, *weights.others)]
    return found
