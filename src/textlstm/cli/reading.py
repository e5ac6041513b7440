"""The commands that read a text and tell about it: score, inspect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from textlstm.config import ENGINES, CorpusConfig
from textlstm.errors import TextLSTMError

if TYPE_CHECKING:
    from textlstm.corpus.document import Document
from textlstm.cli.compressing import check_out
from textlstm.cli.copying import copied_line, suffix_index
from textlstm.cli.options import (
    common_options,
    given,
    learner_of,
    learning_options,
    notice_of,
    options_of,
    print_json,
    statistics_of,
)

_OF_TRAINING = [
    "val_fraction", "val_chars", "val", "max_val_chars", "dev_fraction", "max_dev_chars",
    "sample_chars", "sample_seed",
]  # fmt: skip


@click.command(short_help="Score texts: nats, bits, perplexity.")
@click.argument("model")
@click.argument("files", nargs=-1, required=True)
@click.option("--protocol", default="stream", show_default=True, help="stream, or cold-N for windows of N tokens.")
@click.option("--lanes", type=click.IntRange(min=1), default=1, help="Read in this many lanes, each from its start.")
@click.option("--copy-source", help="Text, file or corpus in which copied runs are looked for, and reported.")
@click.option(
    "--report", "detailed", is_flag=True, help="Also lines, words, calibration, position, other compressors."
)
@click.option("--lines", is_flag=True, help="Report, with a row for each line of the text.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write a row for each line of the text.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one HTML file.")
@click.option("--context", help="Text that is read first and not scored: the end of the training text, say.")
@click.option("--engine", type=click.Choice(ENGINES), default="onnx", show_default=True, help="What computes.")
@learning_options("the text that is scored")
@options_of(CorpusConfig, skip=_OF_TRAINING)
@common_options
def score(
    model: str, files: tuple[str, ...], protocol: str, lanes: int, context: str | None, copy_source: str | None,
    detailed: bool, lines: bool, csv: Path | None, html: Path | None, engine: str, as_json: bool, quiet: bool,
    **reading: Any,
) -> None:  # fmt: skip
    """Score FILES with MODEL: nats and bits per character, bits per byte, perplexity.

    Files are read as `train` reads them: .txt .md .jsonl .csv (plain, .gz or .zst), .parquet, folders, patterns, '-'
    and named corpora; the files of a folder or pattern are told one by one. Weights are fixed and every token counts,
    the first included. Each document is read from the model's start, or after the context.

    With --learn the weights take a step after each segment that was predicted, through all documents of a file; the
    next file, and the model, begin with the trained weights again.

    \b
    textlstm score shakespeare my-sonnet.txt
    textlstm score runs/my-novel-1 other.txt --protocol cold-256 --json
    textlstm score shakespeare my-sonnet.txt --report --html report.html --csv lines.csv
    textlstm score runs/my-novel-1 chapter.txt --learn
    """
    from textlstm import metrics
    from textlstm.corpus import read_sources, source_title
    from textlstm.model import Model
    from textlstm.report import ScoreView, output
    from textlstm.scoring.show import show, write_files

    _check_outs(csv=csv, html=html)
    protocol = _lanes_protocol(protocol, lanes, context)
    if reading["learn"] and protocol != "stream":
        raise click.BadParameter("goes along one text: leave out --protocol and --lanes", param_hint="--learn")
    config = CorpusConfig.from_dict(given(CorpusConfig, reading))

    def read(source: str) -> Sequence[Document]:
        return read_sources([source], config, notice_of(quiet)).documents

    source = reading["learn_from"]
    loaded, learn = learner_of(Model.load(model, engine), reading, quiet)
    before = "" if context is None else "".join(document.text for document in read(context))
    texts = [row for name in files for row in _by_file(name, read(name))]
    for name, parts in texts:
        if losses := loaded.tokenizer.losses("".join(parts)):
            notice_of(quiet)(f"{name} is not scored as it stands: {losses}")
    index = None if copy_source is None else suffix_index(copy_source, quiet)
    wanted = detailed or lines or csv is not None or html is not None
    with ScoreView(quiet) as view:
        scores = [(name, loaded.score(text, protocol, before, view.progress(name), learn)) for name, text in texts]
        report = loaded.score_report(texts, before, view.progress("report"), learn) if wanted else None
    total = metrics.total([one for _, one in scores])
    novelty = [] if index is None else [(name, index.novelty("\n".join(text))) for name, text in texts]
    if report is not None:
        write_files(report, csv, html, f"{Path(model).name} reads {', '.join(map(source_title, files))}")
    if as_json:
        answer = {**total.to_dict(), "model": model, **({} if report is None else report.to_dict())}
        if learn is not None:
            origin = loaded.memories_origin if learn.learn_memories else None
            told = {"statistics": statistics_of(loaded, source), "memories_origin": origin}
            answer["learn"] = {**learn.to_dict(), **told}
        if index is not None:
            answer["novelty"] = [{"file": name, **one.to_dict()} for name, one in novelty]
        if len(scores) > 1:
            answer["files"] = [{"file": name, **one.to_dict()} for name, one in scores]
        print_json(answer)
        return
    view.table(scores, total)
    if report is not None:
        click.echo()
        show(report, output(), lines=lines)
    for name, one in novelty:
        click.echo(f"{name}: {copied_line(one)}")
    _tell_written(quiet, csv, html)


def _by_file(source: str, documents: Iterable[Document]) -> list[tuple[str, list[str]]]:
    """A source and its texts; of a folder or pattern each file."""
    from textlstm.corpus import find, source_title

    if Path(source).is_file() or source == "-" or find(source) is not None:
        return [(source_title(source), [document.text for document in documents])]
    found: dict[str, list[str]] = {}
    for document in documents:
        place, _, number = document.name.rpartition(":")  # a record has its line behind the name of its file
        found.setdefault(place if number.isdecimal() else document.name, []).append(document.text)
    return list(found.items())


def _lanes_protocol(protocol: str, lanes: int, context: str | None) -> str:
    if lanes == 1:
        return protocol
    if protocol != "stream":
        raise click.BadParameter("works with the protocol stream only", param_hint="--lanes")
    if context is not None:
        raise click.BadParameter("reads each lane from its own start: leave out --context", param_hint="--lanes")
    return f"stream-{lanes}"


def _check_outs(**outs: Path | None) -> None:
    named: dict[Path, str] = {}
    for name, out in outs.items():
        if out is not None:
            check_out("-", str(out), False, f"--{name}")
            if (other := named.setdefault(out.resolve(), name)) != name:
                raise click.BadParameter(f"{out} is the same file as --{other}", param_hint=f"--{name}")


def _tell_written(quiet: bool, *outs: Path | None) -> None:
    for out in outs:
        if out is not None:
            notice_of(quiet)(f"{out}: {out.stat().st_size:,} bytes")


@click.command(short_help="Look inside: cells, gates, memory, surprise.")
@click.argument("model")
@click.argument("files", nargs=-1)
@click.option("--held-out", help="Text that judges the cells.  [default: the last third of what is read]")
@click.option("--chars", type=click.IntRange(min=200), default=90_000, show_default=True, help="Read at most so much.")
@click.option("--colour", default="surprise", show_default=True, help="Colour text by surprise, or a cell: c1.204.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one interactive HTML file.")
@click.option("--png", type=click.Path(path_type=Path), help="Draw a picture.")
@common_options
def inspect(
    model: str, files: tuple[str, ...], held_out: str | None, chars: int, colour: str, html: Path | None,
    png: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Look inside MODEL while it reads FILES: which cells mean something, how long they remember, what surprises it.

    Without files it is the end of the text that the model was trained on, and the beginning of what was held out then;
    where that text is not at hand, the model reads what it writes itself. Cells and thresholds are chosen on the first
    part of the text, and judged on the held-out one.

    \b
    textlstm inspect shakespeare
    textlstm inspect shakespeare my-play.txt --html inside.html
    textlstm inspect runs/my-novel-1 my-novel.txt --held-out other.txt --colour c1.204
    """
    from textlstm.corpus import read_sources
    from textlstm.inspection.show import blank_figure, place_of, show, write_html, write_png
    from textlstm.model import Model
    from textlstm.report import ScoreView, output

    def read(sources: Sequence[str]) -> str:
        documents = read_sources(sources, CorpusConfig(), notice_of(quiet)).documents
        return "\n".join(document.text for document in documents)

    _check_outs(html=html, png=png)
    loaded = Model.load(model)
    place_of(colour, loaded.config.num_layers, loaded.config.hidden_size)  # what cannot be met is said at once
    if png is not None:
        blank_figure()
    with ScoreView(quiet) as view:
        told = view.progress("looking inside")
        what = ", ".join(files)
        text, judge = read(files)[:chars] if files else "", None
        if not files:
            what, text, judge = _own_texts(loaded, model, chars, notice_of(quiet))
        if held_out is not None:
            what, judge = f"{what}, judged by {held_out}", read([held_out])[:chars]
        found = loaded.inspect(text, judge, told)
    title = f"Inside {Path(model).name}, which reads {what}"
    if html is not None:
        write_html(found, html, title)
    if png is not None:
        write_png(found, png, title)
    if as_json:
        print_json({"model": model, "reads": what, **found.to_dict()})
    else:
        click.echo(title)
        show(found, colour, output())
        _tell_written(quiet, html, png)


