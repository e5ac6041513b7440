"""The race's baselines and rules: evaluation against a slow obvious one, masks, schedules, the clock, going on."""

import itertools
import json
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "peers"))
import baseline
import contestants
import gpt
import lstm
import race
import report
import texts

VOCAB = 11


def small_gpt(**changes):
    torch.manual_seed(0)
    shape = gpt.Shape(**{"layers": 2, "heads": 2, "width": 16, "context": 8, "dropout": 0.0, **changes})
    network = gpt.GPT(shape, VOCAB)
    for weight in network.parameters():  # far from the beginning, where all characters are nearly alike
        torch.nn.init.normal_(weight, std=0.4)
    return network


def ids(number, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, number))


# The GPT


def by_hand(network, ids_T):
    """Logits of a GPT from its equations, in double precision, one position and one head at a time."""
    p = {name: weight.detach().double().numpy() for name, weight in network.named_parameters()}

    def normal(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}.weight"]

    def gelu(x):
        return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x])

    x_TE = p["characters.weight"][ids_T] + p["positions.weight"][: len(ids_T)]
    size = network.shape.width // network.shape.heads
    for layer in range(network.shape.layers):
        name = f"blocks.{layer}"
        parts = [p[f"{name}.attention_in.weight"] @ normal(x, f"{name}.before_attention") for x in x_TE]
        queries, keys, values = np.split(np.array(parts), 3, axis=1)
        after = []
        for t, x in enumerate(x_TE):
            heads = []
            for begin in range(0, network.shape.width, size):
                h = slice(begin, begin + size)
                weights = np.exp([queries[t, h] @ keys[s, h] / math.sqrt(size) for s in range(t + 1)])
                heads.append(weights / weights.sum() @ values[: t + 1, h])
            x = x + p[f"{name}.attention_out.weight"] @ np.concatenate(heads)
            hidden = gelu(p[f"{name}.mlp_in.weight"] @ normal(x, f"{name}.before_mlp"))
            after.append(x + p[f"{name}.mlp_out.weight"] @ hidden)
        x_TE = np.array(after)
    return np.array([p["characters.weight"] @ normal(x, "before_output") for x in x_TE])


def test_a_gpt_computes_its_equations():
    network, ids_T = small_gpt(), ids(7)
    assert network(ids_T[None])[0].detach().numpy() == pytest.approx(by_hand(network, ids_T.numpy()), abs=1e-4)


@pytest.mark.parametrize("changed", [0, 3, 7])
def test_a_later_character_changes_no_earlier_logit(changed):
    network, ids_T = small_gpt(), ids(8)
    other_T = ids_T.clone()
    other_T[changed] = (ids_T[changed] + 1) % VOCAB
    one_TV, other_TV = network(torch.stack([ids_T, other_T]))
    assert torch.equal(one_TV[:changed], other_TV[:changed])
    assert all((one_TV[t] - other_TV[t]).abs().max() > 1e-3 for t in range(changed, 8))


@pytest.mark.parametrize(("number", "rows"), list(itertools.product([1, 3, 4, 5, 8, 41], [1, 3, 64])))
def test_overlapping_windows_against_one_character_at_a_time(number, rows):
    network, start = small_gpt(dropout=0.5), 13
    ids_N = ids(start + number)
    found = gpt.held_out_nats(network, ids_N, start, rows)
    assert network.training
    network.eval()
    half = network.shape.context // 2
    for at, nats in enumerate(found):
        seen = half + 1 + at % half  # at least half a context, and a whole one at most
        logits_V = network(ids_N[start + at - seen : start + at][None])[0, -1].detach()
        assert nats == pytest.approx(float(-logits_V.log_softmax(0)[ids_N[start + at]]), abs=1e-4)
    assert len(found) == number


def test_sizes_are_the_published_ones():
    for shape, params in ((gpt.SMALL, 0.80e6), (gpt.LARGE, 10.65e6)):  # as nanoGPT counts them, without positions
        network = gpt.GPT(shape, 65)
        counted = sum(p.numel() for p in network.parameters()) - network.positions.weight.numel()
        assert counted == pytest.approx(params, abs=0.005e6)


def test_crops_are_pieces_of_the_text_and_what_follows():
    recipe = replace(gpt.SMALL_RECIPE, batch=5, length=6)
    ids_N = torch.arange(20)
    for x_BT, y_BT in itertools.islice(gpt.crops(ids_N, recipe, seed=1), 50):
        assert x_BT.shape == (5, 6) and torch.equal(y_BT, x_BT + 1)
        assert torch.equal(x_BT, x_BT[:, :1] + torch.arange(6)) and int(y_BT.max()) < 20


