"""`python -m goca.run dataset=voc model=sd15`: evaluate a method on a data set."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from goca import config
from goca.config.redact import redact
from goca.paths import CONF
from goca.runs import sweeps
from goca.runs.records import Summary


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    with config.job(cfg):
        if cfg.trainer.devices != 1:  # processes that share cores: a thread that waits must not keep another from its core
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from goca.runs import evaluation  # torch loads only when there is something to compute

        config.quiet()  # also the libraries that this import has brought
        folder = Path(HydraConfig.get().runtime.output_dir)
        if not cfg.resume:
            return _miou(evaluation.evaluate(cfg, folder))
        plain, group = redact(config.plain(cfg)), Path(cfg.paths.output, str(cfg.group))
        holds = partial(evaluation.still_holds, cfg)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return _miou(sweeps.job(plain, folder, group, lambda: evaluation.evaluate(cfg, folder), holds))
        begun = (folder / "config.yaml").is_file()
        finished = None if begun else sweeps.find_finished(group, sweeps.config_hash(plain), holds)
        return _miou(evaluation.evaluate(cfg, folder) if finished is None else evaluation.show_finished(finished))
    return None


def _miou(summary: Summary | None) -> float | None:
    """What a sweeper may optimise; only the first of several processes knows it."""
    return None if summary is None else summary.miou


if __name__ == "__main__":
    config.command(main)
