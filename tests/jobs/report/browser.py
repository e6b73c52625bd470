"""A page of ours in headless Chromium, offline, where every complaint and request is noted."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRAWN_MS = 30_000

needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"),
    reason="chromium is not installed; apt-get install chromium",
)


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def matrix(self) -> list[list[float]]:
        """The weights of the map that is shown, a row a query."""
        found: list[list[float]] = self.page.evaluate("qkvmillReport.matrix")
        return found

    def pick(self, *, window: int | None = None, head: int | None = None) -> None:
        """Choose a window by its number and a head by its place in the list."""
        if window is not None:
            self.page.get_by_label("Window", exact=True).select_option(label=f"{window:,}")
        if head is not None:
            self.page.get_by_label("Head", exact=True).select_option(index=head)

    def causal(self, wanted: bool) -> None:
        self.page.get_by_role("checkbox", name="Causal").set_checked(wanted)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        assert CHROMIUM is not None, "chromium is not installed; apt-get install chromium"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser,
    path: Path,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Opened]:
    """A page from disk, once all of it is drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    context.set_default_timeout(DRAWN_MS // 2)
    found = Opened(context.new_page())

    def said(message: ConsoleMessage) -> None:
        found.complaints.append(f"{message.type}: {message.text}")

    def asked(request: Request) -> None:
        found.requests.append(request.url)

    def failed(error: Any) -> None:
        found.complaints.append(str(error))

    found.page.on("console", said)
    found.page.on("pageerror", failed)
    found.page.on("request", asked)
    found.page.goto(path.as_uri())
    found.page.wait_for_selector("html[data-drawn]", timeout=DRAWN_MS)
    yield found
    context.close()
