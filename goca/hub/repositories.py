"""Repositories of the Hugging Face hub: one commit per process, its list of files, and the files that are wanted of it.

Everything goes through huggingface_hub, into its own cache. What this module adds: a revision is resolved once, a hub that
cannot be asked is replaced by the cache, and nothing is fetched that is there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub import errors as hub

from goca.errors import ModelError
from goca.hub import download, network_errors
from goca.hub.digests import cache_folder
from goca.hub.download import hub_is_quiet, within
from goca.hub.network_errors import explain
from goca.hub.progress import Meter

log = logging.getLogger(__name__)

_ANSWER, _ANSWER_WITH_CACHE = 10.0, 5.0  # seconds to wait for the hub's word on a revision
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COMMITS = "GOCA_HUB_COMMITS"  # in the environment, so that processes which this one starts read the same commits


@dataclass(frozen=True)
class Listing:
    """The files of one commit.

    Args:
        commit: its full hash.
        files: path -> bytes.
        complete: False where only those in the cache are known.
        answered: False where the hub could not be asked just now.
    """

    commit: str
    files: Mapping[str, int]
    complete: bool = True
    answered: bool = True


def is_commit(revision: str | None) -> bool:
    return bool(revision and _COMMIT.fullmatch(revision))


def folder_of(name: str, commit: str) -> Path:
    """Where the cache keeps the files of a commit."""
    return _storage(name) / "snapshots" / commit


def pin(name: str, revision: str | None, commit: str) -> None:
    """Have this process, and those that it starts, read `revision` of a repository at `commit`."""
    os.environ[_COMMITS] = json.dumps(_pinned() | {f"{name}@{revision}": commit})


def forget() -> None:
    """Resolve revisions anew."""
    os.environ.pop(_COMMITS, None)


def listing(name: str, revision: str | None, key: str = "model.checkpoint", complete: bool = False) -> Listing:
    """The commit that a revision stands for, and its files.

    Without an answer from the hub the commit that the cache knows is taken, and said so.

    Args:
        complete: a list of all files is wanted, not only of those in the cache.

    Raises:
        ModelError: no answer, and nothing in the cache; or a repository or revision that does not exist.
    """
    commit = revision if is_commit(revision) else _pinned().get(f"{name}@{revision}")
    if commit is not None:
        known = _known(name, commit)
        if known is not None and (known.complete or not complete):
            return known
    cached = None if complete else _cached(name, revision)
    try:
        found = _ask(name, commit or revision, _ANSWER_WITH_CACHE if cached else _ANSWER)
    except Exception as error:
        if isinstance(error, hub.RevisionNotFoundError) or cached is None:
            raise ModelError(explain(error, name, revision, key)) from error
        reason = explain(error, name, revision, key).partition(": ")[2]
        if not isinstance(error, hub.OfflineModeIsEnabled):
            log.warning("taking commit %s of %s from the cache: %s", cached.commit[:8], name, reason)
        found = replace(cached, answered=False)
    if not is_commit(revision):
        pin(name, revision, found.commit)
    return found


def options(name: str, key: str) -> dict[str, Any]:
    """What `from_pretrained` of a library takes so that it waits for no hub that is not there; {} where there is one.

    Raises:
        ModelError: it is on no hub that can be asked, and not in the cache.
    """
    if Path(name).is_dir() or name.count("/") != 1:
        return {"local_files_only": True}
    found = listing(name, None, key)
    return {} if found.answered else {"revision": found.commit, "local_files_only": True}


def fetch(name: str, found: Listing, wanted: list[str], key: str = "model.checkpoint", revision: str | None = None) -> Path:
    """Have the wanted files in the cache; returns the folder of the commit.

    Raises:
        ModelError: with the cause and what to do.
    """
    folder = folder_of(name, found.commit)
    missing = [path for path in wanted if not (folder / path).exists()]
    if not missing:
        return folder
    needed = sum(found.files.get(path, 0) for path in missing)
    try:
        if constants.is_offline_mode():
            raise hub.OfflineModeIsEnabled(f"lacks {missing[0]}")
        _check_room(name, needed, key)
        meter = Meter(f"fetching {name}", needed, len(missing))
        with hub_is_quiet(), meter.shown():
            _probe(name, found.commit, missing[0])
            download.fetch_all(name, found.commit, sorted(missing, key=lambda path: found.files.get(path, 0)), meter)
    except ModelError:
        raise
    except Exception as error:
        if isinstance(error, hub.OfflineModeIsEnabled) and folder.is_dir():
            raise ModelError(
                f"{key}: the cache {constants.HF_HUB_CACHE} lacks {missing[0]} of {name}, and HF_HUB_OFFLINE forbids to fetch "
                "it; unset it, or fetch first: python -m goca.fetch with the same model settings"
            ) from error
        raise ModelError(explain(error, name, revision, key)) from error
    _remember_branch(name, revision, found.commit)
    return folder


# ------------------------------------------------------------------------------------------------------------ revisions
def _ask(name: str, revision: str | None, seconds: float) -> Listing:
    """Ask the hub, again after short waits where that may help."""
    api = HfApi(endpoint=constants.ENDPOINT)
    for attempt in range(3):
        try:
            info = within(seconds, lambda: api.model_info(name, revision=revision, timeout=seconds, files_metadata=True))
            break
        except Exception as error:
            wait = max(network_errors.wait_wanted(error), 2.0**attempt)
            if attempt == 2 or wait > seconds or not network_errors.is_passing(error) or seconds < _ANSWER:
                raise
            time.sleep(wait)
    found = Listing(str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()})
    _write_quietly(_listing_file(name, found.commit), json.dumps(found.files))
    return found


def _probe(name: str, commit: str, path: str) -> None:
    """One question about one file, so that a gate or a dead network shows before the client's own long retries."""
    url = hf_hub_url(name, path, revision=commit, endpoint=constants.ENDPOINT)
    try:
        within(_ANSWER, lambda: get_hf_file_metadata(url, timeout=_ANSWER, endpoint=constants.ENDPOINT))
    except Exception as error:
        if not network_errors.is_passing(error):
            raise


