"""One process, two processes and three shards: the same records and the same summary."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from goca import config
from goca.errors import ConfigError, DataError
from goca.merge import main, merge
from goca.runs.folder import RunFolder
from goca.runs.metrics import SegmentationMetric
from tests.helpers.kills import CONTEXT, numbers
from tests.helpers.kills import run as run_here

pytestmark = pytest.mark.slow


def _records(folder: Path) -> list[dict]:
    """Records without what differs from run to run."""
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "peak_memory_bytes")}
        for record in RunFolder(folder).records()
    ]


THREADS = 2  # in which one process computes; Lightning would give each of two processes on two cores one


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def _process(rank: int, port: int, work, *arguments) -> None:
    """`work` as one of two processes, as SLURM would start it, on a machine where nobody set a number of threads."""
    os.environ.pop("OMP_NUM_THREADS", None)
    torch.set_num_threads(THREADS)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    work(*arguments)


def _two_processes(work, *arguments) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [CONTEXT.Process(target=_process, args=(rank, port, work, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0


@pytest.mark.parametrize("limit", [7, 1])
def test_two_processes(tiny: list[str], run, two_threads, tmp_path: Path, limit: int) -> None:
    """With one image, the second process has nothing to do."""
    overrides = ["trainer=ddp", "trainer.enable_progress_bar=false", f"limit={limit}"]
    _two_processes(run_here, [*tiny, *overrides], tmp_path / "two")
    expected = run(tmp_path / "one", f"limit={limit}")
    assert numbers(json.loads((tmp_path / "two" / "summary.json").read_text())) == expected
    assert expected["images"] == limit
    assert expected["machine"]["threads"] == THREADS
    assert _records(tmp_path / "two") == _records(tmp_path / "one")
    per_process = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "two").glob("records*.jsonl"))]
    assert sorted(per_process) == ([3, 4] if limit == 7 else [1])


def _synchronise(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metric = SegmentationMetric(2, (0.0,))
    metric.update(torch.full((1, 1, 3), rank), torch.zeros(1, 3, dtype=torch.long))
    assert metric.compute().iou[0, 0] == 0.5  # three of six pixels, seen by every process
    torch.distributed.destroy_process_group()
    (folder / f"{rank}").touch()


def test_the_metric_is_synchronised_for_those_who_use_it_in_their_own_loop(tmp_path: Path) -> None:
    _two_processes(_synchronise, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.fixture(scope="module")
def shards(run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with three shards of the tiny job."""
    folder = tmp_path_factory.mktemp("sweep")
    for k in (1, 2, 3):
        run(folder / f"{k}", f"data.shard={k}/3")
    return folder


def test_three_shards_merge_into_the_single_run(shards: Path, undisturbed: Path, tmp_path: Path, capsys) -> None:
    for _ in range(2):  # merging again changes nothing
        assert main([str(shards), "--out", str(tmp_path / "whole")]) == 0
        assert _records(tmp_path / "whole") == _records(undisturbed)
        summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
        assert numbers(summary) == numbers(json.loads((undisturbed / "summary.json").read_text()))
    assert "7 images" in capsys.readouterr().out


def test_shards_that_do_not_fit_are_refused(shards: Path, run, undisturbed: Path, tmp_path: Path, capsys) -> None:
    one, two = shards / "1", shards / "2"
    with pytest.raises(DataError, match=r"hold 5 of 7 images; given are 1/3, 2/3"):
        merge([one, two], tmp_path / "out")
    with pytest.raises(DataError, match=r"image 1000000 is in .* and in"):
        merge([shards, undisturbed], tmp_path / "out")
    run(tmp_path / "seed", "data.shard=3/3", "seed=5")
    with pytest.raises(ConfigError, match=r"no shards of one run; they differ in\n  seed: 0 and 5"):
        merge([one, two, tmp_path / "seed"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'} does not exist; give the folders of the shards\n"


def test_a_merge_is_made_of_its_shards_alone(shards: Path, tmp_path: Path, capsys) -> None:
    own, out = tmp_path / "shards", tmp_path / "out"
    shutil.copytree(shards, own)
    arguments = [str(own), "--out", str(out)]
    assert main(arguments) == 0
    whole = (out / "records.jsonl").read_text()
    (out / "records.jsonl").write_text("".join(whole.splitlines(keepends=True)[:3]))  # interrupted
    assert main(arguments) == 0
    assert (out / "records.jsonl").read_text() == whole
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    records = own / "2" / "records.jsonl"  # computed again, with another result
    first, *others = [json.loads(line) for line in records.read_text().splitlines()]
    first["confusion"][0][2] += 1
    records.write_text("".join(json.dumps(each) + "\n" for each in (first, *others)))
    capsys.readouterr()
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {out} holds another record of image {first['image_id']} than the shard {own / '2'}; a merge is made of its "
        "shards alone: give another --out, or delete that folder\n"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert main([str(own), "--out", str(tmp_path / "again")]) == 0


def test_a_merge_of_its_own_output_has_no_shard(shards: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(shards / "1", tmp_path / "out")
    assert main([str(tmp_path / "out"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: beside {tmp_path / 'out'}, which is to be written, no shard is left; give"
    )


def test_job_arrays_are_configured_by_the_submitit_launcher() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `sweep` is not installed")
    import hydra

    from goca.paths import CONF

    overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "data.shard=3/16", "trainer=ddp"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.build(cfg, "data").shard == (2, 16)
