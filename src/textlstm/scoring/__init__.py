"""What a score is made of: lines, words, calibration, position in context, and what others make of the same bytes.

`detail` reads a text token by token; `baselines` compresses it by other means; `show` prints and writes it down.
"""

from textlstm.scoring.baselines import baselines, fixed_baselines, ngram_bits
from textlstm.scoring.detail import Detail, Report, calibration, pieces, positions, read_closely, report

__all__ = [
    "Detail", "Report", "baselines", "calibration", "fixed_baselines", "ngram_bits", "pieces", "positions",
    "read_closely", "report",
]  # fmt: skip
