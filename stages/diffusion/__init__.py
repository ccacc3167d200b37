"""Denoising with cross-frame attention. No other package imports diffusers or transformers.

Images are uint8 RGB [K, H, W, 3] in CPU memory, latents float32 [K, 4, H/8, W/8]. Importing this package is cheap;
most of its modules import torch.
"""

LATENT_FACTOR = 8  # px per latent, in each direction
LATENT_CHANNELS = 4
SUBPIXELS = 4  # per latent and direction, of noise that follows motion
