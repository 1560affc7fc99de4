"""The data sets of `tests/data`."""

from tests.data.conftest import build  # noqa: F401
