"""Dynamic evaluation: a model that goes on learning from what it reads (Krause et al. 2018, arXiv 1709.07432; 2019,
arXiv 1904.08378, variant RMS).

A text is read in segments. Each is predicted, and only then learnt from: with the gradient g of its mean loss, the
trained weight w0 and two statistics of the training text, every weight w becomes

    w + min(1, decay rms / m) (w0 - w) - rate g / (rms + m),

where rms is the root mean square of the weight's own gradients while the finished model reads its training text, and
m the mean of rms over all weights. Where gradients are usually large, steps are short and the way back is fast. The
recurrent state is carried on as it is: it was computed by the weights before the step.

`statistics` measures and codes rms; `dynamic` has the weights and their step; `engine` reads a text with them, as any
other engine does, so that whatever scores, compresses or reads closely can learn as well; `writing` writes with what
was learnt.
"""

from textlstm.learning.dynamic import SEGMENTS, DynamicEvaluation, measure
from textlstm.learning.engine import LearningEngine, Memory, read_settings
from textlstm.learning.statistics import code, decode
from textlstm.learning.writing import WritingEngine

__all__ = [
    "SEGMENTS",
    "DynamicEvaluation",
    "LearningEngine",
    "Memory",
    "WritingEngine",
    "code",
    "decode",
    "measure",
    "read_settings",
]
