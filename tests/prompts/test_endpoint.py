"""Captions from an endpoint, asked of a real server on this machine."""

from __future__ import annotations

import base64
import io
import itertools
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ConfigError, DataError, GocaError, ModelError
from goca.prompts.answers import Answer, AnswerFile
from goca.prompts.asked import MAX_FAILURES, ask_all
from goca.prompts.endpoint import OpenAI, data_url
from tests.data.conftest import build_dataset
from tests.helpers.fake_endpoint import Endpoint, Reply, completion, error, nouns, serve

KEY = "sk-secret-0123456789"
GOOD = nouns(["(person, clothes)", "Dog."], ["grass"])


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def dataset(count: int = 6) -> Scenes:
    scenes = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"), count=count)
    scenes.setup()
    return scenes


def source(endpoint: Endpoint | str, path: Path, **options: Any) -> OpenAI:
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    settings = {"model": "tiny", "instruction": "Name {max_words} of {classes}.", "retries": 2, "timeout": 5.0, "workers": 3}
    return OpenAI(base_url=url, path=path / "captions.jsonl", **(settings | options))


def ask(asked: OpenAI, images: Scenes, advance: Callable[[int], None] = lambda images: None) -> dict[str, str]:
    return ask_all(asked, images, range(len(images)), advance)


def records(asked: OpenAI) -> list[dict[str, Any]]:
    return [json.loads(line) for line in asked.path.read_text().splitlines()]


def test_every_image_gets_a_record(tmp_path: Path) -> None:
    images = dataset()
    with serve(lambda _: GOOD) as endpoint:
        asked = source(endpoint, tmp_path, options={"temperature": 0})
        assert ask(asked, images) == {}
    rows = records(asked)
    assert sorted(row["image_id"] for row in rows) == sorted(images.image_ids)
    assert {row["caption"] for row in rows} == {"(person, clothes), Dog, grass"}
    assert rows[0].keys() >= {"model", "date", "prompt_hash", "status", "input_tokens", "output_tokens"}
    request = endpoint.requests[0]
    assert request["response_format"]["type"] == "json_schema"
    assert request["temperature"] == 0
    assert request["messages"][0]["content"][0]["text"].startswith("Name 20 of ")
    picture = Image.open(io.BytesIO(base64.b64decode(request["messages"][0]["content"][1]["image_url"]["url"].split(",")[1])))
    assert picture.size == (64, 64)
    assert asked.usage() == {"ok": 6, "input_tokens": 600, "output_tokens": 60}
    assert source(endpoint, tmp_path, input_price=2.5, output_price=10).usage()["cost"] == pytest.approx(0.0021)


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with serve(lambda _: GOOD) as endpoint:
        ask(source(endpoint, tmp_path), dataset(4))
        done: list[int] = []
        ask(source(endpoint, tmp_path), dataset(4), done.append)
    assert sum(endpoint.received.values()) == 4
    assert done == [4]


@pytest.mark.parametrize("trouble", [error(429, "slow down"), error(500, "oops"), error(503, "busy"), error(408, "late")])
def test_passing_trouble_is_retried(tmp_path: Path, trouble: Reply) -> None:
    with serve(lambda before: trouble if before == 0 else GOOD) as endpoint:
        asked = source(endpoint, tmp_path)
        assert ask(asked, dataset(3)) == {}
    assert set(endpoint.received.values()) == {2}
    assert asked.usage()["ok"] == 3


def test_workers_ask_at_the_same_time(tmp_path: Path) -> None:
    with serve(lambda _: Reply(GOOD.body, pause=0.3)) as endpoint:
        ask(source(endpoint, tmp_path, workers=4), dataset(8))
    assert 2 <= endpoint.most_at_once <= 4


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (completion(None, refusal="I cannot look at people."), "refused"),
        (completion("", finish_reason="content_filter"), "refused"),
        (completion(""), "empty"),
        (nouns([], []), "empty"),
        (completion("Sure! Here are the nouns"), "malformed"),
        (completion('{"foreground": ["cat"', finish_reason="length"), "malformed"),
    ],
)
def test_answers_without_a_caption_are_recorded_and_not_asked_for_again(tmp_path: Path, reply: Reply, status: str) -> None:
    images = dataset(2)
    with serve(lambda _: reply) as endpoint:
        asked = source(endpoint, tmp_path)
        assert ask(asked, images) == {}
        assert ask(asked, images) == {}
        assert {row["status"] for row in records(asked)} == {status}
        assert sum(endpoint.received.values()) == 2
        endpoint.script = lambda _: GOOD
        assert ask(source(endpoint, tmp_path, ask_again=True), images) == {}
    assert len(asked.captions) == 2


