"""`goca run ...`: the same commands under one name."""

import argparse
import runpy
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hydra._internal.utils import get_args_parser

import goca
from goca.__main__ import COMMANDS, main
from goca.config.arguments import late_help
from tests.helpers.import_graph import commands


def _goca(*arguments, cwd=None):
    command = [sys.executable, "-m", "goca", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


def test_every_command_of_the_package_has_a_short_name():
    modules = {module.removesuffix(".__main__") for module in commands()} - {"goca"}
    assert {module for module, _ in COMMANDS.values()} == modules
    assert all(find_spec(module) for module in modules)


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"goca {goca.__version__}\n"
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")][: len(COMMANDS)] == list(COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["comprae"]) == 2
    assert "did you mean 'compare'?" in capsys.readouterr().err


def test_a_command_gets_its_settings_and_gives_its_exit_code(tmp_path):
    good = _goca("observe", "--cfg", "job", "prompt=(cat, fur), grass", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "prompt: (cat, fur), grass" in good.stdout
    wrong = _goca("run", "sed=1", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: there is no key 'sed' (did you mean 'seed'?)")


def test_hydra_makes_its_parser_where_argparse_looks_at_every_help_text(monkeypatch):
    """As Python 3.14 does."""

    def look(parser, action):
        assert action.help is None or "%" not in action.help

    monkeypatch.setattr(argparse._ActionsContainer, "_check_help", look, raising=False)
    with pytest.raises(TypeError):
        look(None, argparse.Action([], "x", help=object()))
    parser = late_help(get_args_parser)()
    assert parser.parse_args(["--cfg", "job", "seed=1"]).overrides == ["seed=1"]
    assert argparse.ArgumentParser._check_help is look


def test_modules_of_the_current_folder_are_found_as_with_python_m(tmp_path, monkeypatch):
    (tmp_path / "my_part.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as of an installed script
    monkeypatch.setattr(sys, "argv", ["goca"])
    seen = []
    monkeypatch.setattr(runpy, "run_module", lambda module, **_: seen.append((module, sys.argv, find_spec("my_part"))))
    assert main(["run", "seed=1"]) == 0
    ((module, arguments, found),) = seen
    assert (module, arguments) == ("goca.run", ["goca.run", "seed=1"])
    assert found is not None


@pytest.mark.parametrize(
    ("line", "choices"),
    [("goca ob", {"observe"}), ("goca run calibration=l", {"calibration=lift", "calibration=loss_power"})],
)
def test_bash_completes_commands_and_settings(line, choices, tmp_path):
    shim = tmp_path / "goca"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m goca "$@"\n')
    shim.chmod(0o755)
    words = " ".join(f"'{word}'" for word in line.split())
    script = (
        f'PATH={tmp_path}:$PATH; eval "$(goca --completion)"; COMP_WORDS=({words}); COMP_CWORD={len(line.split()) - 1}; '
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _goca_completion; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert set(ran.stdout.split()) == choices, ran.stderr
