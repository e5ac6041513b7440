"""The default engine: the network as an ONNX graph, run by ONNX Runtime; torch is never imported.

The graph is built from the weights here, without an exporter. Time comes first inside, as ONNX's LSTM wants it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from textlstm.config import ModelConfig
from textlstm.engine import Engine
from textlstm.model_file import ModelFile
from textlstm.state import State

OPSET = 17


class OnnxEngine(Engine):
    """Runs a model by ONNX Runtime on the CPU.

    Args:
        file: the model.
        threads: cores that one step may use; None means one, which is the fastest for a single row of a small model.
    """

    name = "onnx"

    def __init__(self, file: ModelFile, threads: int | None = None) -> None:
        super().__init__(file.config)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if threads is None else threads
        options.log_severity_level = 3
        graph = build_graph(file.config, file.weights)
        self._session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(
        self, ids_BT: NDArray[np.int64], state: State, positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], State]:
        feeds = {"ids": ids_BT, "h": state.h_LBH, "c": state.c_LBH, "positions": positions_P}
        logits_BPV, h_LBH, c_LBH = self._session.run(None, feeds)
        return logits_BPV, State(h_LBH, c_LBH)


def build_graph(config: ModelConfig, weights: dict[str, NDArray[np.float32]]) -> Any:
    """The network as an ONNX model.

    Args:
        config: the network's shape.
        weights: its tensors.

    Returns:
        A ModelProto with inputs ids (B, T), h and c (L, B, H) and positions (P), and outputs logits (B, P, V), h, c.
    """
    nodes: list[Any] = []
    tensors: dict[str, NDArray[Any]] = {}

    def constant(name: str, array: NDArray[Any]) -> str:
        tensors[name] = np.ascontiguousarray(array)
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    L, H, V = config.num_layers, config.hidden_size, config.vocab_size
    embedding = constant("embedding.weight", weights["embedding.weight"])
    ids_TB = node("Transpose", ["ids"], "ids_TB", perm=[1, 0])
    x = node("Gather", [embedding, ids_TB], "embedded", axis=0)
    if config.input_projection:
        x = node("MatMul", [x, constant("input.weight", weights["input.weight"].T)], "input_product")
        x = node("Add", [x, constant("input.bias", weights["input.bias"])], "input_output")
    h_L, c_L = [], []
    for layer in range(L):
        number = constant(f"layer{layer}", np.array([layer]))
        states = [node("Gather", [s, number], f"{s}_before{layer}", axis=0) for s in "hc"]
        parts = [
            constant(f"lstm.{layer}.{name}", _onnx_gates(weights[f"lstm.{layer}.{name}"])[None])
            for name in ("weight_ih", "weight_hh")
        ]
        bias = _onnx_gates(weights[f"lstm.{layer}.bias"])
        bias_name = constant(f"lstm.{layer}.bias", np.concatenate([bias, np.zeros_like(bias)])[None])
        outputs = [f"outputs{layer}", f"h_after{layer}", f"c_after{layer}"]
        nodes.append(helper.make_node("LSTM", [x, *parts, bias_name, "", *states], outputs, hidden_size=H))
        x = node("Squeeze", [outputs[0], constant("direction", np.array([1]))], f"outputs_TBH{layer}")
        h_L.append(outputs[1])
        c_L.append(outputs[2])
    node("Concat", h_L, "h_after", axis=0)
    node("Concat", c_L, "c_after", axis=0)
    x = node("Gather", [x, "positions"], "features_PBH", axis=0)
    x = node("Transpose", [x], "features_BPH", perm=[1, 0, 2])
    shape = node("Shape", [x], "features_shape", end=2)
    x = node("Reshape", [x, constant("flat", np.array([-1, H]))], "features_NH")
    if config.has_output_projection:
        x = node("MatMul", [x, constant("projection.weight", weights["projection.weight"].T)], "projected")
    head = embedding if config.tie_embeddings else constant("head.weight", weights["head.weight"])
    bias_name = constant("head.bias", weights["head.bias"] * np.float32(config.logit_scale))
    x = node("Gemm", [x, head, bias_name], "logits_NV", transB=1, alpha=config.logit_scale)
    width = constant("width", np.array([V]))
    shape = node("Concat", [shape, width], "logits_shape", axis=0)
    node("Reshape", [x, shape], "logits")

    info, FLOAT, INT64 = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "textlstm",
        [
            info("ids", INT64, ["B", "T"]),
            info("h", FLOAT, [L, "B", H]),
            info("c", FLOAT, [L, "B", H]),
            info("positions", INT64, ["P"]),
        ],
        [
            info("logits", FLOAT, ["B", "P", V]),
            info("h_after", FLOAT, [L, "B", H]),
            info("c_after", FLOAT, [L, "B", H]),
        ],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _onnx_gates(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of gates i, f, g, o put into ONNX's order i, o, f, g."""
    i, f, g, o = np.split(array, 4)
    return np.concatenate([i, o, f, g])
