"""The Hugging Face Hub and its cache on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.models.weights import Names, fetching, no_logs, split_revision, wanted_files

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

MODEL_CARD = "README.md"


@dataclass(frozen=True)
class HubSettings:
    """How this machine uses the hub.

    Attributes:
        cache: The folder of downloaded models, which may not exist.
        endpoint: The hub's address.
        offline: Whether downloads are disabled.
        token: Whether there is an access token.
    """

    cache: Path
    endpoint: str
    offline: bool
    token: bool


def hub_settings() -> HubSettings:
    """Return the settings of the environment and of `hf auth login`."""
    from huggingface_hub import constants, get_token

    return HubSettings(
        Path(constants.HF_HUB_CACHE), constants.ENDPOINT, constants.is_offline_mode(), get_token() is not None
    )


def why_unreachable(seconds: float) -> str:
    """Return why the hub does not answer within so many seconds. Empty if it does."""
    from huggingface_hub import get_session

    try:
        get_session().head(hub_settings().endpoint, timeout=seconds)
    except Exception as error:  # the hub's client passes on the errors of its HTTP library
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def scan_cache() -> HFCacheInfo | None:
    """Return what the hub's cache holds. None if there is no cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        with no_logs():
            return scan_cache_dir()
    except CacheNotFound:
        return None


@contextmanager
def without_network() -> Iterator[None]:
    """Disable all requests to the hub, as HF_HUB_OFFLINE=1 does, so that nothing waits for it."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


# --- files of models ------------------------------------------------------------------------------------


def to_download(key: str, name: str, files: Sequence[Names], also: tuple[str, ...]) -> dict[str, int]:
    """Return the files of a hub model that would be downloaded, and their sizes in bytes. Downloads nothing.

    Raises:
        DiffSynthError: The hub does not answer, or does not have them.
    """
    from huggingface_hub import snapshot_download

    patterns, (repository, revision) = wanted_files(key, name, files, also), split_revision(name)
    with no_logs(), _no_bars(), fetching(key, name, files):
        listed = snapshot_download(repository, revision=revision, allow_patterns=patterns, dry_run=True)
    return {file.filename: file.file_size or 0 for file in listed if not isinstance(file, str) and file.will_download}


@contextmanager
def _no_bars() -> Iterator[None]:
    """Show no progress bars of huggingface_hub."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def licence(folder: Path) -> str:
    """Return the licence that the model card in a folder names. Empty if there is no card, or it names none."""
    from huggingface_hub import metadata_load

    card = folder / MODEL_CARD
    try:
        named = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except Exception:  # the card's author wrote it, and its parser raises what it likes
        return ""
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named or "")


def differs(file: Path) -> bool | None:
    """Whether a file of the hub's cache differs from what was downloaded. None if it does not say what that was.

    The cache stores each file under its hash: SHA-256 of large ones, and Git's SHA-1 of the others.
    """
    from huggingface_hub.utils.sha import git_hash, sha_fileobj

    expected = file.resolve().name
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return None
    with file.open("rb") as stream:
        found = sha_fileobj(stream).hex() if len(expected) == 64 else git_hash(stream.read())
    return found != expected
