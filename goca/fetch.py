"""`python -m goca.fetch model=sdxl`: fetch what a run with the same model settings reads, for machines without a network."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.fetch", "fetch")

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from goca import config
from goca.backbones.loading.pretrained import Pretrained
from goca.hub.progress import size


def fetch(backbone: Pretrained, dry_run: bool = False) -> Table:
    """Have every file of a checkpoint, and of its LoRA, on this machine; returns a table of its components.

    Args:
        backbone: not loaded.
        dry_run: fetch nothing but the pipeline's index and the indices of its shards.

    Raises:
        ModelError: as loading would.
    """
    checkpoint = backbone.opened
    parts = checkpoint.parts(checkpoint.components)
    sizes = checkpoint.sizes([file for part in parts.values() for file in part.files])
    table = Table(box=None, title=f"{backbone.checkpoint_id} {checkpoint.commit or ''}".strip(), title_justify="left")
    for column in ("component", "class", "files", "size", "variant"):
        table.add_column(column, justify="right" if column in ("files", "size") else "left")
    for name, part in parts.items():
        variant = (part.weights.variant or "") if part.weights else ""
        table.add_row(name, part.kind, str(len(part.files)), size(sum(sizes[file] for file in part.files)), variant)
    table.add_row("all", "", str(len(sizes)), size(sum(sizes.values())), "")
    if not dry_run:
        checkpoint.fetch(sizes)
        if backbone.found_lora is not None:
            table.add_row("lora", str(backbone.found_lora.file), "1", "", "")
    return table


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "fetch"):
        backbone: Pretrained = config.build(cfg, "model")
        console = Console()
        console.print(fetch(backbone, cfg.dry_run))
        if not cfg.dry_run:
            where = backbone.opened.fetch([])
            console.print(f"complete in {where}", markup=False, highlight=False, soft_wrap=True)
