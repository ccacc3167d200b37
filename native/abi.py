"""The structs of include/ebsynth.h, member by member, for ctypes."""

from __future__ import annotations

import ctypes
from typing import TypeAlias

PROGRESS = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_float)

_INT, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
_SIZES = ("batch", "source_height", "source_width", "target_height", "target_width")


_Member: TypeAlias = type[ctypes.c_int32 | ctypes.c_uint32 | ctypes.c_uint64 | ctypes.c_float | ctypes.c_void_p]


def _fields(**members: _Member) -> list[tuple[str, _Member]]:
    """Return the members that all calls begin with, and these."""
    head: list[tuple[str, _Member]] = [("struct_size", ctypes.c_uint32), ("memory", _INT), ("stream", _POINTER)]
    return [*head, *((size, _INT) for size in _SIZES), *members.items()]


class Settings(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("backend", _INT),
        ("device", _INT),
        ("threads", _INT),
        ("progress", PROGRESS),
        ("user", _POINTER),
    )


class Info(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("cuda_built", _INT),
        ("cuda_devices", _INT),
        ("cpu_threads", _INT),
        ("cpu_kernels", ctypes.c_char * 32),
        ("compiler", ctypes.c_char * 96),
        ("cuda_toolkit", ctypes.c_char * 32),
        ("cuda_architectures", ctypes.c_char * 128),
    )


class Synthesis(ctypes.Structure):
    _fields_ = _fields(
        style_channels=_INT,
        guide_channels=_INT,
        source_style=_POINTER,
        source_guides=_POINTER,
        target_guides=_POINTER,
        target_modulation=_POINTER,
        style_weights=_POINTER,
        guide_weights=_POINTER,
        uniformity=_FLOAT,
        patch_size=_INT,
        pyramid_levels=_INT,
        search_vote_iterations=_INT,
        patch_match_iterations=_INT,
        stop_threshold=_INT,
        vote=_INT,
        extra_pass_3x3=_INT,
        seed=ctypes.c_uint64,
        image=_POINTER,
        nnf=_POINTER,
        error=_POINTER,
    )


_PAIR: dict[str, _Member] = {
    "style_channels": _INT,
    "guide_channels": _INT,
    "source_style": _POINTER,
    "target_style": _POINTER,
    "source_guide": _POINTER,
    "target_guide": _POINTER,
    "style_weight": _FLOAT,
    "guide_weight": _FLOAT,
}


class Matching(ctypes.Structure):
    _fields_ = _fields(
        **_PAIR,
        patch_sizes=_POINTER,
        rounds=_INT,
        pyramid_levels=_INT,
        patch_match_iterations=_INT,
        search_radius=_INT,
        start=_INT,
        seed=ctypes.c_uint64,
        nnf=_POINTER,
        error=_POINTER,
        border=_INT,
    )


class Remapping(ctypes.Structure):
    _fields_ = _fields(channels=_INT, patch_size=_INT, source=_POINTER, nnf=_POINTER, image=_POINTER, border=_INT)


class Errors(ctypes.Structure):
    _fields_ = _fields(**_PAIR, patch_size=_INT, nnf=_POINTER, error=_POINTER, border=_INT)
