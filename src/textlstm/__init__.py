"""textlstm trains an LSTM language model on your own text in minutes, and then writes and scores with it.

    import textlstm

    model = textlstm.load("shakespeare")
    print(model.generate("ROMEO:", max_chars=300, temperature=0.7, seed=1))

Names are imported when they are first used, so that `import textlstm` costs nothing and generating never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textlstm.api import load, train
    from textlstm.config import CorpusConfig, ModelConfig, SamplingConfig, TrainConfig
    from textlstm.errors import TextLSTMError
    from textlstm.metrics import Score
    from textlstm.model import Model, Session
    from textlstm.state import State

__version__ = "0.1.0"

_HOME = {
    "load": "textlstm.api",
    "train": "textlstm.api",
    "Model": "textlstm.model",
    "Session": "textlstm.model",
    "State": "textlstm.state",
    "Score": "textlstm.metrics",
    "ModelConfig": "textlstm.config",
    "CorpusConfig": "textlstm.config",
    "TrainConfig": "textlstm.config",
    "SamplingConfig": "textlstm.config",
    "TextLSTMError": "textlstm.errors",
}

__all__ = [
    "CorpusConfig",
    "Model",
    "ModelConfig",
    "SamplingConfig",
    "Score",
    "Session",
    "State",
    "TextLSTMError",
    "TrainConfig",
    "__version__",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'textlstm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
