"""A real browser for tests of pages: the system's chromium, driven by Playwright; tests skip where it is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WAIT = 120_000  # ms: a test fails for what never comes, not for a machine that is busy
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=WAIT)
        yield running
        running.close()


class Page:
    """A page that remembers what went wrong in it and which addresses it asked for."""

    def __init__(self, browser: Any, address: str, viewport: dict[str, int] = DESKTOP) -> None:
        self.page = browser.new_page(viewport=viewport)
        self.page.set_default_timeout(WAIT)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def texts(self, selector: str) -> list[str]:
        """Text of every element that matches."""
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def fits(self) -> bool:
        """Whether nothing sticks out of the window sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))
