"""Draws docs/report.png from the report of data/corpus: python docs/picture.py

Needs chromium, and the extra dev.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from jobs.commands.main import main

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "report.png"
JOB = ("--context-length", "256", "--d-model", "64", "--heads", "4", "--quiet")
WINDOW = "167"  # of English text
WIDTH = 1280  # pixels
ONLY = """
    nav, header, footer, section:not(#windows, #attention), #attention h3, #attention h3 ~ *,
    #attention > .lead, #windows > .lead, #windows > .controls { display: none !important; }
    section { border: 0; padding: 0; margin: 32px auto 0; }
    .text { max-height: 186px; overflow: hidden; }
"""


def draw(page: Path) -> None:
    """Take the picture of a window's tokens and of its attention map."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 900})
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-drawn]")
        tab.add_style_tag(content=ONLY)
        tab.screenshot(path=PICTURE, full_page=True)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        export = str(Path(folder) / "corpus")
        status = main(["run", str(ROOT / "data" / "corpus"), "--out", export, *JOB])
        status = status or main(["report", export, "--window", WINDOW, "--quiet"])
        if status:
            sys.exit(status)
        draw(Path(folder) / "corpus.html")
