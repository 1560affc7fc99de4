"""Errors meant for people: one message that says what was wrong, where, and what would be right."""


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


class Interrupted(GocaError):  # noqa: N818 - it is no fault
    """A signal has stopped a run; the exit code is the shell's, 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
