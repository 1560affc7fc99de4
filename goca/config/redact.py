"""Keeps secrets out of what a run writes: configurations, messages and what loggers are given."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")
# Of addresses that are signed instead of needing a log-in.
_SIGNATURE = re.compile(
    r"(?<=[?&])((?:X-Amz-)?(?:Signature|Credential|Security-Token|Key-Pair-Id|Policy|token|sig|key))=[^&\s'\"<>)]+", re.I
)
_SHORTEST = 8  # a shorter value would blank out ordinary words
HIDDEN = "***"


def redact(value: Any) -> Any:
    """The value with every secret of the environment, and every password and signature in a URL, replaced by `***`.

    Secrets are the values of variables whose names end in KEY, TOKEN, SECRET, PASSWORD or CREDENTIALS. Mappings and lists are
    searched through; their keys stay.

    >>> redact({"base_url": "https://me:hunter2@host/v1", "seed": 0})
    {'base_url': 'https://***@host/v1', 'seed': 0}
    """
    if isinstance(value, str):
        for secret in _secrets():
            value = value.replace(secret, HIDDEN)
        return _SIGNATURE.sub(rf"\1={HIDDEN}", _URL_PASSWORD.sub(f"{HIDDEN}@", value))
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(redact(item) for item in value)
    return value


def write_config(cfg: Any, path: Path) -> None:
    """The composed configuration as YAML, every reference resolved and without secrets."""
    plain = redact(OmegaConf.to_container(cfg, resolve=True))
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _secrets() -> list[str]:
    """Longest first, so that a secret that contains another one is replaced whole."""
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
