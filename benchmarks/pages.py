"""Tables of pages, which are drawn between markers from what was measured."""

from __future__ import annotations

from collections.abc import Iterable


def filled(page: str, name: str, rows: Iterable[str]) -> str:
    """A page with new rows between `<!-- name -->` and `<!-- end of name -->`; ValueError where it has not both."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"the page has no {begin.strip()} before {end}")
    return "".join((before, begin, *(f"{row}\n" for row in rows), end, after))
