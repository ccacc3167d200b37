"""Random weights of annotators, in the files and layouts of the published ones.

In larger networks, all weights of an output channel are one number, so that files take kilobytes, not gigabytes.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import PreTrainedModel

from stages.annotators.controlnet_aux import _no_arguments, quiet
from tests.stages.annotators import onnx_networks
from tests.typing import Keys

STAGES: Keys = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}  # transformers does not declare it

Files: TypeAlias = Keys
"""What is saved under each file name: weights, or an ONNX network."""


def write_weights(name: str, folder: Path) -> Path:
    """Write the weights of the annotator `name` into a folder of that name in `folder`."""
    folder = folder / name
    if folder.exists():
        return folder
    torch.manual_seed(0)
    with quiet(), _no_arguments():
        files = MAKERS[name]()
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        else:
            torch.save(content, folder / file)
    return folder


def write_depth_model(folder: Path, metric: bool = False) -> Path:
    """Write a tiny depth model in transformers' format; a `metric` one declares that it predicts distances."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(1)
    backbone = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        reshape_hidden_states=False, apply_layernorm=True, **STAGES,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=24, patch_size=14, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, head_hidden_size=8, depth_estimation_type="metric" if metric else "relative",
    )  # fmt: skip
    _save(DepthAnythingForDepthEstimation(config), folder)
    DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(
        folder
    )
    return folder


def write_dpt(folder: Path) -> Path:
    """Write a tiny model of the class of Intel/dpt-large."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(2)
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
    )  # fmt: skip
    _save(DPTForDepthEstimation(config), folder)
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def write_zoe_depth(folder: Path) -> Path:
    """Write a tiny ZoeDepth in transformers' format, which predicts distances without declaring it."""
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor

    torch.manual_seed(3)
    backbone = BeitConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        reshape_hidden_states=False, **STAGES,
    )  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, bottleneck_features=16,
        num_attractors=[4, 2, 2, 1], bin_embedding_dim=16,
    )  # fmt: skip
    _save(ZoeDepthForDepthEstimation(config), folder)
    ZoeDepthImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def _save(network: PreTrainedModel, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    network.save_pretrained(folder)


def _shared(network: torch.nn.Module, spread: float = 0.05, prefix: str = "") -> dict[str, torch.Tensor]:
    weights = {}
    for key, value in network.state_dict().items():
        if value.ndim >= 2:
            value = (torch.randn(value.shape[0], *[1] * (value.ndim - 1)) * spread).expand(value.shape)
        weights[prefix + key] = value
    return weights


def _hed() -> Files:
    from controlnet_aux.hed import ControlNetHED_Apache2

    return {"ControlNetHED.pth": ControlNetHED_Apache2().state_dict()}


def _pidi() -> Files:
    from controlnet_aux.pidi.model import pidinet

    return {"table5_pidinet.pth": {"state_dict": {f"module.{key}": v for key, v in pidinet().state_dict().items()}}}


def _lineart() -> Files:
    from controlnet_aux.lineart import Generator

    return {file: _shared(Generator(3, 1, 3)) for file in ("sk_model.pth", "sk_model2.pth")}


def _lineart_anime() -> Files:
    from controlnet_aux.lineart_anime import UnetGenerator

    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return {"netG.pth": _shared(UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False), prefix="module.")}


def _mlsd() -> Files:
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    return {"mlsd_large_512_fp32.pth": MobileV2_MLSD_Large().state_dict()}


def _normalbae() -> Files:
    from controlnet_aux.normalbae.nets.NNET import NNET

    arguments = types.SimpleNamespace(
        mode="client", architecture="BN", pretrained="scannet", sampling_ratio=0.4, importance_ratio=0.7
    )
    return {"scannet.pt": {"model": _shared(NNET(arguments))}}


def _midas() -> Files:
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    network = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    return {"dpt_hybrid-midas-501f0c75.pt": _shared(network)}


def _zoe() -> Files:
    from controlnet_aux.zoe.zoedepth.models.zoedepth.zoedepth_v1 import ZoeDepth
    from controlnet_aux.zoe.zoedepth.utils.config import get_config

    return {"ZoeD_M12_N.pt": {"model": _shared(ZoeDepth.build_from_config(get_config("zoedepth", "infer")))}}


def _leres() -> Files:
    from controlnet_aux.leres.leres.multi_depth_model_woauxi import RelDepthModel
    from controlnet_aux.leres.pix2pix.models.pix2pix4depth_model import Pix2Pix4DepthModel
    from controlnet_aux.leres.pix2pix.options.test_options import TestOptions

    options = TestOptions().parse()
    options.gpu_ids = []
    return {
        "res101.pth": {"depth_model": _shared(RelDepthModel(backbone="resnext101"), prefix="module.")},
        "latest_net_G.pth": _shared(Pix2Pix4DepthModel(options).netG),
    }


def _teed(file: str) -> Files:
    from controlnet_aux.teed.ted import TED

    return {file: _shared(TED())}


def _openpose() -> Files:
    from controlnet_aux.open_pose.face import FaceNet
    from controlnet_aux.open_pose.model import bodypose_model, handpose_model

    def published(network: torch.nn.Module) -> dict[str, torch.Tensor]:  # without the name of the block
        return {key.partition(".")[2]: value for key, value in _shared(network).items()}

    return {
        "body_pose_model.pth": published(bodypose_model()),
        "hand_pose_model.pth": published(handpose_model()),
        "facenet.pth": _shared(FaceNet()),
    }


def _dwpose() -> Files:
    """Not random: tiny networks that see people in blue discs."""
    return {"yolox_l.onnx": onnx_networks.detector(), "dw-ll_ucoco_384.onnx": onnx_networks.estimator()}


MAKERS: dict[str, Callable[[], Files]] = {
    "hed": _hed, "softedge_pidi": _pidi, "lineart": _lineart, "lineart_anime": _lineart_anime, "mlsd": _mlsd,
    "normalbae": _normalbae, "midas": _midas, "zoe": _zoe, "leres": _leres,
    "teed": functools.partial(_teed, "5_model.pth"), "anyline": functools.partial(_teed, "Anyline/MTEED.pth"),
    "openpose": _openpose, "openpose_video": _openpose, "dwpose": _dwpose,
}  # fmt: skip
