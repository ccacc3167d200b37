"""Models that take the guidance scale as an input, such as latent consistency models."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding


def takes_guidance(unet: UNet2DConditionModel) -> bool:
    """Return whether the guidance scale is an input of this network."""
    return unet.config["time_cond_proj_dim"] is not None


def embed_guidance(unet: UNet2DConditionModel, scale: float) -> None:
    """Fix the guidance scale of a network, in place (arXiv 2310.04378, section 4.2, where w is `scale` - 1).

    The network adds a projection of the scale's embedding to that of the timestep, before a linear layer. The scale is
    the same in all steps, so the projection can be added to the bias of that layer.
    """
    time = unet.time_embedding
    embedding = get_timestep_embedding(
        torch.tensor([1000 * (scale - 1)]), unet.config["time_cond_proj_dim"], downscale_freq_shift=1
    )
    shift = time.cond_proj.weight.float() @ embedding[0].to(time.cond_proj.weight.device)
    time.linear_1.bias.data += (time.linear_1.weight.float() @ shift).to(time.linear_1.bias.dtype)
