"""What goes wrong on the way from the hub to the disk: one message with cause and remedy, and the run can be continued."""

import errno
import os
import re
import shutil
import socket

import pytest
from huggingface_hub import constants

from goca.config.redact import redact
from goca.errors import ModelError
from goca.hub import download, network_errors, repositories
from tests.hub.conftest import SD, small

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def _message(backbone) -> str:
    with pytest.raises(ModelError) as failure:
        backbone.load()
    text = str(failure.value)
    assert len(text) < 400
    assert "\n" not in text
    assert "secret" not in text
    assert "allow_pickle" not in text  # no pickle lies anywhere near
    return text


def _loads(hub) -> None:
    """Once the fault is gone, the same settings load."""
    hub.faults.clear()
    download.PATIENCE = 30  # threads that were left behind may still hold a file
    assert small().load().opened.commit


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"is gated: accept its terms at .*/small/gated, then log in with `hf auth login` or set HF_TOKEN"),
        (
            "other",
            r"is gated, and the account of your token has no access: accept the terms at .*/small/gated with that account",
        ),
        ("expired", r"refuses the access token \(401\): wrong or expired"),
    ],
)
def test_a_gated_checkpoint_says_what_to_do(hub, sd, monkeypatch, token, message) -> None:
    hub.add("small/gated", sd.folder, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert re.search(message, _message(small("small/gated")))
    monkeypatch.setenv("HF_TOKEN", "granted")
    small("small/gated").load()


def test_what_is_not_there_is_named(hub, sd) -> None:
    hub.add("small/private", sd.folder, private=True)
    for name in ("small/private", "small/nowhere"):
        assert f"model.checkpoint: there is no repository {name} on 127.0.0.1" in _message(small(name))
    assert _message(small(revision="gone")).startswith("model.revision: small/sd has no revision 'gone'")
    assert "'small//sd'" in _message(small("small//sd")) or "there is no folder" in _message(small("small//sd"))


def test_a_repository_that_is_no_pipeline_is_told_before_anything_is_fetched(hub, sd, tmp_path) -> None:
    folder = tmp_path / "single"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 50)
    hub.add("small/single", folder)
    assert (
        "is not a diffusers pipeline: it has no model_index.json; it offers single files such as model.safetensors"
        in _message(small("small/single"))
    )
    for part, what in (
        ("tokenizer", "lacks its component 'tokenizer'"),
        ("unet/config.json", "unet of small/less lacks config.json"),
    ):
        less = shutil.copytree(sd.folder, tmp_path / part.replace("/", "_"))
        path = less / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        repositories.forget()
        hub.add("small/less", less)
        hub.forget()
        assert what in _message(small("small/less"))
        assert hub.fetched() <= {"model_index.json"}


@pytest.mark.parametrize("where", ["api", "resolve"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 503}, r"answers 503, a fault of the server"),
        ({"status": 429, "headers": {"Retry-After": "300"}}, r"limits requests \(429\); try again in 300 s"),
        ({"reset": True}, r"the connection to 127\.0\.0\.1:\d+ broke"),
        ({"hang": 6}, r"sent nothing for|does not answer in time"),
    ],
)
def test_a_hub_that_fails_is_told_apart(hub, monkeypatch, where, fault, message) -> None:
    monkeypatch.setattr(repositories, "_ANSWER", 0.5)
    with hub.failing(f"/{where}/", **fault):
        assert re.search(message, _message(small()))
    _loads(hub)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"drop": 1000}, r"the connection to .* broke again and again"),
        ({"hang": 4}, r"sent nothing for 2 s"),
        ({"status": 403}, r"refuses the signed address of a file of small/sd \(403\); such addresses expire"),
        ({"status": 500}, r"answers 500, a fault of the server"),
        ({"cut": 1000}, r"a file was cut short on its way, and again when repeated"),
        ({"corrupt": True}, r"what arrives as .* is not the file that the hub names"),
    ],
)
def test_a_store_that_fails_is_told_apart_and_the_cache_stays_whole(hub, fault, message) -> None:
    with hub.failing("GET cdn", **fault):
        assert re.search(message, _message(small()))
    _loads(hub)


@pytest.mark.parametrize("fault", [{"drop": 1000}, {"status": 403}, {"status": 503}, {"corrupt": True}, {"reset": True}])
def test_what_passes_is_waited_for(hub, sd, fault) -> None:
    with hub.failing("GET cdn", times=2, **fault):
        assert small().load().opened.commit
    assert hub.fetched() == sd.plain


def test_no_network_is_told_at_once(hub, monkeypatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held but not listening: connections are refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{held.getsockname()[1]}")
        assert "cannot be reached, so small/sd cannot be fetched" in _message(small())
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    assert "the name hub.invalid is unknown here" in _message(small())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = _message(small())
    assert "small/sd is not in the cache" in text
    assert "HF_HUB_OFFLINE forbids" in text
    assert "goca.fetch" in text


def test_a_page_instead_of_a_hub_is_told(hub) -> None:
    """What the log-in page of a network answers."""
    with hub.failing("/api/", status=200):
        assert "does not answer as a hub does" in _message(small())


def test_a_full_disk_is_told_before_and_while_fetching(hub, monkeypatch) -> None:
    usage = shutil.disk_usage(".")
    with monkeypatch.context() as patch:
        patch.setattr(repositories.shutil, "disk_usage", lambda _: usage._replace(free=10))
        text = _message(small())
    assert "small/sd needs 0.00 GB" in text
    assert "HF_HOME" in text

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download, "hf_hub_download", full)
        text = _message(small())
    assert f"no room for small/sd in the hub's cache {constants.HF_HUB_CACHE}" in text
    _loads(hub)


def test_a_cache_that_cannot_be_written_to_is_named(hub, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be written to" in _message(small()) or "file" in _message(small())


def test_a_broken_file_of_the_cache_is_the_one_to_delete(hub) -> None:
    commit = small().load().opened.commit
    file = repositories.folder_of(SD, commit) / WEIGHTS
    blob = file.resolve()
    blob.write_bytes(blob.read_bytes()[:500])
    text = _message(small())
    assert f"{WEIGHTS} is damaged" in text
    assert f"delete {blob}" in text
    blob.unlink()
    file.unlink()
    _loads(hub)


def test_secrets_of_addresses_are_in_no_message_and_no_log(hub, monkeypatch, caplog) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("http://", "http://me:hunter2secret@"))
    with caplog.at_level("DEBUG"), hub.failing("GET cdn", drop=1000):
        text = _message(small())
    logged = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("goca", "httpx", "huggingface"))
    )
    for secret in ("hunter2secret", "secret-signature"):
        assert secret not in text
        assert secret not in logged
    address = "https://cdn.example/ab/c?Expires=17&Signature=abc~def&Key-Pair-Id=K2&Policy=xyz"
    assert (
        redact(f"GET {address} failed")
        == "GET https://cdn.example/ab/c?Expires=17&Signature=***&Key-Pair-Id=***&Policy=*** failed"
    )
    assert redact("https://host/v1?api-version=2024") == "https://host/v1?api-version=2024"


def test_every_cause_fits_into_one_short_message() -> None:
    long = "owner/" + "n" * 90
    for error in (
        OSError(errno.ENOSPC, "full"),
        PermissionError(errno.EACCES, "no"),
        ValueError("x" * 900),
        network_errors.Damaged("y" * 500),
    ):
        assert len(network_errors.explain(error, long, None)) < 400
