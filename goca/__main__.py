"""`goca run dataset=voc`: the commands by their short names; each is also `python -m goca.<command>`."""

from __future__ import annotations

import difflib
import runpy
import sys
from pathlib import Path

from goca import __version__

COMMANDS = {
    "run": ("goca.run", "evaluate a method on a data set"),
    "compare": ("goca.compare", "one page, and tables for a paper, from finished runs"),
    "observe": ("goca.observe", "where each token of a prompt looks in one image"),
    "app": ("goca.app", "a page in the browser: pick an image, type words, click a pixel"),
    "data": ("goca.data", "fetch or check a data set"),
    "caption": ("goca.caption", "write, look at and count captions"),
    "layers": ("goca.layers", "the attention layers of a model, without its weights"),
    "fetch": ("goca.fetch", "a model's files ahead of a run, for machines without a network"),
    "verify": ("goca.verify", "does this model load and align here? one JSON record"),
    "merge": ("goca.merge", "join the shards of one run"),
    "generate": ("goca.generate", "make pictures with guidance that knows the regions of the words"),
    "evaluate-generation": ("goca.evaluate_generation", "judge generated pictures"),
    "dashboard": ("goca.dashboard", "W&B workspaces and a report that compare backbones"),
    "train": ("goca.scenes.train", "train a bundled backbone again"),
    "train-classifier": ("goca.scenes.train_classifier", "train the classifier that judges generated scenes"),
    "train-decoder": ("goca.scenes.train_decoder", "train the decoder of a bundled pipeline further"),
}

# Hydra completes the settings of a command; which command it is, is completed here.
_COMPLETION = """_goca_completion() {
  local words=($COMP_LINE) word="${COMP_WORDS[COMP_CWORD]}" choices
  [[ "$COMP_LINE" == *" " ]] && words+=("")
  word="${words[-1]}"
  if (( ${#words[@]} <= 2 )); then
    choices="@COMMANDS@ --help --version"
  else
    choices=$(COMP_LINE="goca ${COMP_LINE#*"${words[1]}" }" goca "${words[1]}" -sc query=bash 2>/dev/null)
  fi
  COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _goca_completion goca
"""


def usage() -> str:
    """What `goca --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "GoCA: semantic segmentation from the attention of a text-to-image diffusion model, without training.",
            "",
            "goca <command> [setting=value ...]      goca <command> --help says what can be set",
            "",
            *lines,
            "",
            '  goca --version      eval "$(goca --completion)"  completes commands and settings in bash',
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code, or exits with that of the command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
    elif name in ("--version", "-V"):
        print(f"goca {__version__}")
    elif name == "--completion":
        print(_COMPLETION.replace("@COMMANDS@", " ".join(COMMANDS)), end="")
    elif name.replace("_", "-") in COMMANDS:
        module, _ = COMMANDS[name.replace("_", "-")]
        here = str(Path.cwd())
        if not sys.flags.safe_path and here not in sys.path:  # as with `python -m`, a user's modules may lie here
            sys.path.insert(0, here)
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        print(f"error: there is no command '{name}'{hint}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
