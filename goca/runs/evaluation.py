"""One run from its configuration to its summary: compose, build, evaluate, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from goca import config
from goca.backbones.loading.pipelines import choose_device
from goca.config.redact import redact
from goca.data.datamodule import SegmentationDataModule
from goca.errors import DataError
from goca.figures.thumbnails import Gallery
from goca.method.decision import Hungarian
from goca.method.outside import MapFiles
from goca.runs.callbacks import Pictures, Recorder, RunningMiou
from goca.runs.evaluator import Evaluator
from goca.runs.folder import RunFolder, stops_cleanly
from goca.runs.inputs import inputs
from goca.runs.machine import keep_freed_memory, keep_threads
from goca.runs.metrics import SegmentationMetric
from goca.runs.naming import method_name
from goca.runs.provenance import checkpoint_identity, environment, generator_measures, keep_commits
from goca.runs.records import Facts, Summary
from goca.runs.report import Logger, segmentation_report
from goca.runs.rules import fixed_threshold, rules_hash, threshold_name, unusual_rules
from goca.runs.signals import StopOnSignal
from goca.runs.summary import total_counts
from goca.runs.terminal import print_continued, print_summary
from goca.runs.trainer import make_trainer
from goca.segmentor import Segmentor

__all__ = ["Evaluator", "evaluate", "show_finished", "still_holds"]

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, folder: Path) -> Summary | None:
    """Run one experiment, or continue it, and leave its records, summary and figures in `folder`; returns the summary.

    Of several processes only the first has a summary; the others return None.

    Everything cheap is built and checked first: the configuration, the folder, the data, the prompts; then the model loads.

    Raises:
        GocaError: any error that the user can fix, as one message.
    """
    data: SegmentationDataModule = config.build(cfg, "data")
    prompts = config.build(cfg, "prompts")
    logger: Logger = config.build(cfg, "logger")
    logger.check()
    segmentor = Segmentor.build(cfg)
    dataset = data.dataset
    fixed = fixed_threshold(dataset, segmentor.method.decision)
    segmentor.method = segmentor.method.trying(fixed)
    metric = SegmentationMetric(
        num_classes=len(dataset.classes),
        thresholds=segmentor.method.decision.taus(dataset.has_background),
        unseen_classes=dataset.protocol.unseen_classes,
        has_background=dataset.has_background,
        sync_on_compute=False,  # processes meet in the records, not while they compute
    )
    evaluator = Evaluator(segmentor, prompts, dataset.classes, dataset.has_background, metric)
    plain = redact(config.plain(cfg))
    stop = StopOnSignal(f"the same command with output={folder} continues it")
    trainer = make_trainer(cfg)
    output = RunFolder(folder, trainer.global_rank, dataset.classes.colours)
    with stops_cleanly(folder), closing(output):
        data.setup()
        prompts.setup(dataset, data.image_ids)
        output.claim(plain)
        read = inputs(data, prompts, segmentor.backbone)
        found = output.records()
        output.check_inputs(read, frozenset(data.image_ids), found)
        records = [record for record in found if not record.error]
        recorded = frozenset(record.image_id for record in records)
        if recorded and trainer.is_global_zero:
            print_continued(folder, len(recorded.intersection(data.image_ids)), len(data.image_ids))
            if cfg.save_predictions and (missing := output.labels.missing(recorded)):
                log.warning(
                    "save_predictions: no label map was kept of %d images that were recorded before; another output folder "
                    "gets all of them",
                    len(missing),
                )
        if not recorded.issuperset(data.image_ids):
            data.done = recorded
            begun: Mapping[str, Any] = output.facts() if (folder / "run.json").is_file() else {}
            keep_threads(choose_device(cfg.model.device), trainer.world_size, begun.get("machine"))
            keep_commits(segmentor.backbone, begun)
            evaluator.prepare(data.readable(trainer.global_rank, trainer.world_size))
            if segmentor.backbone.torch_device.type == "cpu":
                keep_freed_memory()
            data.size = segmentor.fit
            if trainer.is_global_zero:
                output.begin(_facts(cfg, evaluator, data, begun, fixed, read))
            positions = dict(zip(data.image_ids, data.positions, strict=True))
            again = {dataset.image_ids[position] for batch in data.open_batches() for position in batch}
            before = [record for record in records if record.image_id not in again]
            earlier = total_counts(before, len(dataset.classes)) if trainer.is_global_zero else None
            chosen = None if fixed is None else metric.thresholds.index(fixed)
            progress = [RunningMiou(metric, earlier, chosen)] if cfg.trainer.enable_progress_bar else []
            # Pictures come before the record: what is recorded has been drawn.
            drawn, shown = data.image_ids[: cfg.figures.count], bool(cfg.figures.gallery)
            trainer.callbacks += [  # type: ignore[attr-defined]
                Pictures(output, segmentor.timer, drawn, cfg.save_predictions),
                Gallery(folder, dataset.classes, data.image_ids[: cfg.figures.gallery], cfg.figures.worst * shown),
                Recorder(output, segmentor, positions),
                *progress,
                stop,
            ]
            trainer.predict(evaluator, data, return_predictions=False)
        output.close()
        trainer.strategy.barrier()  # until every process has closed its records
        if not trainer.is_global_zero:
            return None
        summary = output.conclude(data.image_ids)
        output.labels.choose(summary.threshold_index, len(metric.thresholds))
        report = segmentation_report(output, plain, summary, dataset.classes)
    where = logger.log_safely(report)
    _show(summary, output, where)
    _check_failures(summary, cfg.run.max_failed, folder)
    return summary


def still_holds(cfg: DictConfig, folder: Path) -> bool:
    """Whether a finished run of this configuration is what it would give now: of the same pictures, words and weights.

    Where the data set or the captions are no longer there, at the place that the run found them in, they cannot differ.

    Raises:
        DataError: the data set is not where this configuration says.
    """
    output = RunFolder(folder)
    summary = output.summary()
    data: SegmentationDataModule = config.build(cfg, "data")
    try:
        data.setup()
        differing = summary.other_inputs(inputs(data, config.build(cfg, "prompts"), Segmentor.build(cfg).backbone))
    except DataError:
        if output.config().get("dataset", {}).get("root") == config.plain(cfg.dataset).get("root"):
            return True
        raise
    if summary.images != len(data.image_ids):
        differing["images"] = (summary.images, len(data.image_ids))
    if cfg.save_predictions and (missing := output.labels.missing(data.image_ids)):
        differing["label maps"] = (None, len(missing))
    if differing:
        log.warning("%s finished before, but not with these: %s; computed again", folder, ", ".join(differing))
    return not differing


def show_finished(folder: Path) -> Summary:
    """Show what a finished run found, without computing anything; returns its summary."""
    summary = RunFolder(folder).summary()
    print_continued(folder, summary.images, summary.images)
    _show(summary, RunFolder(folder), None)
    return summary


def _facts(
    cfg: DictConfig,
    evaluator: Evaluator,
    data: SegmentationDataModule,
    begun: Mapping[str, Any],
    fixed: float | None,
    read: Mapping[str, Any],
) -> Facts:
    """What was evaluated, with what: all that the summary says besides numbers."""
    dataset, backbone, method = data.dataset, evaluator.segmentor.backbone, evaluator.segmentor.method
    assert evaluator.metric is not None
    told = {"maps": "files"} if isinstance(method.calibration, MapFiles) else {}
    told |= {"matched": "ground truth"} if isinstance(method.decision, Hungarian) else {}
    return Facts(
        dataset=dataset.name,
        split=dataset.split,
        model=backbone.name,
        method=", ".join(filter(None, [method_name(cfg), threshold_name(dataset, method.decision, fixed)])),
        protocol=dataset.protocol.name,
        prompts=redact({**evaluator.prompts.describe(), **told}),
        classes=list(dataset.classes.names),
        thresholds=list(evaluator.metric.thresholds),
        fixed_threshold=fixed,
        rules_version=dataset.protocol.version,
        rules_hash=rules_hash(dataset, evaluator.prompts),
        names=redact(dataset.names),
        unusual=unusual_rules(dataset),
        words_hash=read["words_hash"],
        pictures=read["pictures"],
        unseen_classes=dataset.protocol.unseen_classes,
        has_background=dataset.has_background,
        total_images=data.total,
        left_out={reason: len(names) for reason, names in dataset.left_out.items()},
        seed=cfg.seed,
        device=str(backbone.torch_device),
        dtype=str(backbone.torch_dtype).removeprefix("torch."),
        checkpoint=backbone.checkpoint_id,
        generator=generator_measures(backbone.checkpoint),
        provenance={**checkpoint_identity(backbone, begun), **environment()},
    )


def _show(summary: Summary, output: RunFolder, logged: str | None) -> None:
    console = Console(emoji=False)
    print_summary(summary, console)
    path = output.path
    places = {"numbers": path / "summary.json", "records": path / "records.jsonl", "pictures": output.figures, "logged": logged}
    for name, place in places.items():
        if place:
            console.print(f"{name:<9} {place}", markup=False, highlight=False, soft_wrap=True)


def _check_failures(summary: Summary, allowed: int | None, folder: Path) -> None:
    """Raise where more images failed than the configuration allows; everything has been written by now."""
    if allowed is None or summary.failed <= allowed:
        return
    reasons = [f"  {image_id}: {reason}" for image_id, reason in summary.failures.items()]
    rest = summary.failed - len(reasons)
    raise DataError(
        "\n".join([f"{summary.failed} of {summary.images} images failed, more than run.max_failed={allowed}:", *reasons])
        + (f"\n  ... and {rest} more" if rest else "")
        + f"\nMend them and repeat the command with output={folder}, which computes only these; or set run.max_failed"
    )
