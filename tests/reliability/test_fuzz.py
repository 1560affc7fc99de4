"""Random captions and random overrides: an answer or one clear message, never a crash."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goca import config
from goca.data.classes import ClassTable
from goca.data.datamodule import parse_shard
from goca.errors import ConfigError, GocaError
from goca.prompts import sources
from goca.prompts.caption import parse
from goca.prompts.prompt import TextSegment
from goca.scenes.tokenizer import small_clip_tokenizer

TABLE = ClassTable.from_names(["cat", "grass, lawn", "traffic light"])
SEGMENTS = (TextSegment(small_clip_tokenizer(max_length=20), 20),)
WORDS = [
    "cat",
    "cats",
    "Traffic Light",
    "lawn",
    "(",
    ")",
    "((",
    ",",
    " ,",
    ".",
    "background",
    "\n",
    "\x00",
    "é",
    "猫",
    "🐈",
    "'s",
    "-",
]
CAPTIONS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
KEYS = [
    "limit",
    "seed",
    "data.shard",
    "data.batch_size",
    "model.size",
    "model.timestep",
    "aggregation.heads",
    "decision.rule",
    "indices",
    "calibration.steps",
    "dataset",
    "prompts",
    "protocol.void",
    "paths",
    "run",
    "resume",
    "trainer.devices",
    "nowhere",
    "model.layers.cross",
]
ODD = [
    "null",
    "true",
    "[]",
    "{}",
    "[[]]",
    "{a:1}",
    "-1",
    "1e400",
    "nan",
    "${x}",
    "${seed}",
    "${bundled:}",
    "'",
    '"',
    "\\",
    "a,b",
]
VALUES = st.one_of(st.text(max_size=12), st.sampled_from(ODD), st.integers().map(str), st.floats().map(str))
PREFIX = st.sampled_from(["", "+", "++", "~"])
QUICK = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@settings(max_examples=300, **QUICK)
@given(caption=CAPTIONS)
def test_captions(caption: str) -> None:
    parse(caption, TABLE)
    try:
        _, prompts = sources.from_text(caption, SEGMENTS)
    except GocaError:
        return
    for prompt in prompts:
        assert all(0 <= position < 20 for position in prompt.content)


@pytest.mark.slow
@settings(max_examples=25, **QUICK)
@given(prefix=PREFIX, key=st.sampled_from(KEYS), value=VALUES)
def test_overrides(prefix: str, key: str, value: str) -> None:
    try:
        cfg = config.compose([f"{prefix}{key}={value}"])
        for section in ("data", "aggregation", "calibration", "refinement", "decision", "model"):
            config.build(cfg, section)
    except GocaError:
        return


@settings(max_examples=200, **QUICK)
@given(shard=st.one_of(st.text(max_size=8), st.from_regex(r"\d{1,3}/\d{1,3}", fullmatch=True)))
def test_shards(shard: str) -> None:
    try:
        first, count = parse_shard(shard)
    except ConfigError:
        return
    assert 0 <= first < count