# The plain LSTM


def test_lanes_read_the_text_in_order():
    recipe = replace(lstm.RECIPE, batch=3, length=4)
    pieces = list(itertools.islice(lstm.lanes(torch.arange(40), recipe), 6))
    assert all(torch.equal(y_TB, x_TB + 1) for x_TB, y_TB in pieces)
    assert torch.equal(torch.cat([x for x, _ in pieces[:3]]).T, torch.tensor([0, 13, 26])[:, None] + torch.arange(12))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(pieces[:3], pieces[3:], strict=True))


def test_a_text_shorter_than_its_lanes_is_read():
    recipe = replace(lstm.RECIPE, batch=3, length=64)
    x_TB, _ = next(lstm.lanes(torch.arange(10), recipe))
    assert x_TB.shape == (3, 3)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_an_lstm_reads_the_held_out_text_in_one_lane(monkeypatch, chunk):
    torch.manual_seed(0)
    network, ids_N, start = lstm.PlainLSTM(VOCAB, width=8), ids(60), 40
    monkeypatch.setattr(lstm, "_CHUNK", chunk)
    monkeypatch.setattr(lstm, "READ_BEFORE", 25)
    found = lstm.held_out_nats(network, ids_N, start)
    assert network.training
    network.eval()
    slow = []
    for end in range(start, 60):  # each character anew from where reading began
        logits_V = network(ids_N[15:end, None], None)[0][-1, 0].detach()
        slow.append(float(-logits_V.log_softmax(0)[ids_N[end]]))
    assert found == pytest.approx(slow, abs=1e-5)


# Schedule, clock, loop


def test_the_schedule_is_the_published_one():
    def published(step, steps, peak=1e-3, least=1e-4, warmup=100):
        if step < warmup:
            return peak * step / warmup
        return least + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * (peak - least)

    for recipe, steps in ((gpt.SMALL_RECIPE, 2000), (gpt.LARGE_RECIPE, 5000)):
        for step in (0, 1, 50, 99, 100, 101, 777, 1999):
            assert baseline.learning_rate(recipe, step / steps) == pytest.approx(published(step, steps))
        assert baseline.learning_rate(recipe, 1.0) == baseline.learning_rate(recipe, 1.3) == pytest.approx(1e-4)


class Time:
    """A clock that is set by hand, and goes on a little each time it is read."""

    def __init__(self, each=0.0):
        self.now, self.each = 100.0, each

    def __call__(self):
        self.now += self.each
        return self.now


def test_a_stopped_clock_stands_still():
    time = Time()
    clock = baseline.Clock(3.0, time)
    time.now += 2
    with clock.stop():
        time.now += 50
    assert (clock.seconds, clock.stopped) == (5.0, 50.0)


def test_each_mark_is_looked_at_once():
    time = Time()
    curve = baseline.Curve(baseline.Clock(0.0, time), 32.0)

    def score():
        time.now += 1000.0  # counts for nobody
        return 2.5

    for step in range(1, 40):
        time.now += 0.9
        curve.look(step, score)
        assert curve.done == (0.9 * step >= 32)
        if curve.done:
            break
    expected = [next(step for step in range(1, 40) if 0.9 * step >= 32 * mark) for mark in baseline.MARKS]
    assert [step for _, step, _ in curve.points] == expected
    assert [seconds for seconds, _, _ in curve.points] == pytest.approx([0.9 * step for step in expected])


def test_ours_is_scored_for_the_curve_when_its_run_is_over(tmp_path, monkeypatch):
    """Its own clock would count the scores, and it would take fewer steps."""
    monkeypatch.setenv("TEXTLSTM_CACHE", str(tmp_path))
    monkeypatch.setattr("textlstm.autopilot.steps_within", lambda *times: 200)
    monkeypatch.setattr("textlstm.autopilot.Timetable.recount", lambda self, looks, steps, warmup: 150)
    train, load, over = contestants.run.train, contestants.Model.load, []
    monkeypatch.setattr(contestants.run, "train", lambda *asked: over.append(train(*asked)) or over[0])
    monkeypatch.setattr(contestants.Model, "load", lambda *asked, **how: over and load(*asked, **how))
    text = "".join(
        f"the {number} lamps of the inn were lit, and number {number % 7} went out\n" for number in range(150)
    )
    result = contestants.by_textlstm(None, text, 0.005, 0)
    points = result["curve"]
    assert len(points) > 1 and result["seconds_of_scoring"] > 0 and result["steps"] == 150
    assert [step for _, step, _ in points] == sorted({step for _, step, _ in points}) and points[-1][1] == 150
    assert points[-1][2] == over[0].val["nats_per_char"] == result["nats_per_char"]
    assert points[-1][0] == result["seconds"] >= points[-2][0]


