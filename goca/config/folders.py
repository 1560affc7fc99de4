"""Where configurations come from, a user's own folders included, and the functions that `${name:...}` calls in them."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from goca.config.explained import annotated, explanations
from goca.paths import BUNDLED, CONF

_last: tuple[Path, ...] = (CONF,)  # folders of the configuration that was composed last


def folders() -> tuple[Path, ...]:
    """Where the configuration in use comes from, in Hydra's order: `--config-dir`, conf, `hydra.searchpath`."""
    return _sources(HydraConfig.get()) if HydraConfig.initialized() else _last


def options(group: str) -> list[str]:
    """The options of a configuration group, those in a user's folders included, sorted."""
    return sorted({file.stem for folder in folders() for file in (folder / group).glob("*.yaml")})


def use_folders(wanted: Sequence[Path]) -> None:
    """Have the Hydra that has just been initialized look in these folders, of which `conf` is one, in this order."""
    loader: Any = GlobalHydra.instance().config_loader()
    elements = loader.get_search_path().get_path()
    (main,) = (number for number, element in enumerate(elements) if element.provider == "main")
    elements[main : main + 1] = [
        SearchPathElement("main" if path == CONF else "command-line", f"file://{path}") for path in wanted
    ]
    loader.repository.initialize_sources(loader.get_search_path())


def remember_folders(hydra_config: Any) -> None:
    """Let `folders()` be those of a configuration that no command is running with."""
    global _last
    _last = _sources(hydra_config)


def _sources(hydra_config: Any) -> tuple[Path, ...]:
    found = [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "file"]
    return tuple(dict.fromkeys(found))


def option_names(group: str) -> str:
    """The options of a group in one line, for --help."""
    return ", ".join(options(group))


def group_table(choices: Mapping[str, str | None]) -> str:
    """The groups among `choices` (group -> chosen option) with a word of explanation and their options, for --help."""
    words = yaml.safe_load((CONF / "base" / "groups.yaml").read_text(encoding="utf-8"))
    lines = []
    for group, chosen in reversed(list(choices.items())):  # Hydra lists them from the last to the first
        if not group.startswith("hydra/") and options(group):
            lines.append(f"  {group} [{chosen}]: {words.get(group, 'a group of your own')}")
            lines += textwrap.wrap(option_names(group), 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) or "  this command has none"


def _quick_help() -> None:
    """Have Hydra's --help say what each key means, and collect the options of every group only where they are shown."""
    slow = Hydra.get_help

    def get_help(self: Hydra, help_cfg: Any, cfg: Any, args_parser: Any, resolve: bool) -> str:
        if "CONFIG_GROUPS" in help_cfg.template:
            return slow(self, help_cfg, cfg, args_parser, resolve)
        template = string.Template(help_cfg.template)
        plain: Any = OmegaConf.to_container(cfg, resolve=False)
        running = HydraConfig.get()
        explained = explanations(plain, str(running.job.config_name), running.runtime.choices, folders())
        dumped = annotated(OmegaConf.to_yaml(cfg, resolve=resolve), explained)
        return template.substitute(FLAGS_HELP=self.format_args_help(args_parser), CONFIG=dumped)

    Hydra.get_help = get_help  # type: ignore[method-assign]


def _open_sections() -> None:
    """Have Hydra take any key in sections that are passed on to others, as it is typed: `pipeline_options={eta: 1.0}`."""
    closed = ConfigLoaderImpl._apply_overrides_to_config

    def apply(overrides: Any, cfg: DictConfig) -> None:
        _open(cfg)
        closed(overrides, cfg)

    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(apply)  # type: ignore[method-assign]


def _open(section: DictConfig) -> None:
    """Open what lies below: a section that names no key, so that none can be misspelt, and options, which have no end."""
    for key, found in section.items_ex(resolve=False):
        if isinstance(found, DictConfig) and key != "hydra":
            if not found or str(key).endswith("options"):
                OmegaConf.set_struct(found, False)
            _open(found)


def _resolver(name: str, function: str, **settings: bool) -> None:
    """Let `${name:...}` in a configuration call a function, whose module is imported only when a value needs it."""
    module, _, attribute = function.rpartition(".")
    OmegaConf.register_new_resolver(
        name, lambda *arguments: getattr(import_module(module), attribute)(*arguments), replace=True, **settings
    )


OmegaConf.register_new_resolver("bundled", lambda name: str(BUNDLED / name), replace=True)
OmegaConf.register_new_resolver("last_part", lambda name: str(name).rstrip("/").rpartition("/")[2], replace=True)
OmegaConf.register_new_resolver("first", lambda entries: entries[0], replace=True)
OmegaConf.register_new_resolver("options", option_names, replace=True)
OmegaConf.register_new_resolver("group_table", group_table, replace=True)
_quick_help()
_open_sections()
_resolver("run_folder", "goca.runs.sweeps.run_folder", use_cache=True)
_resolver("auto_model", "goca.backbones.auto.setting")
