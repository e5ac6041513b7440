"""Tiny Shakespeare as others measure on it, which benchmarks insist on."""

from __future__ import annotations

import sys

from textlstm.corpus.named import find


def true_text() -> str:
    """The whole text; where only the one rebuilt from the plays is at hand, the program ends."""
    corpus = find("tiny-shakespeare")
    assert corpus is not None
    loaded = corpus.load(lambda line: print(line, file=sys.stderr))
    if not loaded.canonical:
        sys.exit("this needs the true tinyshakespeare.txt: name its folder in TEXTLSTM_CORPORA")
    return loaded.documents[0].text
