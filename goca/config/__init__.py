"""From Hydra's configuration to objects, with errors that name the key, what was wrong and what would be right."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
import omegaconf
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from goca.config.arguments import late_help, quote
from goca.config.chosen import prefer_chosen
from goca.config.failures import by_job, failed_jobs
from goca.config.folders import folders, remember_folders, use_folders
from goca.config.folders import options as options
from goca.config.objects import explain_instantiation, first_line
from goca.config.redact import redact
from goca.config.settings import SETTINGS, keys, problems
from goca.errors import ConfigError, GocaError, Interrupted
from goca.paths import CONF


def compose(overrides: Sequence[str] = (), config_name: str = "config", folder: str | Path | None = None) -> DictConfig:
    """The configuration that `python -m goca.run` would see with these overrides.

    Args:
        overrides: as on the command line; `hydra.searchpath=[DIR]` adds a folder behind `conf`.
        config_name: a primary configuration.
        folder: one's own configurations, before `conf`, as `--config-dir`; those of a running command are used as well.

    Raises:
        ConfigError: an override that does not fit; the message names the key and the choices. Or there is no such folder.
    """
    wanted = folders() if HydraConfig.initialized() else (CONF,)
    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigError(f"there is no folder {folder} with configurations")
        wanted = (Path(folder).resolve(), *wanted)
    running = GlobalHydra.instance().hydra  # of a command that composes further configurations, such as the app
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            use_folders(wanted)
            cfg = hydra.compose(config_name, overrides=list(overrides), return_hydra_config=True)
            remember_folders(cfg.hydra)
            choices = dict(cfg.hydra.runtime.choices)
            with open_dict(cfg):
                del cfg["hydra"]
    except (HydraException, OmegaConfBaseException, *_STRAY) as error:
        raise ConfigError(explain(error, config_name, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = running
    prefer_chosen(cfg, overrides, choices, lambda chosen: compose(chosen, config_name, folder))
    check(cfg, config_name)
    return cfg


def check(cfg: DictConfig, config_name: str = "config", complete: bool = False) -> None:
    """Check the keys that belong to no section with a class of its own; see `goca.config.settings`.

    Args:
        complete: keys that a person has to give may not be missing.

    Raises:
        ConfigError: a line for every key that is not what it should be.
    """
    values, absent = {}, []
    for key in keys(SETTINGS[config_name]):
        parent, _, name = key.rpartition(".")
        try:
            section = OmegaConf.select(cfg, parent) if parent else cfg
            if not isinstance(section, DictConfig):
                values[parent] = section
            elif OmegaConf.is_missing(section, name):
                absent.append(f"{key} has to be given, as {key}=...; --help says what it is")
            elif name in section:
                values[key] = plain(section[name])
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {first_line(error)}") from error
    if lines := problems(values, config_name) + absent * complete:
        raise ConfigError("\n".join(lines))


def build(cfg: Any, key: str, **arguments: Any) -> Any:
    """Instantiate one section of the configuration.

    Raises:
        ConfigError: an unknown key, a missing value, a wrong type or value in that section.
    """
    try:
        section = OmegaConf.select(cfg, key)
        if not isinstance(section, DictConfig):
            raise ConfigError(f"{key} must be one of its options or a section of keys, got {section!r}")
        return hydra.utils.instantiate(section, _convert_="all", **arguments)
    except InstantiationException as error:
        raise ConfigError(explain_instantiation(error, key)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {first_line(error)}") from error


def command(main: Callable[[], Any], config_name: str = "config") -> None:
    """Run a Hydra entry point. Errors that the user can fix are one message without a traceback, and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here instead of being printed by Hydra
    for module in ("hydra.main", "hydra._internal.utils"):
        vars(sys.modules[module])["get_args_parser"] = late_help(get_args_parser)
    quiet()
    failed: list[str] = []
    exit_code = 2
    failed_jobs.clear()
    try:
        main()
    except GocaError as error:
        failed.append(str(error))
        exit_code = error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        failed.append(explain(error, config_name, sys.argv[1:]))
    except _STRAY as error:
        if not (_raised_by_hydra(error) or failed_jobs):  # an optimising sweeper raises when every job failed
            raise
        failed.append(explain(error, config_name, sys.argv[1:]))
    except OSError as error:
        made_by_hydra = error.errno == errno.ENOENT and _raised_in_mkdir(error)  # such as below /proc
        if error.errno not in _UNWRITABLE and not made_by_hydra:
            raise
        failed.append(
            f"cannot write to {error.filename}: {error.strerror}; set paths.output to a folder that can be written to"
        )
    except KeyboardInterrupt:
        failed.append("stopped; what had been written is kept")
        exit_code = 130
    failed = [*by_job(failed_jobs), *failed]
    if failed:
        _stop(failed, exit_code)


