"""Rendering frames with Stable Diffusion and ControlNet, which `render` does, and `upscale` once more.

A step is one phase over all frames, from its array of latents to the next step's, so that every frame sees its
neighbours at the same timestep. A smoothed step is two phases: predict clean frames, then deflicker them and continue
from these.
"""
