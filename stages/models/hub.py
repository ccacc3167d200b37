"""The Hugging Face Hub and its cache on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.models.weights import no_logs

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo


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
