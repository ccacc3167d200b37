"""The one door to PyAV: sources of frames (video files, image folders), fitting, and encoding with audio."""

from stages.video.encoding import (
    CONTAINERS,
    ENCODERS,
    Encoding,
    check_encoding,
    default_codec,
    encode,
    is_video_name,
    padded_size,
    read_comment,
)
from stages.video.images import fit, read_image
from stages.video.sound import Audio
from stages.video.sources import (
    TIME_TOLERANCE,
    ImageFolder,
    Shot,
    Source,
    VideoFile,
    check_shape,
    describe,
    open_source,
    stated_length,
)

__all__ = [
    "CONTAINERS",
    "ENCODERS",
    "TIME_TOLERANCE",
    "Audio",
    "Encoding",
    "ImageFolder",
    "Shot",
    "Source",
    "VideoFile",
    "check_encoding",
    "check_shape",
    "default_codec",
    "describe",
    "encode",
    "fit",
    "is_video_name",
    "open_source",
    "padded_size",
    "read_comment",
    "read_image",
    "stated_length",
]
