"""Tiny random networks of the classes that find, cut out and measure people, in transformers' files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)
from transformers.utils import logging

NAMES = ("person", "bicycle")
SAM_SIDE = 128  # px


def write_people_model(name: str, folder: Path) -> Path:
    """Write the model of the annotator `name`."""
    return {"person_mask": write_sam, "vitpose": write_vitpose}[name](folder)


def write_detector(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Write a detector whose boxes are random."""
    torch.manual_seed(4)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic",
        **_named(out_features=["stage2", "stage3", "stage4"]),
    )  # fmt: skip
    config = RTDetrV2Config(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=10, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=2, decoder_attention_heads=2, num_denoising=0, id2label=dict(enumerate(names)),
    )  # fmt: skip
    _save(RTDetrV2ForObjectDetection(config), folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def write_sam(folder: Path) -> Path:
    """Write a SAM 2 model, which can track objects through videos, too."""
    torch.manual_seed(20)  # with others, most masks are empty
    backbone = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[SAM_SIDE] * 2, blocks_per_stage=[1, 2, 2, 2],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 4], window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[4], query_stride=[2, 2], num_query_pool_stages=3,
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=128,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    parts: dict[str, Any] = {
        "vision_config": vision,
        "prompt_encoder_config": Sam2PromptEncoderConfig(hidden_size=128, image_size=SAM_SIDE, patch_size=16),
        "mask_decoder_config": Sam2MaskDecoderConfig(
            hidden_size=128, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    }
    tracking = Sam2VideoConfig(
        **parts, image_size=SAM_SIDE, memory_attention_hidden_size=128, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128, memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1, memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32,
    )  # fmt: skip
    _save(Sam2VideoModel(tracking), folder)
    Sam2ImageProcessor(size={"height": SAM_SIDE, "width": SAM_SIDE}).save_pretrained(folder)
    return folder


def write_vitpose(folder: Path, experts: int = 1) -> Path:
    """Write a ViTPose model, with several experts a ViTPose++."""
    torch.manual_seed(6)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_experts=experts, part_features=4, **_named(out_features=["stage1"]),
    )  # fmt: skip
    _save(VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, **_named(num_labels=17))), folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def _named(**options: Any) -> dict[str, Any]:
    """Return options that transformers does not declare."""
    return options


def _save(network: PreTrainedModel, folder: Path) -> None:
    logging.disable_progress_bar()
    network.save_pretrained(folder)
