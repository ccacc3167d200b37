"""The networks, built from classes of diffusers and transformers, and how they are saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, ModelMixin, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedModel

from stages.base.json_types import JsonObject
from tools.train_mini.world import COLOURS, FILLERS, SYNONYMS, THINGS

TOKENS = 77
TEXT_WIDTH = 96
INITIAL_LOG_VARIANCE = -5.0  # of latents
INITIAL_SCALING = 1.0  # of latents; set after training so that they have a standard deviation of 1

VAE = {
    "block_out_channels": (16, 48, 96, 96), "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "sample_size": 128,
}  # fmt: skip
UNET = {
    "block_out_channels": (48, 96, 160), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
    "cross_attention_dim": TEXT_WIDTH, "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def make_tokenizer() -> CLIPTokenizer:
    """Make a tokenizer with a token for each word of the painted world; other text is split into pieces or bytes."""
    letters = [chr(code) for code in _byte_letters()]
    texts = (*SYNONYMS.values(), FILLERS, THINGS, COLOURS)
    words = sorted({word for group in texts for text in group for word in text.replace(",", "").split()})
    pairs = Tokenizer(BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = Whitespace()
    # Without this, the trainer numbers last letters in random order, and the order decides ties between merges.
    last = sorted({word[-1] + "</w>" for word in words})
    trainer = BpeTrainer(vocab_size=10**4, end_of_word_suffix="</w>", special_tokens=last, show_progress=False)
    pairs.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in json.loads(pairs.to_str())["model"]["merges"]]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    # Merges are pairs, whatever the annotation says.
    return CLIPTokenizer(vocab=vocabulary, merges=cast("list[str]", merges), model_max_length=TOKENS)


def _byte_letters() -> list[int]:
    """Return the code points that stand for bytes in byte-level BPE: printable ones unchanged, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*printable, *range(256, 256 + 256 - len(printable))]


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def make_vae() -> AutoencoderKL:
    """Make an autoencoder whose latents start with little noise, so that it learns from the first step on."""
    vae = AutoencoderKL(**VAE, scaling_factor=INITIAL_SCALING)
    log_variance = slice(vae.config["latent_channels"], None)  # the second half of the moments
    moments = vae.quant_conv.state_dict()
    torch.nn.init.zeros_(moments["weight"][log_variance])
    torch.nn.init.constant_(moments["bias"][log_variance], INITIAL_LOG_VARIANCE)
    return vae


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET)


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    return ControlNetModel.from_unet(
        unet, conditioning_channels=3, conditioning_embedding_out_channels=(8, 16, 32, 64), load_weights_from_unet=False
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULER)


def save_model(
    folder: Path, tokenizer: CLIPTokenizer, text_encoder: nn.Module, vae: nn.Module, unet: nn.Module
) -> None:
    """Save a Stable Diffusion model in diffusers layout, in half precision."""
    tokenizer.save_pretrained(folder / "tokenizer")
    make_scheduler().save_pretrained(folder / "scheduler")
    for name, network in (("text_encoder", text_encoder), ("vae", vae), ("unet", unet)):
        save_network(folder / name, network)
    classes = {
        "tokenizer": "CLIPTokenizer",
        "text_encoder": "CLIPTextModel",
        "vae": "AutoencoderKL",
        "unet": "UNet2DConditionModel",
        "scheduler": "DDIMScheduler",
    }
    index: JsonObject = {
        name: ["transformers" if kind.startswith("CLIP") else "diffusers", kind] for name, kind in classes.items()
    }
    index |= {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_network(folder: Path, network: nn.Module) -> None:
    """Save a copy in half precision, so that training of the network itself can continue."""
    if not isinstance(network, ModelMixin | PreTrainedModel):
        raise TypeError(f"{type(network).__name__} cannot be saved")
    copy.deepcopy(network).cpu().half().save_pretrained(folder, safe_serialization=True)
