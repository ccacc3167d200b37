"""Denoising with cross-frame attention: the one door to diffusers and transformers.

Images are uint8 RGB [K, H, W, 3] on the host, latents float32 [K, 4, H/8, W/8]. Importing this package alone is cheap;
its modules import torch.
"""

LATENT_FACTOR = 8  # px to a latent
LATENT_CHANNELS = 4
