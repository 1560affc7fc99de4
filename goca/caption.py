"""python -m goca.caption: write captions for a data set, look at them, and count what they cover."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.caption", "caption")

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoTokenizer

from goca import config
from goca.data.base import Sample, SegmentationDataset
from goca.errors import DataError, Interrupted, ModelError
from goca.hub import repositories
from goca.prompts import Captions, Prompt, PromptSource, TextSegment
from goca.prompts.asked import Asked, ask_all
from goca.prompts.coverage import Coverage
from goca.prompts.files import image_key

console = Console(emoji=False)


def text_axis(tokenizers: Sequence[DictConfig]) -> tuple[TextSegment, ...]:
    """The text axis that the given tokenizers fill one after the other.

    Args:
        tokenizers: `name` of a checkpoint, `subfolder` in it, and `length` in tokens (null: the tokenizer's own limit).

    Raises:
        ModelError: where there is no such tokenizer.
    """
    segments: list[TextSegment] = []
    for entry in tokenizers:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                entry.name, subfolder=entry.subfolder, **repositories.options(entry.name, "text_axis")
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"text_axis: no tokenizer in {entry.name}/{entry.subfolder}: {error}") from error
        length = entry.length or tokenizer.model_max_length
        segments.append(TextSegment(tokenizer, length, sum(segment.length for segment in segments)))
    return tuple(segments)


def write_captions(source: Asked, dataset: SegmentationDataset, indices: Sequence[int]) -> dict[str, str]:
    """Ask for the captions that are missing, with a progress bar; reasons of the images that got none."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{source.model} -> {source.path}", total=len(indices))
        return ask_all(source, dataset, indices, lambda images: progress.advance(task, images))


def inspect(sample: Sample, caption: str | None, prompts: Sequence[Prompt], missed: Sequence[str]) -> None:
    """Print one image's caption, its aligned tokens and the classes the caption misses."""
    console.rule(escape(sample.image_id))
    if caption is not None:
        console.print(f"caption  {escape(caption)}", highlight=False, soft_wrap=True)
    for prompt in prompts:
        console.print(escape(str(prompt)), highlight=False, soft_wrap=True)
    console.print(f"missed   {escape(', '.join(missed)) or '-'}", highlight=False, soft_wrap=True)


def report(summary: dict[str, Any]) -> None:
    """Print totals and, per kind, the most frequent classes."""
    table = Table("", "count", "most frequent")
    for name in ("images", "labelled", "without_prompt", "with_warning"):
        table.add_row(name.replace("_", " "), str(summary[name]), "")
    for name, counts in summary["by_class"].items():
        table.add_row(name, str(summary[name]), escape(", ".join(f"{word} {n}" for word, n in list(counts.items())[:8])))
    console.print(table)
    if "answers" in summary:
        counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in summary["answers"].items())
        console.print(f"answers  {counts}", highlight=False, soft_wrap=True)


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Ask for missing captions, or with `inspect` show what there is; then count. The summary is also written to `folder`.

    Raises:
        GocaError: any error that the user can fix; images that were left out are reported after everything else is done.
    """
    dataset: SegmentationDataset = config.build(cfg, "dataset")
    source: PromptSource = config.build(cfg, "prompts")
    segments = text_axis(cfg.text_axis)
    dataset.setup()
    indices = range(len(dataset.image_ids))[: cfg.inspect or cfg.limit]
    failures = write_captions(source, dataset, indices) if isinstance(source, Asked) and not cfg.inspect else {}
    captions = source.captions if isinstance(source, Captions) else None
    coverage = Coverage()
    for index in indices:
        try:
            sample = dataset[index]
        except DataError as error:  # a picture that cannot be read, or is too large
            failures[dataset.image_ids[index]] = str(error)
            continue
        caption = captions.get(image_key(sample.image_id)) if captions is not None else None
        prompts = source(sample, dataset.classes, segments) if captions is None or caption is not None else ()
        missed = coverage.add(sample, caption, prompts, dataset.classes)
        if cfg.inspect:
            inspect(sample, caption, prompts, [dataset.classes.names[i] for i in sorted(missed)])
    summary = {"dataset": dataset.name, "prompts": source.describe()} | coverage.summary(dataset.classes)
    if isinstance(source, Asked):
        summary["answers"] = source.usage()
    report(summary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    if failures:
        image_id, reason = next(iter(failures.items()))
        raise DataError(
            f"{len(failures)} images are left out, such as {image_id}: {reason}\nThe same command tries them again."
        )
    return summary


def _terminate(*_: Any) -> None:
    """A polite kill ends a run like Ctrl-C: requests under way are waited for and their answers kept."""
    raise KeyboardInterrupt


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    signal.signal(signal.SIGTERM, _terminate)
    with config.job(cfg, "caption"):
        try:
            run(cfg, Path(HydraConfig.get().runtime.output_dir))
        except KeyboardInterrupt:
            raise Interrupted("interrupted; every answer so far is kept, the same command continues", signal.SIGINT) from None
