"""A folder that Hugging Face's transformers loads with `trust_remote_code=True`; writing it does not need the library.

| file | what |
|---|---|
| `model.safetensors` | fp32 weights; still a model file of textlstm, which is why the folder can be given as a MODEL |
| `config.json`, `generation_config.json` | the shape; the boundary as `bos_token_id`, never drawn |
| `modeling_textlstm.py` | the network for that library |
| `tokenizer.json`, `tokenizer_config.json` | the tokenizer |
| `README.md` | how to load it |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from textlstm.config import ModelConfig
from textlstm.files import write_folder_atomically
from textlstm.model_file import ModelFile, model_bytes
from textlstm.registry import MODEL_FILE
from textlstm.tokenizer import to_hugging_face

_CODE = "modeling_textlstm"
_BOUNDARY = "<|boundary|>"
_SHAPE = (
    "vocab_size", "embed_size", "hidden_size", "num_layers", "tie_embeddings", "input_projection", "logit_scale"
)  # fmt: skip

_README = """# {name}

An LSTM language model made with textlstm: {params:,} weights, a state of fixed size, no longest text.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
ids = tokenizer("Once upon a time", return_tensors="pt")
written = model.generate(**ids, max_new_tokens=200, do_sample=True, temperature=0.8)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```

`modeling_textlstm.py` is the code that `trust_remote_code` runs. textlstm takes this folder wherever it takes a model.
"""


def write_folder(file: ModelFile, out: Path) -> None:
    """Writes the folder.

    Args:
        file: the model.
        out: the folder; nothing or an empty one.
    """
    config, card = file.config, dict(file.card)
    weights, _ = model_bytes(config, file.tokenizer, file.weights, card, "fp32", container="pt")
    values = {
        "config.json": _config(config),
        "generation_config.json": _generation_config(file),
        "tokenizer_config.json": _tokenizer_config(config),
    }
    files = {name: json.dumps(value, indent=2).encode() for name, value in values.items()}
    files[MODEL_FILE] = weights
    files["tokenizer.json"] = _tokenizer(file).encode()
    files[f"{_CODE}.py"] = (Path(__file__).parent / f"{_CODE}.py").read_bytes()
    files["README.md"] = _README.format(name=out.name, params=config.num_params).encode()
    write_folder_atomically(out, files)


def _config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "textlstm",
        "architectures": ["TextLSTMForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{_CODE}.TextLSTMConfig",
            "AutoModelForCausalLM": f"{_CODE}.TextLSTMForCausalLM",
        },
        **{name: getattr(config, name) for name in _SHAPE},
        "bos_token_id": config.boundary_id,
        "pad_token_id": config.boundary_id,
        "eos_token_id": None,
        "torch_dtype": "float32",
    }


def _generation_config(file: ModelFile) -> dict[str, Any]:
    never_drawn = list(range(file.tokenizer.vocab_size, file.config.vocab_size))
    boundary = file.config.boundary_id
    return {"bos_token_id": boundary, "pad_token_id": boundary, "suppress_tokens": never_drawn or None}


def _tokenizer(file: ModelFile) -> str:
    """The tokenizer's JSON, with the ids that text is not written with as special tokens."""
    from tokenizers import AddedToken

    tokenizer = to_hugging_face(file.tokenizer)
    for id in range(file.tokenizer.vocab_size, file.config.vocab_size):
        name = _BOUNDARY if id == file.config.boundary_id else f"<|unused-{id}|>"
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    text: str = tokenizer.to_str(pretty=True)
    return text


def _tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # their names in a text are text
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if config.boundary:
        values |= {"bos_token": _BOUNDARY, "pad_token": _BOUNDARY}
    return values
