from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

class ConfigMixin:
    config: Mapping[str, Any]
    @classmethod
    def from_config(cls, config: Mapping[str, object], **kwargs: object) -> Self: ...
    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs: object) -> dict[str, Any]: ...
    def register_to_config(self, **kwargs: object) -> None: ...

class ModelMixin(nn.Module, ConfigMixin):
    dtype: torch.dtype
    device: torch.device
    @overload
    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, output_loading_info: Literal[True], **kwargs: object
    ) -> tuple[Self, dict[str, Any]]: ...
    @overload
    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self: ...
    @classmethod
    def from_single_file(cls, link_or_path_or_dict: str | Mapping[str, Tensor], **kwargs: object) -> Self: ...
    def save_pretrained(self, save_directory: str | Path, **kwargs: object) -> None: ...

class TimestepEmbedding(nn.Module):
    linear_1: nn.Linear
    cond_proj: nn.Linear  # None unless the configuration has time_cond_proj_dim

class UNet2DConditionOutput:
    sample: Tensor

class UNet2DConditionModel(ModelMixin):
    time_embedding: TimestepEmbedding
    conv_in: nn.Conv2d
    conv_out: nn.Conv2d
    attn_processors: dict[str, object]
    def __init__(self, **config: object) -> None: ...
    def set_attn_processor(self, processor: AttnProcessor2_0 | Mapping[str, object]) -> None: ...
    @overload
    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        return_dict: Literal[False],
        **kwargs: object,
    ) -> tuple[Tensor]: ...
    @overload
    def __call__(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, **kwargs: Any
    ) -> UNet2DConditionOutput: ...

class ControlNetModel(ModelMixin):
    controlnet_cond_embedding: nn.Module
    attn_processors: dict[str, object]
    def __init__(self, **config: object) -> None: ...
    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, **kwargs: object) -> Self: ...
    def set_attn_processor(self, processor: AttnProcessor2_0 | Mapping[str, object]) -> None: ...
    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        *,
        return_dict: Literal[False],
        **kwargs: object,
    ) -> tuple[list[Tensor], Tensor]: ...

class DiagonalGaussianDistribution:
    mean: Tensor
    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...
    def kl(self) -> Tensor: ...

class AutoencoderKLOutput:
    latent_dist: DiagonalGaussianDistribution

class AutoencoderTinyOutput:
    latents: Tensor

class DecoderOutput:
    sample: Tensor

class AutoencoderKL(ModelMixin):
    encoder: nn.Module
    decoder: nn.Module
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d
    def __init__(self, **config: object) -> None: ...
    def enable_tiling(self, use_tiling: bool = True) -> None: ...
    def encode(self, x: Tensor) -> AutoencoderKLOutput: ...
    def decode(self, z: Tensor) -> DecoderOutput: ...

class AutoencoderTiny(ModelMixin):
    def __init__(self, **config: object) -> None: ...
    def enable_tiling(self, use_tiling: bool = True) -> None: ...
    def encode(self, x: Tensor) -> AutoencoderTinyOutput: ...
    def decode(self, x: Tensor) -> DecoderOutput: ...

class SchedulerOutput:
    prev_sample: Tensor
    pred_original_sample: Tensor

class Scheduler(ConfigMixin):
    timesteps: Tensor
    sigmas: Tensor
    alphas_cumprod: Tensor
    init_noise_sigma: float
    def __init__(self, **config: object) -> None: ...
    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: object) -> Self: ...
    def save_pretrained(self, save_directory: str | Path, **kwargs: object) -> None: ...
    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None, **kwargs: object
    ) -> None: ...
    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor: ...
    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...
    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, **kwargs: object
    ) -> SchedulerOutput: ...

class DDIMScheduler(Scheduler): ...
class DPMSolverMultistepScheduler(Scheduler): ...
class EulerDiscreteScheduler(Scheduler): ...
class LCMScheduler(Scheduler): ...

class LatentConsistencyModelPipeline:
    def get_guidance_scale_embedding(self, w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = ...) -> Tensor: ...

class StableDiffusionControlNetPipeline:
    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: object) -> Self: ...

class StableDiffusionControlNetInpaintPipeline(StableDiffusionControlNetPipeline): ...
