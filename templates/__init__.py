"""What `diffsynth init` writes: a job file for each task, and a Makefile for a folder of videos.

`TASK.json` has the settings that we recommend, `published/TASK.json` the values of DiffSynth's own config file, key by
key. docs/tasks.md has the reasons.
"""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """What a video is to become. DiffSynth's tasks come first.

    Attributes:
        about: What the task is for, in a few words.
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

NOTES = {"fashion": "Give a model fine-tuned on the person as model_id, as DiffSynth's file did"}  # what else to do

LORAS = {  # that templates name, and the commands that place them beside the job file
    "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": "hf download latent-consistency/lcm-lora-sdv1-5 "
    "pytorch_lora_weights.safetensors --local-dir lcm-lora-sdv1-5",
}

# Approximate size in GB of what is downloaded of a hub model: the files that are read, float32 where there is a choice.
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