# What Hydra raises for some overrides, such as `dataset=null`, instead of its own exceptions.
_STRAY = (ValueError, TypeError, AttributeError, AssertionError, LookupError, RecursionError)


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether the error comes from composing the configuration, and not from the job."""
    libraries = {Path(hydra.__file__).parent, Path(omegaconf.__file__).parent}
    return not libraries.isdisjoint(Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents)


def _raised_in_mkdir(error: BaseException) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].name in ("mkdir", "makedirs")


def _stop(messages: Sequence[str], exit_code: int) -> NoReturn:
    for message in messages:
        print(f"error: {redact(message)}", file=sys.stderr)
    sys.exit(exit_code)


# What Hydra meets when it makes the run folder.
_UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)


@contextmanager
def job(cfg: DictConfig, config_name: str = "config") -> Iterator[None]:
    """Around one job's work: checks the configuration first, and keeps libraries quiet.

    Errors that the user can fix end the command with their message. In a sweep `goca.config.failures.SweepFailures` keeps them
    for the end, and the other jobs go on; only a signal stops a sweep.
    """
    hydra_config = HydraConfig.get()
    quiet()
    try:
        given: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)  # as typed, ${...} included
        prefer_chosen(cfg, given, hydra_config.runtime.choices, lambda own: compose(own, config_name))
        check(cfg, config_name, complete=True)
        yield
    except GocaError as error:
        if hydra_config.mode == RunMode.MULTIRUN and not isinstance(error, Interrupted):
            raise
        _stop([str(error)], error.exit_code)  # here: on its way out Hydra would add a line of its own


def quiet() -> None:
    """Silence what libraries say about things that are as they should be: advice, adverts, bars while weights load.

    Every command begins with it. Libraries that are imported later read the environment; those that are there already are told.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch", "transformers", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("httpx", "httpx2", "filelock", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for library in ("transformers", "diffusers"):
        if library in sys.modules:
            speech = sys.modules[library].utils.logging
            speech.set_verbosity_error()
            speech.disable_progress_bar()
    for library in ("pytorch_lightning", "lightning_fabric", "diffusers", "transformers", "huggingface_hub", "torch", "gradio"):
        warnings.filterwarnings("ignore", module=library)


_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # also those of transformers
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


_RENAMED = {
    "experiment": "what runs are grouped by is group=NAME now, and a ready-made sweep is +experiment=NAME",
    "run.dir": "the folder of a run is output=DIR now, as in every command",
}


def explain(error: BaseException, config_name: str = "config", overrides: Sequence[str] = ()) -> str:
    """One line or two for what Hydra raises, with the valid keys where a key is unknown."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _explain_grammar(error)
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)'\n", text, re.DOTALL):
        key, value = ambiguous.groups()
        return (
            f"{key}={value} holds a comma. As one value it needs quotes that Hydra sees, inside the shell's own: "
            f"'{key}={quote(value)}'; as a list, brackets: '{key}=[{value}]'; to sweep over the values, add -m"
        )
    if unknown := re.search(r"Could not override '([^']+)'", text):
        key, inner = unknown.group(1), str(getattr(error.__cause__, "full_key", ""))  # of section={key: value} the key within
        key = inner if inner.startswith(f"{key}.") else key
        if key in _RENAMED:
            return f"there is no key '{key}' any more: {_RENAMED[key]}"
        groups = [each for each in overrides if re.fullmatch(r"[\w/@]+=[\w/]+", each) and (CONF / each.split("=")[0]).is_dir()]
        # Where there are only groups, one of them does not fit, and they cannot be composed to see what does.
        return _unknown_key(key, config_name, [] if groups == list(overrides) else groups)
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("full_key", "object_type"))
    ]
    return "\n".join(
        line for line in lines if "hydra.searchpath" not in line and not line.startswith(("Config search path", "provider="))
    )


def _explain_grammar(error: OverrideParseException) -> str:
    """How to write a value that Hydra's grammar does not take as it is."""
    override = str(error.override)
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is not a setting: settings are written key=value"
    reason = first_line(error)
    return (
        f"cannot read {override!r} ({reason})\nSpaces, commas, brackets, braces, quotes, ':', '=' and other signs need quotes "
        f"that Hydra sees, inside the shell's own: '{key}={quote(value.strip(chr(34) + chr(39)))}'"
    )


def _unknown_key(key: str, config_name: str, groups: Sequence[str]) -> str:
    """Name the choices beside an unknown key: the groups and keys of the section it was looked for in."""
    parent, _, name = key.rpartition(".")
    composed = compose(groups, config_name)
    section = OmegaConf.select(composed, parent) if parent else composed
    if section is None and parent:
        return _unknown_key(parent, config_name, groups)
    if not isinstance(section, DictConfig):
        return f"there is no key '{key}': '{parent}' is a single value"
    choices = sorted(str(choice) for choice in section if not str(choice).startswith("_"))
    hint = "".join(f" (did you mean '{near}'?)" for near in difflib.get_close_matches(name, choices, n=1))
    return f"there is no key '{key}'{hint}; {parent or 'the configuration'} has {', '.join(choices)}"


def plain(cfg: Any) -> Any:
    """The composed configuration as plain data, every reference resolved; what goes into results and loggers."""
    if isinstance(cfg, (DictConfig, ListConfig)):
        return OmegaConf.to_container(cfg, resolve=True)
    return cfg
