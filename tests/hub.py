"""A server that answers like the Hugging Face Hub, with models from folders."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT, PINNED = "1" * 40, "2" * 40  # of the newest revision, and of another one
LARGE = ".safetensors"  # files that the hub stores under their SHA-256


def etag(name: str, data: bytes) -> str:
    """The hash that the hub gives a file."""
    return sha256(data).hexdigest() if name.endswith(LARGE) else sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a model by their names in the repository."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def entry(name: str, data: bytes) -> dict[str, object]:
    """What a listing says about a file."""
    listed: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": etag("", data)}
    if name.endswith(LARGE):
        listed["lfs"] = {"oid": etag(name, data), "size": len(data), "pointerSize": 1}
    return listed


@contextmanager
def hub_server(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve models, each with its files by name. Yield the server's address, and the list of paths it was asked for.

    `owner/model@revision` is a revision of a model, whose commit is PINNED.
    """
    asked: list[str] = []
    pinned = {name.partition("@")[0]: name for name in models if "@" in name}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            parts = path.strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            repository = "/".join(parts[2:4] if api else parts[:2])
            revision, name = "".join(parts[5:6] if api else parts[3:4]), "/".join(parts[4:])
            is_pinned = f"{repository}@{revision}" in models or revision == PINNED
            self.commit = PINNED if is_pinned else COMMIT
            files = models.get(pinned.get(repository, "") if is_pinned else repository, {})
            if path == "/":
                self.answer(b"")
            elif api and files and name.startswith("tree/"):
                self.answer(json.dumps([entry(file, data) for file, data in files.items()]).encode())
            elif api and files:
                siblings = [{"rfilename": file} for file in files]
                self.answer(json.dumps({"id": repository, "sha": self.commit, "siblings": siblings}).encode())
            elif name in files:
                self.answer(files[name], ETag=f'"{etag(name, files[name])}"')
            else:
                self.answer(b"", 404)

        def answer(self, data: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for header, value in {**headers, "Content-Length": str(len(data)), "X-Repo-Commit": self.commit}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *parts: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def fill_cache(cache: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Store a model in a hub cache as huggingface_hub does, and return the folder of its files.

    `owner/model@revision` is a revision of the model, whose commit is PINNED.
    """
    name, _, revision = name.partition("@")
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = PINNED if revision else COMMIT
    folder = repository / "snapshots" / commit
    for file, data in files.items():
        blob, link = repository / "blobs" / etag(file, data), folder / file
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(blob)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / (revision or "main")).write_text(commit)
    return folder
