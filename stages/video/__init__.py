"""Sources of frames (video files, image folders), fitting, and encoding with audio. Only this package uses PyAV."""

from stages.video.cuts import find_cuts
from stages.video.encoding import (
    CONTAINER_CODECS,
    ENCODERS,
    Audio,
    Encoding,
    check_encoder,
    check_encoding,
    default_codec,
    encode,
    is_video_name,
    padded_size,
    read_comment,
)
from stages.video.images import fit, frame_files, read_image, save_png, write_frames
from stages.video.landmarks import LANDMARK_DISTANCE, Landmark, last_landmark
from stages.video.limits import check_length
from stages.video.segments import Segment, encode_segment, join, read_segment
from stages.video.selection import Selection
from stages.video.sources import (
    TIME_TOLERANCE,
    ImageFolder,
    Shot,
    Source,
    certain_length,
    check_shape,
    describe,
    open_source,
    stated_length,
)

__all__ = [
    "CONTAINER_CODECS",
    "ENCODERS",
    "LANDMARK_DISTANCE",
    "TIME_TOLERANCE",
    "Audio",
    "Encoding",
    "ImageFolder",
    "Landmark",
    "Segment",
    "Selection",
    "Shot",
    "Source",
    "certain_length",
    "check_encoder",
    "check_encoding",
    "check_length",
    "check_shape",
    "default_codec",
    "describe",
    "encode",
    "encode_segment",
    "find_cuts",
    "fit",
    "frame_files",
    "is_video_name",
    "join",
    "last_landmark",
    "open_source",
    "padded_size",
    "read_comment",
    "read_image",
    "read_segment",
    "save_png",
    "stated_length",
    "write_frames",
]
