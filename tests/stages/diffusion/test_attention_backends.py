"""Attention backends against plain softmax attention, at the head dimension of Stable Diffusion's largest layers."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from diffusers import UNet2DConditionModel

from stages.base.errors import DiffSynthError, UsageError
from stages.diffusion.attention import CrossFrameAttention, Joint, Shared, View, example_inputs
from stages.diffusion.attention_backends import (
    BACKENDS,
    TOLERANCES,
    AttentionBackend,
    Inputs,
    Math,
    Sdpa,
    Xformers,
    check_backend,
    measure_backends,
    seconds_on_gpu,
    try_backend,
)

HEADS, CHANNELS, TOKENS, GROUP = 2, 40, 24, 3
ON_CPU = ("auto", "flash", "math", "sdpa")


def inputs(channels: int = CHANNELS) -> Inputs:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2 * GROUP, TOKENS, HEADS, channels)  # two passes of one group
    return q, k, v


def views(backend: AttentionBackend) -> dict[str, View]:
    everyone = torch.arange(GROUP).expand(GROUP, -1)
    return {"joint": Joint(GROUP, kernel=backend.attend), "shared": Shared(everyone, kernel=backend.attend)}


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention of each frame of a pass to all frames of the pass, in float64."""
    q = q.double().unflatten(0, (-1, GROUP))
    k, v = (part.double().unflatten(0, (-1, GROUP)).flatten(1, 2) for part in (k, v))
    weights = torch.einsum("pfqhc,pkhc->pfhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("pfhqk,pkhc->pfqhc", weights, v).flatten(0, 1).float()


@pytest.mark.parametrize("view", ["joint", "shared"])
@pytest.mark.parametrize("name", ON_CPU)
def test_a_backend_gives_softmax_attention(name: str, view: str) -> None:
    found = views(BACKENDS[name]())[view].attend(CrossFrameAttention(), *inputs())
    torch.testing.assert_close(found, plain(*inputs()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_runs_on_a_cpu_or_says_why_not(name: str) -> None:
    if name in ON_CPU:
        check_backend(name, "cpu")
        try_backend(name, inputs())
        return
    with pytest.raises(UsageError, match=f"attention_backend: {name} (is not installed|needs an NVIDIA)") as raised:
        try_backend(name, inputs())
    assert "sdpa" in raised.value.hint


def test_a_kernel_that_fails_when_it_is_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BACKENDS["efficient"], "cuda_only", False)  # PyTorch has no such kernel for the CPU
    with pytest.raises(DiffSynthError) as raised:
        try_backend("efficient", inputs())
    expected = "attention_backend: efficient cannot run on cpu in float32, with 40 channels per head: "
    assert raised.value.message.startswith(expected) and raised.value.hint == "use sdpa"


@pytest.mark.parametrize("native", ["native", "_native_flash", "_native_math"])
def test_diffusers_takes_the_same_layout(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Xformers, "dispatched", native)
    found = views(Xformers())["shared"].attend(CrossFrameAttention(), *inputs())
    torch.testing.assert_close(found, plain(*inputs()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["flash2", "flash3", "sage", "xformers"])
def test_diffusers_knows_the_backends_of_other_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec(BACKENDS[name].module):
        pytest.skip(f"{name} is installed")
    monkeypatch.setattr(BACKENDS[name], "module", "")
    monkeypatch.setattr(BACKENDS[name], "cuda_only", False)
    with pytest.raises(DiffSynthError, match="is not usable because of missing package or the version is too old"):
        try_backend(name, inputs())


def test_heads_that_are_too_wide_for_a_backend_are_left_to_pytorch() -> None:
    wide = inputs(channels=160)
    torch.testing.assert_close(BACKENDS["sage"]().attend(*wide), Sdpa().run(*wide), atol=0, rtol=0)


def test_one_of_pytorchs_kernels_is_replaced_where_it_cannot_run() -> None:
    with pytest.raises(RuntimeError):
        BACKENDS["cudnn"]().run(*inputs())
    torch.testing.assert_close(BACKENDS["cudnn"]().attend(*inputs()), Sdpa().run(*inputs()), atol=0, rtol=0)


class Rough(Sdpa):
    """Changes results by more than rounding."""

    name = "rough"

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return super().run(q, k, v) * 1.001


class Broken(Sdpa):
    name = "broken"

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return super().run(q, k, v) * torch.nan


def fake_seconds(backend: AttentionBackend, inputs: Inputs) -> float:
    return {"rough": 0.1, "broken": 0.1, "math": 1.0, "flash": 2.0, "sdpa": 3.0}[backend.name]


def test_only_backends_that_agree_with_pytorch_are_measured() -> None:
    kinds = (Rough, Broken, Math, BACKENDS["cudnn"], BACKENDS["sage"])
    found = measure_backends(inputs(), fake_seconds, [kind() for kind in kinds])
    assert found == {"sdpa": 3.0, "math": 1.0}


def test_by_default_backends_that_can_be_the_fastest_are_measured() -> None:
    assert measure_backends(inputs(), fake_seconds) == {"sdpa": 3.0, "flash": 2.0}


@pytest.mark.parametrize(
    ("joint", "queries", "keys"), [(True, (1, 3 * 64), (1, 3 * 64)), (False, (3, 64), (3, 3 * 64))]
)
def test_example_inputs_are_those_of_the_layers_with_most_tokens(
    joint: bool, queries: tuple[int, int], keys: tuple[int, int]
) -> None:
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(80, 160), layers_per_block=1, cross_attention_dim=8, attention_head_dim=2,
        norm_num_groups=8,
    )  # fmt: skip
    seen: list[tuple[torch.Size, torch.Size]] = []

    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((q.shape, k.shape))
        return Sdpa().run(q, k, v)

    unet.set_attn_processor({name: CrossFrameAttention() for name in unet.attn_processors})
    everyone = torch.arange(3).expand(3, -1)
    view = Joint(3, kernel=record) if joint else Shared(everyone, kernel=record)
    with torch.inference_mode():
        unet(torch.zeros(3, 4, 8, 8), 1, torch.zeros(1, 5, 8), cross_attention_kwargs={"view": view})
    q, k, v = example_inputs(unet, tokens=64, group=3, joint=joint, like=torch.zeros(0))
    assert (q.shape, k.shape, v.shape) == ((*queries, 2, 40), (*keys, 2, 40), (*keys, 2, 40))
    assert seen[0] == (q.shape, k.shape)
    assert max(seen, key=lambda shapes: shapes[0][:2].numel() * shapes[1][1]) == seen[0]


@pytest.mark.parametrize(
    ("milliseconds", "runs", "expected"), [([9, 7, 8, 6, 7], 5, 0.006), ([300, 250], 2, 0.25), ([600], 1, 0.6)]
)
def test_a_measurement_takes_the_least_of_a_few_runs(
    milliseconds: list[float], runs: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None: ...

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return milliseconds[len(calls) - 2]

    class Counted(Sdpa):
        def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            calls.append(q)
            return q

    calls: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    assert seconds_on_gpu(Counted(), inputs()) == expected
    assert len(calls) == runs + 1  # the first one is not counted


def on_gpu(channels: int) -> Inputs:
    q, k, v = (part.half().cuda() for part in inputs(channels))
    return q, k, v


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("channels", [40, 80, 160])
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "sage"])
def test_backends_on_a_gpu_agree(name: str, channels: int) -> None:
    given = on_gpu(channels)
    try:
        try_backend(name, on_gpu(40))
    except DiffSynthError as error:
        pytest.skip(error.message)
    found, expected = BACKENDS[name]().attend(*given), Math().run(*(part.float() for part in given))
    assert (found.float() - expected).abs().max() <= TOLERANCES["float16"] * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_backends_are_measured_on_a_gpu() -> None:
    seconds = measure_backends(on_gpu(40), seconds_on_gpu)
    assert "sdpa" in seconds and all(0 < taken < 10 for taken in seconds.values())