def _known(name: str, commit: str) -> Listing | None:
    """The list as the hub gave it once, else what of the commit is in the cache."""
    try:
        files = json.loads(_listing_file(name, commit).read_text(encoding="utf-8"))
        return Listing(commit, {str(path): int(count) for path, count in files.items()})
    except (OSError, ValueError, AttributeError, TypeError):
        pass
    folder = folder_of(name, commit)
    if not folder.is_dir():
        return None
    present = [file for file in folder.rglob("*") if file.is_file()]
    return Listing(commit, {file.relative_to(folder).as_posix(): file.stat().st_size for file in present}, complete=False)


def _cached(name: str, revision: str | None) -> Listing | None:
    """What the cache knows of a revision."""
    if is_commit(revision):
        return _known(name, str(revision))
    try:
        commit = (_storage(name) / "refs" / (revision or constants.DEFAULT_REVISION)).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return _known(name, commit) if is_commit(commit) else None


def _remember_branch(name: str, revision: str | None, commit: str) -> None:
    """As the hub's client does: what a branch or tag stands for, for machines without a network. Written once all is there."""
    if not is_commit(revision):
        _write_quietly(_storage(name) / "refs" / (revision or constants.DEFAULT_REVISION), commit)


def _storage(name: str) -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"


def _listing_file(name: str, commit: str) -> Path:
    return cache_folder() / "hub" / name.replace("/", "--") / f"{commit}.json"


def _pinned() -> dict[str, str]:
    try:
        return dict(json.loads(os.environ.get(_COMMITS, "{}")))
    except ValueError:
        return {}


def _write_quietly(path: Path, text: str) -> None:
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        pass  # a cache that cannot be written to serves all the same


def _check_room(name: str, needed: int, key: str) -> None:
    folder = Path(constants.HF_HUB_CACHE).expanduser()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(f"{key}: {network_errors.no_room(name, needed, free)}")
