"""Whole runs from the hub: the commit in run.json, continued where they were begun; progress and no secret in the log."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from goca import config
from goca.errors import ConfigError, ModelError
from goca.fetch import fetch
from goca.hub import repositories
from goca.runs.evaluation import evaluate
from tests.helpers.hub_repositories import copied
from tests.helpers.saved_pipeline import seen
from tests.helpers.tiny_pipelines import family_overrides
from tests.hub.conftest import SD, small

OVERRIDES = [*family_overrides("sd", SD), "dataset=scenes", "figures.count=0", "figures.gallery=0"]


def test_a_run_that_is_continued_keeps_the_commit_it_was_begun_with(hub, sd, tmp_path) -> None:
    hub.add("small/moving", sd.folder)
    begun = hub.repositories["small/moving"].names["main"]
    cfg = config.compose([*OVERRIDES, "model.checkpoint=small/moving"])
    whole = evaluate(cfg, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["checkpoint_revision"], facts["checkpoint_hash_scheme"]) == (begun, 2)
    records = tmp_path / "run" / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:1]))
    other = copied(sd.folder, tmp_path / "next")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 1.5 for key, value in load_file(file).items()}, file, {"format": "pt"})
    assert hub.repositories["small/moving"].commit(other) != begun
    repositories.forget()
    assert evaluate(cfg, tmp_path / "run")["miou"] == whole["miou"]
    repositories.forget()
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:1]))
    local = config.compose([*OVERRIDES, f"model.checkpoint={other}"])
    with pytest.raises(ConfigError, match=r"another checkpoint or data set.*\n  checkpoint_hash"):
        evaluate(local, tmp_path / "run")
    clone = config.compose([*OVERRIDES, f"model.checkpoint={sd.folder}"])
    assert evaluate(clone, tmp_path / "run")["miou"] == whole["miou"]


@pytest.mark.parametrize(("network", "weights"), [("denoiser", "unet.conv_out"), ("autoencoder", "vae.quant_conv")])
def test_an_output_that_is_not_finite_is_no_result(sd, network, weights) -> None:
    loaded = small(str(sd.folder)).load()
    module = getattr(loaded.pipeline, weights.split(".")[0]).get_submodule(weights.split(".")[1])
    module.bias.data.fill_(torch.inf)
    with pytest.raises(ModelError, match=rf"the output of the {network} is not finite; try model\.dtype=float32"):
        seen(loaded)


def test_fetch_gets_what_a_run_reads_and_says_how_much_before(hub, sd) -> None:
    table = fetch(small(), dry_run=True)
    assert hub.fetched() == {"model_index.json"}
    assert set(table.columns[0].cells) == {"scheduler", "text_encoder", "tokenizer", "unet", "vae", "all"}
    fetch(small())
    assert hub.fetched() == sd.plain
    hub.forget()
    small().load()
    assert hub.requests == []


def _command(hub, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "own"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GOCA_"))}
    command = [sys.executable, "-m", "goca.run", *OVERRIDES, f"output={tmp_path / 'run'}", *arguments]
    return subprocess.run(command, env={**inherited, **variables}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_command_shows_progress_and_no_secret_and_ends_with_one_message(hub, sd, tmp_path) -> None:
    """From a process of its own: the environment alone leads to the hub."""
    hub.add("small/gated", sd.folder, gated=True)
    refused = _command(hub, tmp_path, "model.checkpoint=small/gated")
    assert refused.returncode == 2
    assert refused.stderr.count("error: model.checkpoint: small/gated is gated: accept its terms") == 1
    assert "Traceback" not in refused.stderr + refused.stdout
    granted = _command(hub, tmp_path, "model.checkpoint=small/gated", HF_TOKEN="granted")
    assert granted.returncode == 0, granted.stderr
    assert set(hub.tokens) == {None, "granted"}
    address = hub.url.replace("http://", "http://me:hunter2secret@")
    (tmp_path / "run").rename(tmp_path / "gated")
    done = _command(hub, tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr + (tmp_path / "run" / "run.log").read_text()
    assert "fetching small/sd: done" in said
    for noise in ("HTTP Request", "hunter2secret", "secret-signature", "Signature=", "UserWarning"):
        assert noise not in said + refused.stdout + refused.stderr