def _own_texts(loaded: Any, name: str, chars: int, notice: Callable[[str], None]) -> tuple[str, str, str | None]:
    """The end of a model's training text and the beginning of its held-out one, or what it writes itself.

    Returns:
        What it is, in words; the text, and the one that judges it.
    """
    from textlstm.bench.quality import training_corpus
    from textlstm.corpus import Part
    from textlstm.inspection.xray import OWN_CHARS
    from textlstm.registry import find_model

    corpus = None
    try:
        corpus = training_corpus(find_model(name), loaded.card, notice)
    except TextLSTMError as error:
        notice(f"the text that the model was trained on is not at hand: {error}")
    if corpus is None or not corpus.val.num_chars or not isinstance(corpus.train, Part):
        number = min(chars, OWN_CHARS)
        notice(f"the model reads {number:,} characters that it writes itself; better name a text: inspect {name} FILE")
        return "what it writes itself", loaded.generate("", max_chars=number, seed=0), None
    held_out = corpus.val.documents
    if corpus.val.continues and len(held_out) > 1:  # in the middle of a document nobody knows which quotes are open
        held_out = held_out[1:]
    judge = "".join(document.text for document in held_out)[: chars // 3]
    text = _end_of((*corpus.train.documents, *corpus.dev.documents), chars * 2 // 3)
    return "what it was trained on, and what was held out", text, judge


def _end_of(documents: Sequence[Document], chars: int) -> str:
    """The end of some documents: the last whole ones that it has room for, else of the last one."""
    left, found = chars, ""
    for document in reversed(documents):
        left -= len(document.text)
        if left < 0:
            break
        found = document.text + found
    return found or "".join(document.text for document in documents)[-chars:]
