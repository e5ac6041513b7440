"""Takes the pictures of the playground: python docs/playground.py (needs Chromium and Playwright)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent


def pose(page: Page, url: str) -> None:
    """Writes a little, looks inside, branches, and opens the alternatives of a token."""
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")
    page.locator("#prompt").fill("JULIET:\nO gentle night, thou")
    for name, value in (("seed", "4"), ("max_tokens", "110"), ("temperature", "0.7")):
        page.locator(f"#{name}").fill(value)
    page.locator("#keep-seed").check()
    for pick in (None, 24):
        if pick is None:
            page.keyboard.press("Control+Enter")
        else:
            page.locator(".token").nth(pick).click()
            page.locator("#peek button").nth(1).click()
        page.locator("#status", has_text="made at").wait_for()
    page.locator("#xray-form button").click()
    page.locator("canvas").first.wait_for()
    page.locator(".token").nth(10).hover()
    page.locator("#peek").wait_for()


def main() -> None:
    """Starts a server and takes one picture in each theme."""
    command = [sys.executable, "-m", "textlstm", "serve", "shakespeare", "--port", "0", "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/health").close()
                break
            except urllib.error.HTTPError:
                time.sleep(0.1)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=os.geteuid() != 0
        )
        for theme in ("light", "dark"):
            page = browser.new_context(
                viewport={"width": 1200, "height": 900}, color_scheme=theme, reduced_motion="reduce"
            ).new_page()
            pose(page, url)
            page.screenshot(path=HERE / f"playground-{theme}.png")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
