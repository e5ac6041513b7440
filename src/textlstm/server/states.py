"""The shelf of named states: points to go on from, as files that several processes and later runs share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textlstm.config import ModelConfig
from textlstm.files import write_atomically
from textlstm.server.protocol import ApiError
from textlstm.server.scheduler import Point
from textlstm.state import State

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


class Shelf:
    """States by name in a folder, each bound to the model that made it.

    Args:
        folder: where they are kept; it exists.
        max_states: names at most.
        max_bytes: bytes of all files at most.
    """

    def __init__(self, folder: Path, max_states: int, max_bytes: int) -> None:
        self._folder, self.max_states, self.max_bytes = folder, max_states, max_bytes

    def save(self, name: str, point: Point, model: str) -> None:
        """Keeps a point under a name; an older one of that name is replaced.

        Raises:
            ApiError: a name that cannot be meant, or no room.
        """
        from safetensors.numpy import save

        logits_1V, state = point
        arrays = {"logits": logits_1V, "h": state.h_LBH, "c": state.c_LBH}
        data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata={"model": model})
        path = self._path(name, "save_state")
        others = [p.stat().st_size for p in self._files() if p != path]
        if len(others) >= self.max_states or sum(others) + len(data) > self.max_bytes:
            what = f"at most {self.max_states} states and {self.max_bytes} bytes"
            raise ApiError(
                400, f"the shelf holds {what}; delete a state (DELETE /v1/states/NAME)", "save_state", "shelf_full"
            )
        write_atomically(path, data)

    def check(self, name: str) -> None:
        """Refuses a name that `save` would refuse, before any work is done."""
        path = self._path(name, "save_state")
        if not path.exists() and len(self._files()) >= self.max_states:
            raise ApiError(
                400, f"the shelf holds at most {self.max_states} states; delete one", "save_state", "shelf_full"
            )

    def load(self, name: str, config: ModelConfig, model: str) -> Point:
        """The point of that name.

        Raises:
            ApiError: there is none, or it belongs to another model.
        """
        from safetensors import SafetensorError, safe_open

        path = self._path(name, "state")
        try:
            with safe_open(path, "numpy") as file:
                owner = (file.metadata() or {}).get("model")
                logits_1V, h_LBH, c_LBH = (file.get_tensor(key) for key in ("logits", "h", "c"))
        except (FileNotFoundError, SafetensorError) as error:
            raise ApiError(404, f"there is no state {name!r}", "state", "state_not_found") from error
        shape = config.num_layers, 1, config.hidden_size
        if owner != model or h_LBH.shape != shape or c_LBH.shape != shape or logits_1V.shape != (1, config.vocab_size):
            raise ApiError(400, f"the state {name!r} was saved by another model", "state", "state_of_another_model")
        return logits_1V, State(h_LBH, c_LBH)

    def mix(self, weights: Mapping[str, float], config: ModelConfig, model: str) -> Point:
        """The weighted sum of some points, the weights divided by their sum."""
        total = sum(weights.values())
        if abs(total) < 1e-6:
            raise ApiError(400, "the weights of the mixed states must not sum to 0", "state")
        points = [(self.load(name, config, model), np.float32(w / total)) for name, w in weights.items()]
        logits_1V, h, c = (
            sum((w * part for part, w in parts), np.float32(0))
            for parts in (
                [(p[0], w) for p, w in points],
                [(p[1].h_LBH, w) for p, w in points],
                [(p[1].c_LBH, w) for p, w in points],
            )
        )
        return np.asarray(logits_1V), State(h, c)

    def delete(self, name: str) -> None:
        """Forgets a state.

        Raises:
            ApiError: there is none of that name.
        """
        try:
            self._path(name, "state").unlink()
        except FileNotFoundError as error:
            raise ApiError(404, f"there is no state {name!r}", "state", "state_not_found") from error

    def list(self) -> list[dict[str, Any]]:
        """Names, sizes and times of what is kept."""
        found = [(path.name.removesuffix(".safetensors"), path.stat()) for path in self._files()]
        return [
            {"id": name, "object": "state", "created": int(stat.st_mtime), "bytes": stat.st_size}
            for name, stat in sorted(found)
        ]

    def _files(self) -> Sequence[Path]:
        return [path for path in self._folder.glob("*.safetensors") if not path.name.startswith(".")]

    def _path(self, name: str, param: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ApiError(400, "a state's name has 1 to 64 of A-Z a-z 0-9 . _ - and no dot first", param)
        return self._folder / f"{name}.safetensors"
