"""`python -m goca.verify model=sd15`: does a checkpoint load and do what the method expects, in one JSON record.

Records in `docs/verified` make the table of docs/verified.md: `python -m goca.verify table=docs/verified.md`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.verify", "verify")

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from goca import config
from goca.attention.statistics import AttentionStatistics
from goca.backbones.base import Backbone
from goca.backbones.checks import Check, check_forward, check_prompt, random_conditioning
from goca.backbones.loading import architectures
from goca.backbones.loading.embeddings import PromptEmbeddings
from goca.backbones.loading.pipelines import choose_dtype, place
from goca.data.pictures import read_picture
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.data.sizes import to_pixels
from goca.errors import ConfigError, ModelError
from goca.method import plan_layers
from goca.method.aggregation import Aggregation
from goca.paths import CONF
from goca.runs.provenance import checkpoint_identity, environment

KINDS = {"small": "small", "random": "full-size random", "real": "real weights"}
_SCENE, _SIDE = 3, 256
_RANDOM_TEXT = "random embeddings"


def verify(
    backbone: Backbone, aggregation: Aggregation, kind: str, images: Sequence[Any], words: Sequence[str]
) -> dict[str, Any]:
    """The record of one model.

    Args:
        backbone: loaded, with random weights where `kind` is `random`.
        kind: one of `KINDS`.
        images: (H, W, 3) uint8 arrays; the first is checked in full, the others for their shares alone.
        words: the prompt's, which have to be found again on the text axis.
    """
    began = perf_counter()
    plan = plan_layers(backbone, aggregation)
    checks = {} if kind == "random" else check_prompt(backbone, words)
    text = _RANDOM_TEXT if kind == "random" else ", ".join(words)
    for image in images:
        pixels = to_pixels(image, backbone.size)[None]
        found = check_forward(backbone, pixels, text, AttentionStatistics(aggregation, plan))
        checks |= {name: worse(check, checks.get(name)) for name, check in found.items()}
    facts = environment()
    identity = checkpoint_identity(backbone) if kind == "real" else {}
    checks |= (
        {}
        if kind != "real"
        else {"weights": Check(not identity.get("unexpected_keys"), len(identity.get("unexpected_keys", ())), 0)}
    )
    return {
        "model": backbone.name,
        "kind": kind,
        "checkpoint": backbone.checkpoint_id,
        **identity,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": facts["commit"],
        "versions": {name: facts["versions"][name] for name in ("python", "torch", "diffusers", "transformers")},
        "device": torch.cuda.get_device_name() if backbone.torch_device.type == "cuda" else backbone.torch_device.type,
        "dtype": str(backbone.torch_dtype).removeprefix("torch."),
        "size": backbone.size,
        "layers": len(plan.cross),
        "seconds": round(perf_counter() - began, 1),
        "peak_gib": round(_peak(backbone.torch_device) / 2**30, 2),
        "passed": all(check.passed for check in checks.values()),
        "checks": {name: check._asdict() for name, check in checks.items()},
    }


def worse(one: Check, other: Check | None) -> Check:
    """Of two outcomes of a check the one that is nearer to failing."""
    return one if other is None or (one.passed, -one.value) < (other.passed, -other.value) else other


def with_random_weights(backbone: Backbone) -> Backbone:
    """A backbone in its checkpoint's published architecture with seeded random weights, and a prompt of random embeddings.

    Raises:
        ModelError: the architecture is not known.
    """
    if backbone.checkpoint not in architectures.published():
        raise ModelError(f"weights=random: the architecture of {backbone.checkpoint} is not known; see architectures.yaml")
    torch.manual_seed(0)
    backbone.torch_device = torch.device("cpu")
    backbone.torch_dtype = choose_dtype(backbone.dtype, backbone.torch_device)
    backbone.adopt(architectures.skeleton(backbone.checkpoint, device="cpu", dtype=backbone.torch_dtype), True)
    place(backbone.pipeline, backbone.torch_device, backbone.torch_dtype, "device")
    backbone.__dict__["embeddings"] = PromptEmbeddings(backbone.torch_device, None, "random")
    random_conditioning(backbone, _RANDOM_TEXT)
    return backbone


def _peak(device: torch.device) -> int:
    """Bytes at most: of the device's memory, or of the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record in a folder's JSON files, each of which holds one or a list."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            rows = content if isinstance(content, list) else [content]
            found += [row for row in rows if row["model"] and row["kind"] in KINDS and row["date"] and "passed" in row]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is not a record of goca.verify: {error!r}") from error
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The page docs/verified.md: a row per model config, the newest record of each kind."""
    models = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if not file.stem.startswith("auto"))
    lines = [
        "# What has been verified",
        "",
        "Written by `python -m goca.verify table=docs/verified.md` from the records in `docs/verified`; do not edit it.",
        "",
        "`config`: there is a config in `conf/model`. `small`: a small pipeline of the real classes with random weights.",
        "`full-size random`: the published architecture with random weights and embeddings. `real weights`: the checkpoint.",
        "What is checked holds for any picture: bundled scenes, drawn by this program and free of rights, serve for it,",
        "and `image=` adds one of yours. A cell names the day and the commit, with a + where files differed from it; `failed`",
        "stands where a check did not hold.",
        "A record of yours is one file in a pull request: run `python -m goca.verify model=...` and put the JSON file into",
        "`docs/verified`.",
        "",
        "| `model=` | config | small | full-size random | real weights |",
        "|---|---|---|---|---|",
    ]
    for model in sorted({*models, *(row["model"] for row in found)}):
        cells = [_cell([row for row in found if row["model"] == model and row["kind"] == kind]) for kind in KINDS]
        lines.append(f"| `{model}` | {'yes' if model in models else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    row = max(rows, key=lambda row: str(row["date"]))
    commit = str(row.get("commit") or "unknown")
    where = f"{row['date']}, {commit[:7]}{'+' if commit.endswith('-dirty') else ''}"
    return where if row["passed"] else f"failed {where}"


def _report(record: Mapping[str, Any], console: Console) -> None:
    shown = Table(title=f"{record['model']}, {KINDS[record['kind']]}", title_justify="left", box=None)
    for column in ("check", "", "measured", "at most"):
        shown.add_column(column)
    for name, check in record["checks"].items():
        shown.add_row(name, "ok" if check["passed"] else "FAILED", f"{check['value']:.2g}", f"{check['limit']:.2g}")
    console.print(shown)


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "verify"):
        console = Console()
        if cfg.table:
            Path(cfg.table).write_text(table(records(Path(cfg.records))), encoding="utf-8")
            console.print(cfg.table, markup=False)
            return
        backbone: Any = config.build(cfg, "model")
        backbone = with_random_weights(backbone) if cfg.weights == "random" else backbone.load()
        scenes = Scenes(size=_SIDE, protocol=Protocol("standard", "ignore", "skip", "classes"))
        images = [scenes[_SCENE].image, *([read_picture(cfg.image).pixels] if cfg.image else [])]
        record = verify(backbone, config.build(cfg, "aggregation"), cfg.weights, images, list(cfg.words))
        _report(record, console)
        folder = Path(cfg.output)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{record['model']}_{record['kind']}_{record['date']}.json"
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        console.print(str(file), markup=False, soft_wrap=True)
        if not record["passed"]:
            failed = ", ".join(name for name, check in record["checks"].items() if not check["passed"])
            raise ModelError(f"{record['model']}: {failed} did not hold; the record says how far off it was")
