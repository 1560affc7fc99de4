"""Models of transformers that are named by their hub id: found at once, or refused at once where there is no network."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from goca.errors import ModelError

_ANSWER = 10.0  # seconds to wait for the hub; transformers itself would ask for each file, again and again


def find_model(name: str, revision: str | None, key: str) -> None:
    """Check that a model can be had: a folder, in the hub, or in its cache; where the hub is away, only the cache is used.

    Args:
        key: setting that names the model, for messages.

    Raises:
        ModelError: it cannot be had, and why.
    """
    if Path(name).is_dir():
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=_ANSWER)
        return
    except HfHubHTTPError as error:
        answered = getattr(error.response, "status_code", 500) < 500
        reason = f"the hub does not give it out ({str(error).strip().splitlines()[0]})"
    except ValueError as error:  # no name of a repository
        answered, reason = True, str(error).splitlines()[0]
    except Exception as error:  # whatever the client makes of a network that is away
        answered, reason = False, f"the hub cannot be reached ({error})"
    if not answered and isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        constants.HF_HUB_OFFLINE = True
        return
    where = "no folder here" if answered else "no folder here and not in the cache"
    raise ModelError(f"{key}={name}: it is {where}, and {reason}; give the folder of a model")
