"""A video file has no other file read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.base.errors import UsageError
from stages.video import open_source, read_comment
from tests.stages.video.clips import clip, mpeg_ts

LISTS = {
    "a.mp4": "ffconcat version 1.0\nfile other.mp4\n",
    "b.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n",
    "c.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n",
    "d.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "e.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "%d.png": "",
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip(Path("other.mp4"), comment="read")
    mpeg_ts(tmp_path)
    Path(name).write_text(LISTS[name])
    with pytest.raises(UsageError, match="is not a video that can be read"):
        open_source(name)
    assert read_comment(Path(name)) == ""
