"""Errors meant for people: one message that says what was wrong, where, and what would be right."""

from importlib.util import find_spec


class GocaError(Exception):
    """Base of every error that a command prints without a traceback."""

    exit_code = 2


class ConfigError(GocaError):
    """A configuration key, value or type that cannot work."""


class DataError(GocaError):
    """A data set folder, file or mask that is missing or not what it should be."""


class ModelError(GocaError):
    """A checkpoint, layer name, dtype or device that cannot be used."""


class OutputError(GocaError):
    """The disk is full or read-only."""


class Interrupted(GocaError):  # noqa: N818 - it is not a fault
    """A signal has stopped a run; the exit code is the shell's, 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def require(module: str, package: str, extra: str, what: str) -> None:
    """Refuse to begin what would end for the lack of an optional package.

    Args:
        module: that is imported.
        package: that holds it.
        extra: of goca, that installs it.
        what: needs it, as the user named it.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    try:
        found = find_spec(module) is not None
    except (ImportError, ValueError):  # a package around it is missing, or half removed
        found = False
    if not found:
        raise ConfigError(missing(package, extra, what))


def missing(package: str, extra: str, what: str) -> str:
    """The message about an optional package; goca is installed from a clone.

    >>> missing("gradio", "app", "the app")
    "the app needs the package gradio: in the clone of the repository, pip install -e '.[app]'"
    """
    return f"{what} needs the package {package}: in the clone of the repository, pip install -e '.[{extra}]'"
