"""The configuration reference: every command, group, option and key, read from `conf/` and from the classes behind it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from docs.builder.typed import parameters_of, root_types
from goca.__main__ import COMMANDS
from goca.config.explained import explanations, file_comments, parameters
from goca.config.settings import SETTINGS
from goca.errors import ConfigError
from goca.method.aggregation import heads, layers
from goca.method.calibration import STEPS
from goca.method.decision import RULES
from goca.paths import CONF
from goca.registry import Registry

GLOBAL = ("preset", "experiment")  # options that set other groups
REGISTRIES: dict[str, Registry[Any]] = {
    "aggregation.heads": heads.METHODS,
    "aggregation.layers": layers.METHODS,
    "calibration.steps": STEPS,
    "decision.rule": RULES,
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; `|` in cells is escaped."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def value(content: Any) -> str:
    """A value as it is written on the command line, short."""
    if content is inspect.Parameter.empty:
        return "has to be given"
    if isinstance(content, tuple):
        content = list(content)
    if not isinstance(content, str | int | float | list | dict | type(None)):
        content = str(content)
    text = yaml.safe_dump(content, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in content.items():
        if isinstance(inner, dict) and inner and "_target_" not in inner:
            yield from leaves(inner, f"{prefix}{name}.")
        elif not str(name).startswith("_"):
            yield f"{prefix}{name}", inner


# ------------------------------------------------------------------------------------------------------------- commands
@cache
def composed(config_name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The configuration of a command without its groups' options resolved, its groups, and what its keys mean."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name, return_hydra_config=True)
    chosen: Any = OmegaConf.to_container(cfg.hydra.runtime.choices)
    choices = {group: option for group, option in reversed(chosen.items()) if "/" not in group and group != "local"}
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    header = str(plain.pop("hydra")["help"]["header"])
    header = re.sub(r"(, one of)?\n *\$\{options:[^}]*\}", "", header)
    return plain, choices, explanations(plain, config_name, choices, [CONF]) | {"": header}


def commands_page() -> str:
    """One section per command: how it is called, its groups, and its own keys with types and defaults."""
    lines = [
        "# Commands and their settings",
        "",
        "Every command is `goca <name>` and, the same, `python -m goca.<name>`. Settings are written `key=value`; a group",
        "takes one of its options, `model=sdxl`. `--help` prints groups and keys with their meaning, `--cfg job` the composed",
        "configuration, `-m` runs every combination of comma-separated values, `--config-dir DIR` adds",
        "[options of your own](../extending.md). Exit code 0: done. 2: something that the message says how to change.",
        "130: interrupted. Written from the code.",
        "",
        table(["command", "what it does"], [(f"[`goca {name}`](#goca-{name})", text) for name, (_, text) in COMMANDS.items()]),
    ]
    for name, (module, about) in COMMANDS.items():
        lines += ["", f"## goca {name}", "", f"`python -m {module}`: {about}.", ""]
        config_name = "config" if name == "run" else name.replace("-", "_")
        if config_name in SETTINGS:
            lines += _settings_of(config_name)
        else:
            lines += ["```text", _argparse_help(module), "```"]
    return "\n".join(lines) + "\n"


def _argparse_help(module: str) -> str:
    import subprocess
    import sys

    ran = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def _settings_of(config_name: str) -> list[str]:
    plain, choices, meaning = composed(config_name)
    lines = ["```text", meaning[""].strip(), "```", ""]
    groups = yaml.safe_load((CONF / "base" / "groups.yaml").read_text(encoding="utf-8"))
    if choices:
        rows = [(f"[`{group}`](groups/{group}.md)", f"`{option}`", groups.get(group, "")) for group, option in choices.items()]
        lines += [table(["group", "default", "what it chooses"], rows), ""]
    types = root_types(SETTINGS[config_name])
    own = {key: content for key, content in leaves(plain) if key.partition(".")[0] not in choices and key != "preset"}
    rows = []
    for key, content in own.items():
        section, _, name = key.partition(".")
        target = plain[section].get("_target_") if isinstance(plain[section], dict) else None
        kind = types.get(key) or (parameters_of(target).get(name, ("",))[0] if target else "") or _kind(content)
        rows.append((f"`{key}`", kind, value(content), meaning.get(key, "")))
    return [*lines, table(["key", "type", "default", "meaning"], rows)] if rows else lines


def _kind(content: Any) -> str:
    kinds = {bool: "true or false", int: "whole number", float: "number", list: "list", dict: "section of keys"}
    return "text" if content is None else kinds.get(type(content), "text")


# --------------------------------------------------------------------------------------------------------------- groups
def groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("base", "local"))


def options_of(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def head(group: str, option: str) -> str:
    """The comment that a file begins with: when to use it."""
    lines = []
    for line in (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).strip()


def inherited(group: str, option: str, seen: frozenset[str] = frozenset()) -> tuple[dict[str, Any], dict[str, str]]:
    """All settings of an option, what it inherits included, and the comments beside them."""
    file = CONF / group / f"{option}.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    merged: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for entry in content.pop("defaults", []):
        name = entry.partition("@")[0] if isinstance(entry, str) else ""
        if name and name not in seen and (CONF / group / f"{name}.yaml").is_file():
            theirs, more = inherited(group, name, seen | {option})
            merged, notes = {**merged, **theirs}, {**notes, **more}
    return {**merged, **content}, {**notes, **file_comments(file)}


def group_page(group: str) -> str:
    """One configuration group: its options, and every key with type, default and meaning."""
    words = yaml.safe_load((CONF / "base" / "groups.yaml").read_text(encoding="utf-8"))
    names = options_of(group)
    title = f"# `{group}=`"
    lines = [
        title,
        "",
        f"{words.get(group, 'ready-made sweeps: `+experiment=NAME`').capitalize()}. Written from `conf/{group}`.",
        "",
    ]
    if group in GLOBAL:
        for name in names:
            text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
            body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
            lines += [f"## {name}", "", *_prose(head(group, name)), ""]
            lines += ["```yaml", body.strip(), "```", ""] if body.strip() else []
        return "\n".join(lines)
    by_target: dict[str, list[str]] = {}
    for name in names:
        content = inherited(group, name)[0]
        content = content.get(group, content) if isinstance(content.get(group), dict) else content
        by_target.setdefault(str(content.get("_target_", "")), []).append(name)
    lines += [table(["option", "when to use it"], [(f"`{name}`", " ".join(head(group, name).split())) for name in names]), ""]
    for target, members in by_target.items():
        lines += _keys_of(group, target, members)
    for key, registry in REGISTRIES.items():
        if key.startswith(f"{group}."):
            rows = [(f"`{name}`", _first_line(part)) for name, part in registry.items()]
            lines += [
                f"## Names for `{key}`",
                "",
                "Or a function of yours by its dotted path.",
                "",
                table(["name", ""], rows),
                "",
            ]
    return "\n".join(lines)


def _first_line(part: Any) -> str:
    document = inspect.getdoc(getattr(part, "partial", part)) or ""
    return document.splitlines()[0] if document else ""


def _prose(text: str) -> list[str]:
    """A head comment: sentences as they are, commands and tables in it as a block."""
    return ["```text", text, "```"] if "  " in text else [text]


def _keys_of(group: str, target: str, members: list[str]) -> list[str]:
    meanings: dict[str, str] = dict(parameters(target)) if target.startswith("goca.") else {}
    types: dict[str, tuple[str, Any]] = {}
    if target.startswith("goca."):
        try:
            types = parameters_of(target)
        except (ValueError, ConfigError):
            types = {}
    settings: dict[str, dict[str, Any]] = {}
    for name in members:
        content, notes = inherited(group, name)
        if isinstance(content.get(group), dict):
            content = content[group]
            notes = {key.removeprefix(f"{group}."): text for key, text in notes.items()}
        settings[name] = dict(leaves(content))
        meanings |= {key: text for key, text in notes.items() if key != "defaults"}
    keys = list(dict.fromkeys([key for name in members for key in settings[name]] + list(types)))
    keys = [key for key in keys if not (key in types and any(other.startswith(f"{key}.") for other in keys))]
    rows = []
    for key in keys:
        kind, default = types.get(key, ("", None))
        given = [settings[name][key] for name in members if key in settings[name]]
        shown = _defaults(given, default, len(members))
        rows.append((f"`{group}.{key}`", kind or _kind(given[0] if given else None), shown, meanings.get(key, "")))
    where = f"`{target}`" if target else "all options"
    lines = [f"## Keys of {', '.join(f'`{name}`' for name in members)}" if len(members) < 6 else f"## Keys of {where}", ""]
    if target:
        lines += [f"`_target_`: `{target}`", ""]
    return [*lines, table(["key", "type", "default", "meaning"], rows), ""]


def _defaults(given: list[Any], default: Any, members: int) -> str:
    """The default of a key where the options agree, else the values that they give."""
    texts = list(dict.fromkeys(value(content) for content in given))
    if len(given) < members:
        texts += [text for text in [value(default)] if text not in texts]
    return texts[0] if len(texts) == 1 else ", ".join(texts) if len(texts) <= 4 else "by option"
