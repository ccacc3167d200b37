"""Models that were taught guidance and take its scale as an input, as latent consistency models do."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding


def takes_guidance(unet: UNet2DConditionModel) -> bool:
    """Is the scale of guidance an input of this network?"""
    return unet.config["time_cond_proj_dim"] is not None


def embed_guidance(unet: UNet2DConditionModel, scale: float) -> None:
    """Sets the scale of guidance for good (arXiv 2310.04378, section 4.2; w there is `scale` - 1).

    The network adds a projection of its embedding to that of the timestep, before a linear layer. Since the scale is
    the same in all steps, what comes of it is a bias of that layer.
    """
    time = unet.time_embedding
    embedding = get_timestep_embedding(
        torch.tensor([1000 * (scale - 1)]), unet.config["time_cond_proj_dim"], downscale_freq_shift=1
    )
    shift = time.cond_proj.weight.float() @ embedding[0].to(time.cond_proj.weight.device)
    time.linear_1.bias.data += (time.linear_1.weight.float() @ shift).to(time.linear_1.bias.dtype)
