"""An X-ray of a model: what its gates and cells do over a text, which cells mean something, what it remembers.

`trace` runs the equations and keeps every gate; `cells` looks for cells that stand for properties of the text;
`memory` measures how long a cell and the whole state hold on to what was read; `show` prints and draws.
"""

from textlstm.inspection.cells import Finding, find_cells, properties
from textlstm.inspection.memory import gate_report, influence, nearest_tokens
from textlstm.inspection.trace import Trace, trace
from textlstm.inspection.xray import XRay, xray

__all__ = [
    "Finding", "Trace", "XRay", "find_cells", "gate_report", "influence", "nearest_tokens", "properties", "trace",
    "xray",
]  # fmt: skip