def test_an_endpoint_that_answers_in_plain_text_is_left_after_a_few_calls_and_continued_so(tmp_path: Path) -> None:
    images = dataset(9)
    with serve(lambda _: completion("cat, grass")) as endpoint:
        asked = source(endpoint, tmp_path, workers=1)
        with pytest.raises(ModelError, match=r"but: 'cat, grass'\. .*prompts\.structured=false") as caught:
            ask(asked, images)
        assert str(asked.path) in str(caught.value)
        assert sum(endpoint.received.values()) <= 4  # one more may have been under way
        assert ask(source(endpoint, tmp_path, structured=False), images) == {}
    captions = source(endpoint, tmp_path, structured=False).captions
    assert len(captions) == 9
    assert set(captions.values()) == {"cat, grass"}


def test_images_without_a_caption_are_named_before_a_run(tmp_path: Path) -> None:
    with serve(lambda _: completion(None, refusal="no")) as endpoint:
        asked = source(endpoint, tmp_path)
        with pytest.raises(DataError, match=r"python -m goca\.caption"):
            asked.setup(dataset(2))
        ask(asked, dataset(2))
    with pytest.raises(DataError, match="no caption for 2 of 2 images"):
        asked.setup(dataset(2))


@pytest.mark.parametrize(
    "reply", [Reply(b"<html>gateway</html>"), Reply({"unexpected": 1}), Reply(b"{"), error(400, "image too large")]
)
def test_images_without_an_answer_are_reported_and_asked_for_next_time(tmp_path: Path, reply: Reply) -> None:
    images = dataset(3)
    with serve(lambda _: reply) as endpoint:
        asked = source(endpoint, tmp_path)
        assert set(ask(asked, images)) == set(images.image_ids)
        assert records(asked) == []
        endpoint.script = lambda _: GOOD
        assert ask(asked, images) == {}
    assert len(records(asked)) == 3


def test_slow_answers_time_out(tmp_path: Path) -> None:
    with serve(lambda _: Reply(GOOD.body, pause=1.0)) as endpoint:
        failures = ask(source(endpoint, tmp_path, timeout=0.2, retries=0), dataset(2))
    assert all("no answer within 0.2 s" in reason for reason in failures.values())
    assert len(failures) == 2


def test_a_run_ends_when_no_image_gets_an_answer(tmp_path: Path) -> None:
    with serve(lambda _: error(400, "broken")) as endpoint, pytest.raises(ModelError, match="in a row"):
        ask(source(endpoint, tmp_path, workers=1), dataset(3 * MAX_FAILURES))
    assert len(endpoint.requests) <= MAX_FAILURES + 2


def test_wrong_key_ends_the_run_and_is_not_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serve(lambda _: error(401, f"Incorrect API key provided: {KEY}")) as endpoint:
        asked = source(endpoint, tmp_path, workers=1)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
            ask(asked, dataset(30))
        assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert len(endpoint.requests) <= 2
    assert KEY not in str(caught.value) + caplog.text + asked.path.read_text() + repr(asked) + repr(asked.describe())


def test_missing_key_is_found_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serve(lambda _: GOOD) as endpoint:
        with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
            ask(source(endpoint, tmp_path), dataset(2))
        assert not endpoint.requests
        assert ask(source(endpoint, tmp_path, key_variable=None), dataset(2)) == {}


def test_unknown_model_and_used_up_quota_end_the_run(tmp_path: Path) -> None:
    with serve(lambda _: error(404, "no such model")) as endpoint, pytest.raises(ConfigError, match=r"prompts\.model=tiny"):
        ask(source(endpoint, tmp_path), dataset(2))
    with (
        serve(lambda _: error(429, "pay first", "insufficient_quota")) as endpoint,
        pytest.raises(ModelError, match="pay first"),
    ):
        ask(source(endpoint, tmp_path, retries=0), dataset(2))


def test_endpoint_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match=f"cannot reach {url}.*continues"):
        ask(source(url, tmp_path, retries=0), dataset(2))


@pytest.mark.parametrize(
    "options", [{"base_url": "https://me:secret@host/v1"}, {"base_url": "host"}, {"key_variable": "sk-secret"}]
)
def test_a_key_in_the_wrong_place_is_refused_without_repeating_it(tmp_path: Path, options: dict[str, str]) -> None:
    settings = {"base_url": "https://host/v1", "path": tmp_path / "c.jsonl", "model": "tiny", "instruction": "x"}
    with pytest.raises(ConfigError) as caught:
        OpenAI(**(settings | options))
    assert "secret" not in str(caught.value)


