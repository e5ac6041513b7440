"""A Llama of 4.6 M parameters with random weights in Q8_0, and llama.cpp writing with it.

It needs the packages `llama-cpp-python` and `gguf`, which nothing else does; the first is compiled where it is
installed, for that machine.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: 1,024 ids, 6 layers of 256 with 8 heads, 608 inside: 4.6 M parameters, the output tied to the embedding.
VOCAB, WIDTH, LAYERS, HEADS, INNER, CONTEXT = 1024, 256, 6, 8, 608, 512


def write_gguf(path: Path) -> int:
    """Writes the model; returns how many parameters it has."""
    import gguf

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    _add_tokenizer(writer, gguf.TokenType)
    number = 0

    def add(name: str, *shape: int) -> None:
        nonlocal number
        number += int(np.prod(shape))
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            return
        kind = gguf.GGMLQuantizationType.Q8_0
        weights = (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)

    add("token_embd", VOCAB, WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down", WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}", WIDTH)
    add("output_norm", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return number


def _add_tokenizer(writer: object, kinds: object) -> None:
    """The least that the format asks for: three signs, the bytes, and words that stand for nothing."""
    signs, single = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"word{number}" for number in range(VOCAB - len(signs) - len(single))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*signs, *single, *words])
    writer.add_token_scores([0.0] * VOCAB)
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(words)]
    writer.add_token_types(types)


def writers(tokens: int, threads: tuple[int, ...]) -> dict[int, Callable[[], None]] | None:
    """For each number of threads what writes so many tokens; None, and a word about it, without the packages."""
    try:
        import gguf  # noqa: F401
        import llama_cpp
    except ImportError as error:
        print(f"SKIPPED: llama.cpp, since {error.name} is not installed: pip install gguf llama-cpp-python")
        return None
    assert tokens <= CONTEXT
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "random.gguf")
        number = write_gguf(path)
        settings = llama_cpp.llama_model_default_params()
        settings.use_mmap = False
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    assert model is not None
    print(f"llama.cpp {llama_cpp.__version__}: {number:,} parameters in Q8_0")

    def with_threads(count: int) -> Callable[[], None]:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_threads, options.n_threads_batch = CONTEXT, CONTEXT, count, count
        context = llama_cpp.llama_init_from_model(model, options)
        sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_temp(0.8))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_dist(1))
        token = (llama_cpp.llama_token * 1)()

        def run() -> None:
            assert quiet  # is kept as long as it may be called
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            token[0] = 1
            for _ in range(tokens):
                assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)) == 0
                token[0] = llama_cpp.llama_sampler_sample(sampler, context, -1)

        return run

    return {count: with_threads(count) for count in threads}
