"""The documentation site: links, navigation, and pages that are written from the code. `make docs` builds it strictly."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from docs.builder import notebooks, pages, settings, written
from docs.builder.__main__ import navigation
from docs.builder.typed import parameters_of, root_types, words
from goca.config.settings import SETTINGS, keys
from goca.method.decision import RULES
from goca.runs.records import ImageRecord, Summary

griffe = pytest.importorskip("griffe", reason="the extra docs")


def test_links_lead_to_pages_and_code_is_named():
    known = {"docs/a.md": "a.md", "README.md": "index.md", "goca/bundled/x/README.md": "cards/x.md"}
    text = (
        "[r](../README.md) ![p](images/overview.png) [c](../goca/ops.py) `[a](b)`\n```\n[x](../README.md)\n```\n[gone](gone.md)"
    )
    moved = pages.relinked(text, "docs/a.md", known)
    assert moved.splitlines()[0] == "[r](index.md) ![p](images/overview.png) `goca/ops.py` `[a](b)`"
    assert "[x](../README.md)" in moved
    assert "[gone](gone.md)" in moved  # for the strict build to find
    assert pages.relinked("[a](../../../docs/a.md#b)", "goca/bundled/x/README.md", known) == "[a](../a.md#b)"


def test_markdown_that_github_reads_is_read_alike():
    assert pages.normalised("text\n- one\n- two") == "text\n\n- one\n- two"
    assert pages.normalised("text\n| a |\n|---|") == "text\n\n| a |\n|---|"
    assert pages.normalised("1. one\n\n   ```\n   code\n   ```\nend") == "1. one\n\n    ```\n    code\n    ```\nend"
    assert pages.normalised("```\na\n- b\n```") == "```\na\n- b\n```"


def test_the_navigation_takes_pages_that_it_does_not_name_and_names_none_that_is_gone():
    there = ["a.md", "b/1.md", "b/2.md", "new.md"]
    filled = navigation([{"A": ["a.md", {"B": ["b/*.md"]}]}], there)
    assert filled == [{"A": ["a.md", {"B": ["b/1.md", "b/2.md"]}, "new.md"]}]
    with pytest.raises(SystemExit, match=r"gone\.md"):
        navigation([{"A": ["gone.md"]}], there)


def test_the_navigation_of_the_site_names_pages_that_exist():
    _, _, text = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    nav = yaml.safe_load(text)
    written_pages = [f"reference/{name}.md" for name in ("commands", "records", "models", "measured")]
    assert navigation(nav, [*pages.sources().values(), *written_pages, "reference/groups/model.md"])


@pytest.mark.parametrize("config_name", SETTINGS)
def test_every_root_key_is_on_the_page_with_its_type(config_name):
    section = "\n".join(settings._settings_of(config_name))
    types = root_types(SETTINGS[config_name])
    assert set(types) == set(keys(SETTINGS[config_name]))
    plain, choices, _ = settings.composed(config_name)
    for key, _ in settings.leaves(plain):
        if key.partition(".")[0] not in choices and key != "preset":
            assert f"| `{key}` | " in section
    assert not re.search(r"^\| `[\w.]+` \|  \|", section, flags=re.M), "a key without a type"


def test_a_group_page_has_options_keys_types_and_choices():
    page = settings.group_page("decision")
    for name in settings.options_of("decision"):
        assert f"| `{name}` | " in page
    assert "| `decision.ties` | `background`, `class` | " in page
    assert "class: who wins where both score the same" in page
    assert all(f"| `{name}` | " in page for name in RULES)
    assert "pydantic" not in page


def test_types_in_words():
    assert words(dict[str, float] | None) == "section of keys, or null"
    assert words(list[list[int]]) == "list of lists of whole numbers"
    assert parameters_of("goca.method.passes.Passes")["clean"] == ("true or false", False)
    assert root_types(SETTINGS["app"])["port"] == "whole number from 0 up to 65535"


def test_records_and_summary_are_described_field_by_field():
    page = written.records_page()
    for kind in (ImageRecord, Summary):
        for field in kind.__dataclass_fields__:
            assert f"| `{field}` | " in page, field


def test_measurements_carry_their_conditions():
    page = written.measured_page()
    tables = page.split("\n## ")[1:]
    assert len(tables) > 3
    assert all(" machine | " in table for table in tables)
    assert all(" commit |" in table for table in tables if not table.startswith("alignment"))


def test_models_stand_with_what_was_computed_and_measured():
    page = written.models_page()
    row = re.search(r"^\| `sd15` .*$", page, flags=re.M)[0]
    assert "huggingface.co/stable-diffusion-v1-5" in row
    assert " 2.0 | 0.8 | " in row
    assert all(f"| `{name}` | " in page for name in settings.options_of("model"))


def test_every_published_checkpoint_is_linked():
    text = (pages.ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    linked = re.findall(r"^\| `(\w+)` \|.* \[(\S+)\]\(https://huggingface\.co/(\S+)\) \|$", text, flags=re.M)
    files = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in (pages.ROOT / "conf/model").glob("*.yaml")}
    published = {name: content.get("checkpoint") for name, content in files.items()}
    published = {name: page for name, page in published.items() if page and not page.startswith("$")}
    assert {name: page for name, page, address in linked if page == address} == published


def test_a_notebook_becomes_a_page(tmp_path):
    shown = {"data": {"text/plain": ["2"], "image/png": "aGVsbG8="}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [shown, {"text": "out\n"}]},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    page = notebooks.page(tmp_path / "n.ipynb", tmp_path / "images")
    assert "```python\n1 + 1\n```" in page
    assert "![result](images/n_1_0.png)" in page
    assert (tmp_path / "images" / "n_1_0.png").read_bytes() == b"hello"
    assert "```text\nout\n```" in page


def test_doctests_in_docstrings_are_code():
    from docs.builder.doctests import fenced

    assert fenced("Adds.\n\n>>> 1 + 1\n2\n\nEnd.") == "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nEnd."


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(tmp_path):
    pytest.importorskip("zensical", reason="the extra docs")
    build = [sys.executable, "-m", "docs.builder", "--output", str(tmp_path)]
    ran = subprocess.run(build, cwd=pages.ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="style/offline.js"' in home
    loaded = re.findall(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"', home)
    assert loaded == []
    assert "goca run" in (tmp_path / "site" / "reference" / "commands.html").read_text(encoding="utf-8")
