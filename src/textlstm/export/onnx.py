"""A folder of ONNX graphs, for everything that runs ONNX, with all that is needed to write text beside them.

| file | what |
|---|---|
| `step.onnx` | ids (B), h, c (L, B, H) -> logits (B, V), h_after, c_after |
| `sequence.onnx` | ids (B, T), h, c -> logits (B, T, V) after each id, h_after, c_after |
| `tokenizer.json` | the tokenizer, as the package `tokenizers` reads it |
| `model.json` | the configuration, the document boundary, the sizes, the opset, the model card |

B and T are free. A text begins with zero states and, where the model has one, the boundary's id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from textlstm import __version__
from textlstm.config import ModelConfig
from textlstm.engine.onnx import OPSET, build_graph
from textlstm.errors import UsageError
from textlstm.files import write_folder_atomically
from textlstm.model_file import ModelFile
from textlstm.tokenizer import to_hugging_face

_MOST_BYTES = (1 << 31) - (1 << 20)  # a protocol buffer holds 2 GB


def write_graphs(file: ModelFile, out: Path) -> None:
    """Writes the folder.

    Args:
        file: the model; the graphs hold its weights as fp32.
        out: the folder; nothing or an empty one.

    Raises:
        UsageError: the model is larger than an ONNX file can be.
    """
    config = file.config
    if 4 * config.num_params > _MOST_BYTES:
        raise UsageError(f"an ONNX file holds 2 GB, and this model has {config.num_params:,} weights of four bytes")
    about = {
        "config": config.to_dict(), "boundary_id": config.boundary_id, "vocab_size": config.vocab_size,
        "text_ids": file.tokenizer.vocab_size, "opset": OPSET, "textlstm": __version__, "card": file.card,
    }  # fmt: skip
    graphs = {"step.onnx": step_graph(file), "sequence.onnx": sequence_graph(file)}
    for graph in graphs.values():
        helper.set_model_props(graph, {key: json.dumps(about[key]) for key in ("boundary_id", "text_ids", "textlstm")})
        onnx.checker.check_model(graph, full_check=True)
    files = {name: graph.SerializeToString() for name, graph in graphs.items()}
    files["tokenizer.json"] = to_hugging_face(file.tokenizer).to_str(pretty=True).encode()
    files["model.json"] = json.dumps(about, indent=1).encode()
    write_folder_atomically(out, files)


def sequence_graph(file: ModelFile) -> Any:
    """A ModelProto that reads ids (B, T) and gives logits (B, T, V) after each: the engine's graph at all places."""
    graph = _engine_graph(file, "B", "T")
    nodes = [
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
        helper.make_node("Squeeze", ["length"], ["T"]),
        helper.make_node("Range", ["first", "T", "stride"], ["positions"]),
    ]
    return _finished(graph, nodes, {"first": np.array(0), "stride": np.array(1)}, file.config, ["B", "T"])


def step_graph(file: ModelFile) -> Any:
    """A ModelProto that reads ids (B) and gives logits (B, V): the engine's graph for one place."""
    graph = _engine_graph(file, "B")
    for node in graph.graph.node:
        for names, old, new in ((node.input, "ids", "ids_B1"), (node.output, "logits", "logits_B1V")):
            for place, name in enumerate(names):
                names[place] = new if name == old else name
    graph.graph.node.append(helper.make_node("Squeeze", ["logits_B1V", "time"], ["logits"]))
    nodes = [helper.make_node("Unsqueeze", ["ids", "time"], ["ids_B1"])]
    return _finished(graph, nodes, {"time": np.array([1]), "positions": np.array([0])}, file.config, ["B"])


def _engine_graph(file: ModelFile, *axes: str) -> Any:
    """The engine's graph without its input of positions, and with ids of these axes."""
    graph = build_graph(file.config, file.weights)
    others = [value for value in graph.graph.input if value.name not in ("ids", "positions")]
    del graph.graph.input[:]
    graph.graph.input.extend([helper.make_tensor_value_info("ids", TensorProto.INT64, axes), *others])
    return graph


def _finished(
    graph: Any, first: list[Any], constants: dict[str, np.ndarray], config: ModelConfig, axes: list[str]
) -> Any:
    """The graph with nodes before its own, constants, and the axes of its logits."""
    nodes = [*first, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    others = [value for value in graph.graph.output if value.name != "logits"]
    del graph.graph.output[:]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, config.vocab_size])
    graph.graph.output.extend([logits, *others])
    graph.producer_name, graph.producer_version = "textlstm", __version__
    return graph
