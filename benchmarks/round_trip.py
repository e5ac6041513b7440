"""Whether every file of a folder comes back from compress and decompress, and what it became.

    python benchmarks/round_trip.py FOLDER [MODEL] [LANES]

Made for the test data of the Brotli project (`tests/testdata` of its source package): texts, binary files, nothing,
strange encodings. MODEL is a name or a file, by default `shakespeare`; 64 LANES are quick, 1 is smallest.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from card import report

from textlstm.model import Model


def main() -> None:
    """Compresses each file, and compares what comes back."""
    folder = Path(sys.argv[1])
    name = sys.argv[2] if len(sys.argv) > 2 else "shakespeare"
    lanes = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    model = Model.load(name)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    ways: Counter[str] = Counter()
    different, before, after = [], 0, 0
    for path in files:
        data = path.read_bytes()
        done = model.compress(data, lanes)
        same = model.decompress(done.data) == data
        ways[done.method] += 1
        before, after = before + len(data), after + len(done.data)
        if not same:
            different.append(path.name)
        print(f"{path.name:32} {len(data):9,} {len(done.data):9,} {done.method:8} {'same' if same else 'DIFFERENT'}")
    report(
        "round_trip",
        {"model": name, "lanes": lanes, "files": len(files), "different": different, "by": dict(ways),
         "bytes": before, "compressed_bytes": after},
    )  # fmt: skip


if __name__ == "__main__":
    main()
