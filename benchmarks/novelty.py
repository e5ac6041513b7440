"""Seconds and memory to index 100 MB of text, and the speed of looking for copies in it.

    python benchmarks/novelty.py [MEGABYTES]

The text is Python's own library and whatever is installed beside it, repeated if that is too little.
"""

from __future__ import annotations

import os
import resource
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from card import report

from textlstm.novelty import SuffixIndex
from textlstm.tokenizer import bytes_to_text


def read(megabytes: float) -> list[str]:
    """Source files up to a size."""
    paths = sysconfig.get_paths()
    files = sorted(Path(paths["stdlib"]).rglob("*.py")) + sorted(Path(paths["purelib"]).rglob("*.py"))
    texts, size = [], 0
    while size < megabytes * 1e6:
        for file in files:
            data = file.read_bytes()
            texts.append(bytes_to_text(data))
            size += len(data)
            if size >= megabytes * 1e6:
                break
    return texts


def main() -> None:
    """Builds once, in an empty cache."""
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TEXTLSTM_CACHE"] = folder
        texts = read(megabytes)
        sample = "".join(texts[::400])[:20_000].replace("self", "this")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        started = time.perf_counter()
        index = SuffixIndex.of_texts(texts)
        built = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        started = time.perf_counter()
        found = index.novelty(sample)
        rate = len(sample) / (time.perf_counter() - started)
    results = {"megabytes": megabytes, "seconds_to_build": built, "peak_rss_mb": peak, "rss_before_mb": before}
    print(f"{megabytes:g} MB: {built:.1f} s, {peak:.0f} MB at the peak ({before:.0f} MB before)")
    report("novelty", {**results, "chars_per_second": rate, "longest": found.longest})


if __name__ == "__main__":
    main()
