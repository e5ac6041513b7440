"""What is copied: the index in which commands look for it, and how they tell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textlstm.cli.options import notice_of
from textlstm.config import CorpusConfig


def suffix_index(source: str, quiet: bool) -> Any:
    """The index of a source in which copied runs are looked for."""
    return index_of([source], CorpusConfig(), quiet)


def index_of(sources: Sequence[str], config: CorpusConfig, quiet: bool) -> Any:
    """The index of some sources."""
    from textlstm.corpus import read_sources
    from textlstm.novelty import SuffixIndex

    loaded = read_sources(sources, config, notice_of(quiet))
    return SuffixIndex.of_texts(document.text for document in loaded.documents)


def copied_line(novelty: Any) -> str:
    """What of a text is copied, in a line."""
    shares = ", ".join(f"{share:.1%} in runs of {length} or more" for length, share in novelty.copied.items())
    return f"longest verbatim run {novelty.longest} characters; of all characters {shares}"
