"""Takes the README's picture of the exported page, in Chromium.

make browser
python docs/page_picture.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from textlstm.model import Model

ADDRESS = "#prompt=KING+HENRY+V%3A%0A&temperature=0.7&max_tokens=200&seed=3"


def main() -> None:
    """Exports, opens, waits for the text, takes the picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "shakespeare.html"
        Model.load("shakespeare").export(path)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=os.geteuid() != 0
        )
        page = browser.new_page(
            viewport={"width": 1180, "height": 960}, device_scale_factor=1.5, reduced_motion="reduce"
        )
        page.goto(path.as_uri() + ADDRESS)
        expect(page.locator("#status")).to_contain_text("200 tokens", timeout=30_000)
        page.screenshot(path=Path(__file__).parent / "page.png")
        browser.close()


if __name__ == "__main__":
    main()