@pytest.mark.parametrize("kind", ["gpt", "lstm"])
def test_a_baseline_learns_a_pattern(kind):
    torch.manual_seed(0)
    ids_N, border = torch.arange(600) % 5, 500
    if kind == "gpt":
        recipe = replace(gpt.SMALL_RECIPE, lr=1e-2, length=8)
        network, judge = gpt.GPT(gpt.Shape(1, 2, 16, 8, 0.0), 5), gpt.held_out_nats
        batches = gpt.crops(ids_N[:border], recipe, 0)
    else:
        recipe = replace(lstm.RECIPE, lr=2e-2, length=8, batch=8)
        network, judge, batches = lstm.PlainLSTM(5, width=16), lstm.held_out_nats, lstm.lanes(ids_N[:border], recipe)
    curve = baseline.Curve(baseline.Clock(0.0, Time(each=1.0)), 200.0)
    baseline.train(network, batches, recipe, curve, lambda: float(judge(network, ids_N, border).mean()))
    assert curve.done and curve.points[0][2] > 0.5 > 0.1 > curve.points[-1][2]


# Texts


def test_the_split_is_tail10():
    before, held_out = texts.split("a" * 1_115_393 + "b")
    assert len(before) == 1_003_854 and len(held_out) == 111_540 and held_out.endswith("b")


def test_a_wheel_is_read_in_the_order_of_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as opened:
        for name, data in {"p/b.txt": b"2", "p/a.txt": b"1", "p/c.md": b"3"}.items():
            opened.writestr(name, data)
    found = texts._files(tmp_path / "p.whl", "*.txt")
    assert list(found.items()) == [("p/a.txt", b"1"), ("p/b.txt", b"2")]


def test_messages_of_a_gettext_file():
    file = r"""msgid ""
msgstr ""
"Language: ja\n"

#, python-format
msgid "Add %s"
msgstr "%sを\"追加\""

msgid "none"
msgstr ""

msgid "%d word"
msgid_plural "%d words"
msgstr[0] ""
"%d 単"
"語\n"
msgstr[1] "%d words"
"""
    assert texts._messages({"ja.po": file.encode()}) == '%sを"追加"\n%d 単語\n\n%d words'


def test_another_text_than_the_named_one_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as opened:
        opened.writestr("p/a.txt", "something else")
    source = replace(texts.SOURCES["french"], pattern="*.txt", text=lambda files: "something else")
    monkeypatch.setattr(texts, "SOURCES", {"french": source})
    monkeypatch.setattr(texts, "_wheel", lambda source: tmp_path / "p.whl")
    with pytest.raises(SystemExit, match="another text than the one that was named"):
        texts.read("french")


def test_a_long_text_is_its_first_million_characters():
    files = {"a.abc": ("ä" * 600_000).encode(), "b.abc": ("b" * 399_998).encode() + b"cd"}
    assert texts._first_million(files) == "ä" * 600_000 + "\n" + "b" * 399_998 + "c"


# The race and its page


def fake_line(text, contestant, minutes, seed, nats=2.0, **rest):
    scores = {"params": 7, "steps": 8, "seconds": 9.0, "curve": [[1.0, 1, 3.0], [9.0, 8, nats]], "nats_per_char": nats}
    if contestant == "compressors":
        scores = {"nats_per_char_by_method": {"zpaq -m5": 1.2, "xz -9e": 1.7}}
    return {"text": text, "contestant": contestant, "minutes": minutes, "seed": seed, "chars": 50} | scores | rest


def test_a_race_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    results, ran = tmp_path / "race.jsonl", []

    def run(*key):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(key)
        return fake_line(*key)

    monkeypatch.setattr(race, "run", run)
    names = [texts.TINY, "french"]
    with pytest.raises(KeyboardInterrupt):
        race.race(names, [], 3.0, [0, 1], results)
    first, ran[:] = list(ran), ran[3:]
    monkeypatch.setattr(race, "run", lambda *key: ran.append(key) or fake_line(*key))
    race.race(names, [], 3.0, [0, 1], results)
    wanted = [(texts.TINY, name, 3.0, seed) for seed in (0, 1) for name in report.NAMES][:-1]
    wanted += [("french", name, 3.0, seed) for seed in (0, 1) for name in ("textlstm", "gpt-small", "gpt-large")]
    assert first + ran == wanted
    race.race(names, [], 3.0, [0, 1], results)
    assert len(report.read_lines(results)) == len(wanted)
    race.race(["french"], ["textlstm"], 30.0, [0], results)
    assert ran[-1] == ("french", "textlstm", 30.0, 0)


