"""Commands answer at once: help, the composed configuration and mistakes need none of the libraries that take seconds."""

import subprocess
import sys
import textwrap

import pytest

HEAVY = ("torch", "diffusers", "transformers", "pytorch_lightning", "wandb", "matplotlib", "scipy", "gradio", "pyarrow")
HYDRA = {
    "goca.run": "seed",
    "goca.observe": "seed",
    "goca.app": "port",
    "goca.caption": "limit",
    "goca.layers": "model.size",
    "goca.verify": "weights",
    "goca.fetch": "dry_run",
    "goca.dashboard": "offline",
    "goca.generate": "steps",
    "goca.evaluate_generation": "chunk",
    "goca.compare": "title",
    "goca.scenes.train": "scenes",
    "goca.scenes.train_classifier": "scenes",
    "goca.scenes.train_decoder": "scenes",
}
# Runs commands one after the other in one process, as `python -m` does, and says what each printed and what is imported then.
PROBE = """
import contextlib, io, json, runpy, sys
for module, arguments in {calls!r}:
    sys.argv = [module, *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code or 0
    heavy = sorted(set({heavy!r}) & set(sys.modules))
    print(json.dumps([module, arguments, code, out.getvalue(), err.getvalue(), heavy]))
"""


def _probe(calls, cwd):
    import json

    command = [sys.executable, "-c", textwrap.dedent(PROBE.format(calls=calls, heavy=HEAVY))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd, timeout=300)
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    calls = [(module, arguments) for module in HYDRA for arguments in (["--help"], ["--cfg", "job"])]
    calls += [(module, [f"{key}x=1"]) for module, key in HYDRA.items()]
    calls += [("goca.data", ["--help"]), ("goca.merge", ["--help"]), ("goca.run", ["experiment=mine"])]
    found = _probe(calls, tmp_path_factory.mktemp("empty"))
    return {(module, tuple(arguments)): rest for module, arguments, *rest in found}


def test_nothing_heavy_is_imported_before_there_is_work(answers):
    for call, (*_, heavy) in answers.items():
        assert heavy == [], call


@pytest.mark.parametrize("module", HYDRA)
def test_help_lists_the_groups_of_the_command_alone(answers, module):
    code, out, err, _ = answers[module, ("--help",)]
    assert (code, err) == (0, "")
    assert f"python -m {module}" in out
    groups = {line.split("[")[0].strip() for line in out.splitlines() if line.startswith("  ") and "]: " in line}
    sections = out.partition("Set any value")[2]
    _, composed, _, _ = answers[module, ("--cfg", "job")]
    for group in groups - {"preset", "local"}:  # those choose options of other groups and have no section
        assert f"\n{group}:" in f"\n{composed}", group
    assert "a group of your own" not in out
    assert ("dataset" in groups) == (module in ("goca.run", "goca.caption"))
    assert ("backbone" in groups) == (module == "goca.scenes.train")
    assert sections


@pytest.mark.parametrize("module", HYDRA)
def test_a_misspelt_key_is_one_line(answers, module):
    code, _, err, _ = answers[module, (f"{HYDRA[module]}x=1",)]
    assert code == 2
    assert err.startswith(f"error: there is no key '{HYDRA[module]}x' (did you mean '{HYDRA[module].rpartition('.')[2]}'?)")
    assert len(err.splitlines()) == 1


def test_the_old_name_of_the_group_says_the_new_one(answers):
    code, _, err, _ = answers["goca.run", ("experiment=mine",)]
    assert code == 2
    assert "group=NAME" in err
    assert "+experiment=NAME" in err


def test_settings_of_this_machine_lie_behind_the_command_line(tmp_path):
    """Every command reads `local/default.yaml` of a folder that it is given."""
    local = tmp_path / "mine" / "local"
    local.mkdir(parents=True)
    (local / "default.yaml").write_text("# @package _global_\nseed: 7\npaths: {output: /elsewhere}\n")
    modules = [module for module, key in HYDRA.items() if key == "seed"]
    calls = [
        (module, ["--config-dir", str(tmp_path / "mine"), "--cfg", "job", *more])
        for module in modules
        for more in ([], ["seed=3"])
    ]
    for _, arguments, code, out, err, _ in _probe(calls, tmp_path):
        assert code == 0, err
        assert "output: /elsewhere" in out
        assert ("seed: 3" if "seed=3" in arguments else "seed: 7") in out
