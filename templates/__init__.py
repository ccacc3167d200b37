"""Templates of `diffsynth init`: a job file for each task, and a Makefile for a folder of videos.

`TASK.json` has the settings that we recommend. `published/TASK.json` has the values of DiffSynth's own config file, key
by key. docs/tasks.md has the reasons.
"""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """What to do with a video. DiffSynth's tasks come first.

    Attributes:
        about: What the task is for.
    """

    about: str

    TEXT_GUIDED = "text_guided", "a new look by prompt"
    FASHION = "fashion", "a person as in a reference image"
    IMAGE_GUIDED = "image_guided", "the colours of a style image"
    RESTORING = "restoring", "detail for a small or damaged video"
    RENDERING_3D = "rendering_3d", "a plain 3D rendering made real"
    TEXT_GUIDED_LCM = "text_guided_lcm", "text_guided in 8 steps"

    def __new__(cls, name: str, about: str) -> Task:
        """Return a member whose value is its name."""
        task = str.__new__(cls, name)
        task._value_, task.about = name, about
        return task


PUBLISHED = ("text_guided", "fashion", "image_guided", "restoring", "rendering_3d")

NOTES = {"fashion": "For a likeness, set model_id to a model fine-tuned on the person"}  # extra steps

LORAS = {  # LoRA files in templates, and the commands that download them into the job's folder
    "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": "hf download latent-consistency/lcm-lora-sdv1-5 "
    "pytorch_lora_weights.safetensors --local-dir lcm-lora-sdv1-5",
}

# Approximate download size of hub models in GB: the files that are read, in float32 where there is a choice.
DOWNLOADS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 4.3,
    "Lykon/dreamshaper-7": 4.3,
    "lllyasviel/control_v11f1p_sd15_depth": 1.4,
    "lllyasviel/control_v11p_sd15_softedge": 1.4,
    "lllyasviel/control_v11p_sd15_openpose": 1.4,
    "lllyasviel/control_v11e_sd15_shuffle": 1.4,
    "lllyasviel/control_v11f1e_sd15_tile": 1.4,
    "Intel/dpt-large": 1.4,
    "depth-anything/Depth-Anything-V2-Small-hf": 0.1,
    "lllyasviel/Annotators/ControlNetHED.pth": 0.03,
}