def test_who_wants_a_core_now(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "LOAD", tmp_path / "loadavg")
    assert race.waiting() == 0  # a system that does not tell
    (tmp_path / "loadavg").write_text("1.52 1.10 0.93 3/412 20511\n")
    assert race.waiting() == 2
    (tmp_path / "loadavg").write_text("0.00 0.00 0.00 0/0 0\n")  # of a sandbox that counts nobody
    assert race.waiting() == 0


def test_the_tables_tell_the_middle_seed_and_the_median_of_the_differences():
    lines = [fake_line(texts.TINY, "textlstm", 3.0, seed, nats) for seed, nats in enumerate((1.5, 1.3, 1.4))]
    lines += [fake_line(texts.TINY, "gpt-small", 3.0, 0, 1.2), fake_line(texts.TINY, "compressors", 3.0, 0)]
    rows = list(report.race_table(lines))[4:]
    assert [row.split(" | ")[1] for row in rows] == [
        report.NAMES["gpt-small"], report.NAMES["textlstm"], "zpaq -m5, adaptive", "xz -9e, adaptive"
    ]  # fmt: skip
    assert "| 3 | 1.400 | 2.020 |" in rows[1]
    for number, name in enumerate(texts.UNSEEN):
        lines.append(fake_line(name, "textlstm", 3.0, 0, 1.0))
        lines.append(fake_line(name, "gpt-small", 3.0, 0, 1.1 + number / 10))
        if number:
            lines.append(fake_line(name, "gpt-large", 3.0, 0, 1.25))
    rows = list(report.others_table(lines, [texts.UNSEEN]))[2:]
    assert rows[0].endswith("| 1.000 | 1.100 |  |  |") and len(rows) == 5  # unfinished: neither difference nor median
    lines.append(fake_line(texts.UNSEEN[0], "gpt-large", 3.0, 0, 2.0))
    rows = list(report.others_table(lines, [texts.UNSEEN]))[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["0.100 |", "0.200 |", "0.250 |", "0.250 |", "0.250 |", "0.250 |"]


def test_the_page_is_not_stale(tmp_path):
    text = (report.DOCS / report.PAGE).read_text(encoding="utf-8")
    assert report.page(text, report.read_lines(report.RESULTS)) == text, "run python benchmarks/peers/race.py --draw"
    results = tmp_path / "race.jsonl"
    lines = [fake_line(texts.TINY, name, 3.0, 0) for name in report.NAMES]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.draw(results, tmp_path)
    assert (tmp_path / report.PICTURE).read_bytes().startswith(b"<?xml")
    assert report.page((tmp_path / report.PAGE).read_text(encoding="utf-8"), lines).count("| 2.000 |") == 5


def test_what_is_left_out_is_said(monkeypatch, capsys):
    def absent(data):
        raise FileNotFoundError("zpaq")

    monkeypatch.setattr(contestants, "baselines", lambda data, context: {"xz -9e": 8.0 * len(data)})
    monkeypatch.setattr(contestants, "zpaq_size", absent)
    found = contestants.compressors("ab" * 50)
    assert found == {"nats_per_char_by_method": {"xz -9e": pytest.approx(8 * math.log(2))}}
    told = capsys.readouterr().err
    assert "PPMd is left out" in told and "zpaq is left out" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["textlstm", "gpt-small", "lstm"])
def test_a_contestant_runs(name, monkeypatch):
    monkeypatch.setattr(contestants.run, "process_seconds", lambda: 0.0)  # not this process's age
    text = "".join(f"{number} times {number} is {number * number}.\n" for number in range(1500))
    found = contestants.result(name, text, 0.1, 0)
    seconds, steps, nats = zip(*found["curve"], strict=True)
    assert list(seconds) == sorted(seconds) and list(steps) == sorted(steps)
    assert found["nats_per_char"] == (nats[-1] if name == "textlstm" else min(nats)) < 3.5
    assert name == "textlstm" or seconds[-1] >= 6
