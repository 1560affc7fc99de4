"""Builds the documentation site: `make docs`. Pages are Markdown in `docs/`; what the code knows is written from it."""
