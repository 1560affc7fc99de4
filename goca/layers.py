"""`python -m goca.layers model=flux_dev`: the attention layers of a model, found without its weights."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.layers", "layers")

from typing import Any

import yaml
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from goca import config
from goca.backbones.auto import propose
from goca.backbones.base import Backbone
from goca.backbones.loading import architectures
from goca.backbones.loading.memory import parameters, weights_memory
from goca.backbones.observable import Layer, observable_layers
from goca.layer_names import resolve


def layer_table(backbone: Backbone, layers: list[Layer]) -> Table:
    """Name, kind, heads, width, grid and part of every layer; in the last column what the config uses it for."""
    names = [layer.name for layer in layers]
    parts = {
        "cross": backbone.layers.cross,
        "manual": backbone.layers.manual,
        "reference": (backbone.layers.reference,),
        "affinity": backbone.layers.affinity,
    }
    uses = {part: set(resolve(patterns, names, f"model.layers.{part}")) for part, patterns in parts.items()}
    table = Table(
        title=f"{backbone.name} at {backbone.size} px: {len(layers)} attention layers", title_justify="left", box=None
    )
    for column in ("layer", "kind", "heads", "width", "grid", "text tokens", "used as"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("heads", "width", "text tokens") else "left")
    for layer in layers:
        grid = f"{layer.grid[0]} x {layer.grid[1]}" if layer.grid else ""
        used = ", ".join(part for part, members in uses.items() if layer.name in members)
        table.add_row(layer.name, layer.kind, str(layer.heads), str(layer.width), grid, str(layer.tokens or ""), used)
    return table


def weights_tables(backbone: Backbone) -> list[Table]:
    """Parameters of every component, and what the weights take on the device by placement."""
    components = Table(title="\nweights", title_justify="left", box=None)
    for column in ("component", "parameters", "bfloat16"):
        components.add_column(column, justify="left" if column == "component" else "right")
    for name, count in parameters(backbone.checkpoint).items():
        components.add_row(name, f"{count / 1e6:.0f} M", f"{2 * count / 2**30:.2f} GiB")
    placements = Table(title="\nweights on the device", title_justify="left", box=None, show_header=False)
    for name, gib in weights_memory(backbone.checkpoint, backbone.denoiser_name, backbone.large_encoder).items():
        placements.add_row(name, f"{gib:.1f} GiB")
    return [components, placements]


def show(cfg: DictConfig, console: Console) -> None:
    """Print what `python -m goca.layers` prints."""
    backbone: Any = config.build(cfg, "model").sketch()
    console.print(layer_table(backbone, observable_layers(backbone)))
    if backbone.checkpoint in architectures.published():
        for table in weights_tables(backbone):
            console.print(table)
    if cfg.model._target_ == "goca.backbones.auto.auto_backbone":
        proposal = propose(cfg.model.checkpoint, cfg.model.revision)
        body = {"defaults": ["base/loading@_here_"], **proposal}
        console.print(f"\n# conf/model/{proposal['name']}.yaml", highlight=False)
        console.print(yaml.safe_dump(body, sort_keys=False), highlight=False, markup=False, soft_wrap=True)


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "layers"):
        console = Console()
        console.width = max(console.width, 150)  # names are long; a narrow terminal wraps lines instead of losing them
        show(cfg, console)
