"""What goes wrong between this machine, the hub and the disk, as one message with its cause and what to do."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub import errors as hub

from goca.config.redact import redact

try:
    import httpx2  # the client of huggingface_hub from 2.0 on
except ImportError:
    import httpx as httpx2  # type: ignore[no-redef]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNKNOWN_HOST = (
    "name or service not known",
    "nodename nor servname",
    "name resolution",
    "no address associated",
    "getaddrinfo",
)
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


class Silence(Exception):  # noqa: N818 - not raised for people; `explain` words it
    """The hub accepts a connection and sends nothing."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no byte in {seconds:.0f} s")
        self.seconds = seconds


class Damaged(OSError):  # noqa: N818 - as above
    """What has arrived is not the file that the hub names."""


def host(url: str | None = None) -> str:
    """The host of an address, without user, password and query; the hub's for None."""
    return urlsplit(url or constants.ENDPOINT).netloc.rpartition("@")[2]


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and whatever it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def is_unreachable(error: BaseException) -> bool:
    """Whether there is no way to the hub at all, so that trying again at once is idle."""
    return any(
        isinstance(cause, (hub.OfflineModeIsEnabled, httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError))
        and not _is_reset(cause)
        for cause in causes(error)
    )


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help."""
    if is_unreachable(error):
        return False
    for cause in causes(error):
        if isinstance(cause, hub.HfHubHTTPError):
            return status(cause) in (408, 429, 500, 502, 503, 504) or _is_expired_address(cause)
        if isinstance(cause, (httpx2.TransportError, Damaged)) or "Consistency check failed" in str(cause):
            return True
    return False


def wait_wanted(error: BaseException) -> float:
    """Seconds that a hub which limits requests asks to wait; 0 where it does not say."""
    for cause in causes(error):
        if isinstance(cause, hub.HfHubHTTPError) and status(cause) == 429:
            header = cause.response.headers.get("Retry-After", "")
            return float(header) if header.isdigit() else 0.0
    return 0.0


def status(error: hub.HfHubHTTPError) -> int:
    return int(getattr(error.response, "status_code", 0) or 0)


def explain(error: BaseException, name: str, revision: str | None, key: str = "model.checkpoint") -> str:
    """One message under 400 characters: key, what, where, cause and remedy; no secret in it."""
    for cause in causes(error):
        text = _explained(cause, name, revision)
        if text:
            where = f"{key.partition('.')[0]}.revision" if isinstance(cause, hub.RevisionNotFoundError) else key
            return str(redact(f"{where}: {text}"))[:399]
    return str(redact(f"{key}: {name} could not be fetched from {host()}: {first_line(error)}"))[:399]


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(redact(lines[0] if lines else type(error).__name__))[:200]


def _explained(error: BaseException, name: str, revision: str | None) -> str | None:
    if isinstance(error, hub.OfflineModeIsEnabled):
        return (
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it; unset it, or fetch "
            "it first with a network: python -m goca.fetch with the same model settings"
        )
    if isinstance(error, hub.HfHubHTTPError):
        return _refused(error, name, revision)
    if isinstance(error, Silence):
        return f"{host()} sent nothing for {error.seconds:.0f} s while {name} was fetched; {_AGAIN}"
    if isinstance(error, httpx2.TransportError):
        return _lost(error, name)
    if isinstance(error, hub.HFValidationError):
        return f"'{name}' is not a hub id; give owner/name or a folder"
    if isinstance(error, Damaged) or "Consistency check failed" in str(error):
        what = first_line(error).removesuffix(").") if isinstance(error, Damaged) else "a file was cut short on its way"
        return f"{name}: {what}, and again when repeated; check proxies and HF_ENDPOINT, and {_AGAIN}"
    if isinstance(error, (hub.FileMetadataError, json.JSONDecodeError)):
        return (
            f"{host()} does not answer as a hub does, while {name} was asked for; check HF_ENDPOINT, proxies and log-in pages"
        )
    if isinstance(error, OSError):
        return _disk(error, name)
    return None


_AGAIN = "the same command continues where it stopped"


def _refused(error: hub.HfHubHTTPError, name: str, revision: str | None) -> str:
    code = status(error)
    page = f"https://{host()}/{name}"
    if isinstance(error, hub.GatedRepoError):
        if get_token():
            return f"{name} is gated, and the account of your token has no access: accept the terms at {page} with that account"
        return f"{name} is gated: accept its terms at {page}, then {LOG_IN}"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{name} has no revision '{revision}'; give a branch, tag or commit of {page}"
    if isinstance(error, hub.DisabledRepoError):
        return f"the hub has disabled {name}; choose another checkpoint"
    if isinstance(error, hub.RepositoryNotFoundError):
        private = "your token may not read it" if get_token() else f"{LOG_IN} if it is private or gated"
        return f"there is no repository {name} on {host()}; check the name, or {private}"
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return f"{name} lacks a file it should have: {_path(error)}"
    if code == 401:
        return f"{host()} refuses the access token (401): wrong or expired; `hf auth login` again, or correct HF_TOKEN"
    if code == 429:
        wait = wait_wanted(error)
        when = f"in {wait:.0f} s" if wait else "later"
        return f"{host()} limits requests (429); try again {when}, logged in for a higher limit; {_AGAIN}"
    if _is_expired_address(error):
        return (
            f"{host(_url(error))} refuses the signed address of a file of {name} (403); such addresses expire: check this "
            f"machine's clock and proxies, and {_AGAIN}"
        )
    if code >= 500:
        return f"{host(_url(error))} answers {code}, a fault of the server, while {name} was fetched; later {_AGAIN}"
    return f"{host(_url(error))} answers {code} while {name} was fetched ({first_line(error)[:120]})"


def _lost(error: httpx2.TransportError, name: str) -> str:
    text = str(error).lower()
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy cannot reach {host()} while {name} was fetched ({first_line(error)}); check HTTPS_PROXY and NO_PROXY"
    if any(words in text for words in _UNKNOWN_HOST):
        return f"the name {host()} is unknown here, so {name} cannot be fetched; {_NETWORK}"
    if "certificate" in text or "ssl" in text:
        return f"no safe connection to {host()} for {name} ({first_line(error)}); check proxies and certificates"
    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)) and not _is_reset(error):
        return f"{host()} cannot be reached, so {name} cannot be fetched ({first_line(error)}); {_NETWORK}"
    if isinstance(error, httpx2.TimeoutException):
        return f"{host()} does not answer in time while {name} was fetched; {_AGAIN}"
    return f"the connection to {host()} broke again and again while {name} was fetched ({first_line(error)[:120]}); {_AGAIN}"


_NETWORK = "check the network and HF_ENDPOINT, or give a local folder"


def _disk(error: OSError, name: str) -> str | None:
    where = constants.HF_HUB_CACHE
    if error.errno in _FULL:
        return f"no room for {name} in the hub's cache {where} ({error.strerror}); make room, or set HF_HOME to a larger disk"
    if error.errno in _UNWRITABLE:
        return (
            f"the hub's cache {where} cannot be written to ({error.strerror}), so {name} is not fetched; set HF_HOME elsewhere"
        )
    return None


def no_room(name: str, needed: int, free: int) -> str:
    """Told before a byte is fetched."""
    where = Path(constants.HF_HUB_CACHE)
    return (
        f"{name} needs {needed / 1e9:.2f} GB, and the disk of the hub's cache {where} has {free / 1e9:.2f} GB left; make room, "
        "or set HF_HOME to a larger disk"
    )


def _url(error: hub.HfHubHTTPError) -> str | None:
    response: Any = error.response
    try:
        return str(response.url)
    except (AttributeError, RuntimeError):
        return None


def _path(error: hub.HfHubHTTPError) -> str:
    return urlsplit(_url(error) or "").path.rpartition("/resolve/")[2].partition("/")[2] or "unknown"


def _is_expired_address(error: hub.HfHubHTTPError) -> bool:
    """A 403 of the store that files lie in, not of the hub: its addresses are signed and expire."""
    address = _url(error)
    return status(error) == 403 and address is not None and host(address) != host()


def _is_reset(error: BaseException) -> bool:
    return "reset" in str(error).lower() or "disconnected" in str(error).lower()
