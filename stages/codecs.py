"""Names of video codecs. Importing them needs none of FFmpeg's libraries."""

from __future__ import annotations

from enum import StrEnum


class Codec(StrEnum):
    """How frames are written: as a video, or as a folder of images."""

    H264 = "h264"
    HEVC = "hevc"
    VP9 = "vp9"
    AV1 = "av1"
    PRORES = "prores"
    FFV1 = "ffv1"
    PNG = "png"
    EXR = "exr"

    @classmethod
    def _missing_(cls, value: object) -> Codec | None:
        return cls.HEVC if value == "h265" else None


IMAGES = (Codec.PNG, Codec.EXR)
"""Those that write a folder of images."""
TRANSPARENT = (Codec.PNG, Codec.EXR, Codec.FFV1, Codec.PRORES)
"""Those that can hold an alpha channel. The first that a container can hold is chosen."""
