"""How fast the exported page of `shakespeare` writes in headless Chromium, by WebAssembly and by plain JavaScript.

    make browser
    python benchmarks/html_export.py

Both are timed in turn in one run, 400 tokens a time with the page's default settings, and beside them the default
engine in Python. Plain JavaScript is what a browser without WebAssembly has.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import time
from pathlib import Path

from card import report, spread
from playwright.sync_api import sync_playwright

import textlstm
from textlstm.api import require_torch
from textlstm.export.html import scripts

TOKENS = 400
WRITE = """([name, seed, tokens]) => {
    const settings = {
        temperature: 0.8, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, max_tokens: tokens
    };
    const began = performance.now();
    for (const piece of writeText(networks[name], tokenizer, { prompt: "", seed, settings })) void piece;
    return (1000 * tokens) / (performance.now() - began);
}"""


def main() -> None:
    """Measures, prints, writes benchmarks/results/html_export.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    require_torch()
    shipped = Path(textlstm.__file__).parent / "models" / "shakespeare.safetensors"
    speeds: dict[str, list[float]] = {"WebAssembly": [], "JavaScript": [], "Python": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=os.geteuid() != 0
        )
        page = browser.new_page()
        page.add_script_tag(content=scripts())
        page.evaluate(
            """(data) => {
                const model = readModel(fromBase64(data));
                window.tokenizer = makeTokenizer(model.tokenizer);
                window.networks = { WebAssembly: new Network(model), JavaScript: new Network(model, true) };
            }""",
            base64.b64encode(shipped.read_bytes()).decode(),
        )
        model = textlstm.load("shakespeare")
        for run in range(runs + 1):
            for name, values in speeds.items():
                if name == "Python":
                    began = time.perf_counter()
                    model.generate("", max_tokens=TOKENS, seed=run)
                    speed = TOKENS / (time.perf_counter() - began)
                else:
                    speed = page.evaluate(WRITE, [name, str(run), TOKENS])
                if run > 0:  # the first is to warm up
                    values.append(speed)
        version = browser.version
        browser.close()
    for name, values in speeds.items():
        print(f"{name:<12}  {spread(values)['median']:7.0f} tokens per second")
    results = {name: spread([round(v) for v in values]) for name, values in speeds.items()}
    report("html_export", {"tokens": TOKENS, "chromium": version, "tokens_per_second": results})


if __name__ == "__main__":
    main()
