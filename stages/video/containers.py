"""Opening video files for reading."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer

from stages.video.sources import url

# FFmpeg's formats that hold the video themselves. It also knows playlists and lists of files (hls, dash, concat, sdp,
# ...), through which a file could have others read, or addresses.
FORMATS = (
    "apng", "asf", "av1", "avi", "dv", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mp4",
    "mpeg", "mpegts", "mpegvideo", "mxf", "nut", "obu", "ogg", "rm", "vc1", "webm", "wtv", "yuv4mpegpipe",
)  # fmt: skip


def open_container(path: Path) -> InputContainer:
    """Open a video file. Only this one file is read, whatever it contains.

    Raises:
        av.error.FFmpegError: It cannot be read, or is in a format that is not in FORMATS.
    """
    return av.open(url(path), metadata_errors="ignore", container_options={"format_whitelist": ",".join(FORMATS)})