def test_text_endpoints(tmp_path: Path) -> None:
    with serve(lambda _: completion('\n"cat, grass"\nthe end')) as endpoint:
        asked = source(endpoint, tmp_path, structured=False)
        ask(asked, dataset(1))
    assert "response_format" not in endpoint.requests[0]
    assert records(asked)[0]["caption"] == "cat, grass"


def test_killed_and_started_again(tmp_path: Path) -> None:
    """After SIGKILL every answer that had arrived is there, and only requests that had got no answer are made again."""
    images, hold, arrived = dataset(12), Event(), itertools.count()

    def script(_: int) -> Reply:
        if next(arrived) >= 5:  # the first five are answered, the next ones wait
            hold.wait(20)
        return GOOD

    with serve(script) as endpoint:
        asked = source(endpoint, tmp_path, workers=3)
        child = multiprocessing.get_context("fork").Process(target=ask, args=(asked, images))
        child.start()
        wait_for(lambda: asked.path.exists() and len(records(asked)) == 5 and endpoint.under_way == 3)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        before = records(asked)
        with asked.path.open("a") as file:
            file.write('{"image_id": "cut off in the mid')  # what a kill during a write would leave
        endpoint.script = lambda _: GOOD
        assert ask(source(endpoint, tmp_path), images) == {}
        total = len(endpoint.requests)
        hold.set()
    assert records(asked)[:5] == before
    assert sorted(row["image_id"] for row in records(asked)) == sorted(images.image_ids)
    assert total == 12 + 3  # the three that waited


def test_interrupted_runs_keep_answers_under_way(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with serve(lambda before: Reply(GOOD.body, pause=0.1)) as endpoint:
        asked = source(endpoint, tmp_path, workers=3)
        with pytest.raises(KeyboardInterrupt):
            ask(asked, dataset(30), interrupt)
    assert len(records(asked)) == sum(endpoint.received.values()) < 30


def test_one_process_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with (
        AnswerFile(path, "tiny", "x").open(),
        pytest.raises(DataError, match="another captioning run"),
        AnswerFile(path, "tiny", "x").open(),
    ):
        pass


@pytest.mark.parametrize(("model", "request_text"), [("other", "x"), ("tiny", "y")])
def test_one_file_holds_one_model_and_request(tmp_path: Path, model: str, request_text: str) -> None:
    path = tmp_path / "captions.jsonl"
    with AnswerFile(path, "tiny", "x").open() as answers:
        answers.append("1", Answer("cat"))
    with pytest.raises(ConfigError, match=r"line 1.*prompts\.path"), AnswerFile(path, model, request_text).open():
        pass
    path.write_text('{"something": "else"}\n')
    with pytest.raises(DataError, match="line 1"), AnswerFile(path, "tiny", "x").open():
        pass


def test_unknown_field_of_the_instruction(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_words"):
        ask(source("http://localhost/v1", tmp_path, instruction="{nouns}"), dataset(1))


@pytest.mark.parametrize(("limit", "words"), [(5, "5"), ({"scenes": 7, "default": 9}, "7"), ({"default": 9}, "9")])
def test_word_limit_of_a_data_set(tmp_path: Path, limit: Any, words: str) -> None:
    asked = source("http://localhost/v1", tmp_path, max_words=limit)
    assert asked.request(dataset(1)).startswith(f"Name {words} of ")


def test_a_benchmark_has_the_word_limit_of_its_table(tmp_path: Path) -> None:
    limits = {"context": 35, "default": 20}
    for name, words in (("context", 35), ("context60", 35), ("voc21", 20)):
        asked = source("http://localhost/v1", tmp_path, max_words=limits)
        assert asked.request(build_dataset(name)).startswith(f"Name {words} of ")


def test_large_images_are_scaled_down() -> None:
    url = data_url(np.zeros((30, 4000, 3), np.uint8), 1000)
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).width == 1000


def test_an_image_that_cannot_be_read_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = dataset(3)
    original = Scenes.__getitem__

    def broken(self: Scenes, index: int) -> Any:
        if index == 1:
            raise DataError("the image is too large")
        return original(self, index)

    monkeypatch.setattr(Scenes, "__getitem__", broken)
    with serve(lambda _: GOOD) as endpoint:
        assert ask(source(endpoint, tmp_path), images) == {images.image_ids[1]: "the image is too large"}
    assert len(endpoint.requests) == 2


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise GocaError("waited too long")
        time.sleep(0.02)
