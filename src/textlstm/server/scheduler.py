"""Continuous batching: many texts are written at once by one model, and join and leave the batch at every step.

One thread owns the batch. In each round it lets waiting requests in, reads a bounded piece of their prompts, draws one
token for every text that is being written, tells what is new, and steps the engine. Reading is cut into pieces so that
a long prompt does not hold up the texts of others; requests that wait take turns, one prompt of each at a time.

What a text says depends on its prompt, options and seed alone: rows of a batch do not know each other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from textlstm.engine import Engine
from textlstm.errors import BusyError, TextLSTMError, UsageError
from textlstm.generation import Writer
from textlstm.generation.search import Beams, beam_steps
from textlstm.sampling import Row, log_softmax, probabilities, sample
from textlstm.state import State

LOG = logging.getLogger(__name__)
PIECE = 64  # tokens of one prompt that are read in a round
MEASURED_PIECE = 32  # the same where the logits of every token are wanted, which take memory
ROUND = 1024  # tokens of all prompts that are read in a round while texts are being written
LOOK = 0.02  # seconds between two looks at the deadlines
QUIET_ROUND = 4096  # the same while none is
TELL = 0.01  # seconds between two times that news are told: writing to a socket costs as much as several tokens
TELL_ROW, TELL_MOST = 0.0015, 0.05  # seconds for each text, and at most, before those in the middle of theirs hear

Point = tuple[NDArray[np.float32], State]  # logits (1, V) for the next token, and the state of one row to go on from


class Token(NamedTuple):
    """A token with its log-probability under the model, before any sampling option; `top` is likeliest first.

    `rank` is its place among all tokens, the likeliest being 1.
    """

    id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    rank: int | None = None


class Repetition:
    """Notices that a text goes in circles: that its last tokens are one pattern, so many times in a row.

    Args:
        least: tokens of the shortest pattern that counts.
        most: tokens of the longest.
        times: how often it must have come.
    """

    def __init__(self, least: int, most: int, times: int) -> None:
        self._before = np.full(most, -1)  # the last tokens, the newest first
        self._same = np.zeros(most, np.int64)  # for each length, how many tokens in a row were those so far before
        self._enough = np.arange(1, most + 1) * (times - 1)
        self._enough[: least - 1] = np.iinfo(np.int64).max

    def push(self, id: int) -> bool:
        """Takes a token; returns whether it closes such a circle."""
        self._same = (self._same + 1) * (self._before == id)
        self._before = np.concatenate([[id], self._before[:-1]])
        return bool((self._same >= self._enough).any())


class Text:
    """One text to be written. What is new of it gathers here until it is told.

    Args:
        writer: draws, decodes, and knows when to end.
        top: likeliest tokens to report at each place; 0 reports the drawn one only, None nothing.
        bias: ids and what is added to their logits before anything else.
        stop_ids: ids that end the text; the token itself is not shown.
        allowed: the only ids that may be drawn; None allows all.
        min_tokens: so many tokens are written before the text may end by the model's end or a stop id.
        repetition: arguments of the `Repetition` that ends the text; None lets it go in circles.
        end_text: is shown where the model ends the document.
        processed: whether log-probabilities are of what tokens were drawn from, with all options, and not the model's.

    Attributes:
        stopped_by: the stop string or stop id that ended it, or `repetition`, if one did.
        untold: what became certain, piece by piece.
        untold_tokens: those that were drawn, where they are reported.
        fresh: whether a token was drawn that was not told yet.
    """

    def __init__(
        self,
        writer: Writer,
        top: int | None = None,
        bias: dict[int, float] | None = None,
        stop_ids: frozenset[int] = frozenset(),
        allowed: Sequence[int] | None = None,
        min_tokens: int = 0,
        repetition: tuple[int, int, int] | None = None,
        end_text: str = "",
        processed: bool = False,
    ) -> None:
        self.writer, self.top, self.stop_ids, self.min_tokens = writer, top, stop_ids, min_tokens
        self._end_text, self.processed = end_text, processed
        self.bias = None if not bias else (np.array(list(bias)), np.array(list(bias.values()), np.float32))
        self._repetition = None if repetition is None else Repetition(*repetition)
        self.stopped_by: str | int | None = None
        self.untold: list[str] = []
        self.untold_tokens: list[Token] = []
        self.fresh = False
        self._never_V = None if allowed is None else ~np.isin(np.arange(writer.vocab_size), list(allowed))
        if min_tokens > 0:
            early_V = np.zeros(writer.vocab_size, np.bool_) if self._never_V is None else self._never_V.copy()
            early_V[list(stop_ids)] = True
            if writer.boundary_id is not None:
                early_V[writer.boundary_id] = True
            writer.restrict(early_V)
        elif self._never_V is not None:
            writer.restrict(self._never_V)

    def push(self, id: int) -> str | None:
        """Takes a drawn token; returns why the text has ended, if it has."""
        writer = self.writer
        self.fresh = True
        if id in self.stop_ids:
            writer.tokens, self.stopped_by = writer.tokens + 1, id
            self.untold.append(writer.end("stop"))
            return writer.reason
        self.untold.append(writer.push(id))
        if id == writer.boundary_id:
            self.untold.append(self._end_text)
        if writer.reason is not None:
            self.stopped_by = writer.stopped_by
        elif self._repetition is not None and self._repetition.push(id):
            self.untold.append(writer.end("stop"))
            self.stopped_by = "repetition"
        elif writer.tokens == self.min_tokens:
            writer.restrict(self._never_V)
        return writer.reason

    def tell(self) -> tuple[str, list[Token]]:
        """What is new since the last time."""
        news = "".join(self.untold), self.untold_tokens
        self.untold, self.untold_tokens, self.fresh = [], [], False
        return news


@dataclass(eq=False)
class Job:
    """A prompt and the texts that continue it.

    Attributes:
        owner: the request it belongs to; requests take turns.
        ids: the tokens of the prompt, shape (T,).
        texts: what is written after it; none where only the prompt is measured.
        start: where the prompt begins; None is the model's own start.
        top: likeliest tokens to report at each place of the prompt; None reports nothing.
        keep: whether to tell the point that the first text ended at.
        trace: gets the outputs of all layers, shape (L, H), after each token of the prompt; None if nobody looks.
        deadline: by `time.monotonic`; None is never.
        seconds: for writing, from the first token on; None is no limit.
        cancelled: nobody waits for it any more.
        beams: beginnings that are kept at each step where the likeliest texts are looked for; None draws.
        length_penalty: of that search.
    """

    owner: Hashable
    ids: NDArray[np.int64]
    texts: Sequence[Text]
    start: Point | None = None
    top: int | None = None
    keep: bool = False
    trace: list[NDArray[np.float32]] | None = None
    deadline: float | None = None
    seconds: float | None = None
    cancelled: bool = False
    beams: int | None = None
    length_penalty: float = 1.0
    search: Search | None = field(default=None, init=False)  # after the prompt, where texts are looked for
    place: int = field(default=0, init=False)  # tokens of the prompt that were read
    point: Point | None = field(default=None, init=False)  # after them

    @property
    def rows(self) -> int:
        """Rows that it takes in the batch."""
        return max(1, len(self.texts), self.beams or 1)

    @property
    def piece(self) -> int:
        """Tokens of the prompt that are read in a round; where each is looked at, it is read alone."""
        return 1 if self.trace is not None else PIECE if self.top is None else MEASURED_PIECE


@dataclass
class Search:
    """A beam search that waits for its next step.

    Attributes:
        steps: the search.
        ids: the next ones of its beginnings.
        state: that they are read from.
    """

    steps: Beams
    ids: NDArray[np.intp]
    state: State


class News(NamedTuple):
    """What some rounds brought to a job.

    Attributes:
        job: which job.
        number: of its text; -1 is the prompt.
        text: what became certain.
        tokens: drawn, or read in the prompt; only where they were asked for.
        reason: why the text ended (`length`, `stop`, `end`, `deadline`), `read` at the end of a prompt, else None.
        point: where it ended, if the job asked for it.
        error: why the whole job ended early.
    """

    job: Job
    number: int
    text: str = ""
    tokens: Sequence[Token] = ()
    reason: str | None = None
    point: Point | None = None
    error: Exception | None = None


@dataclass
class Counts:
    """What a scheduler has done so far."""

    prompt_tokens: int = 0
    written_tokens: int = 0
    rounds: int = 0
    cancelled: int = 0
    refused: int = 0


class Scheduler:
    """Writes the texts of many jobs with one engine, in a thread of its own.

    Args:
        engine: the model; after this only the scheduler's thread runs it.
        notify: gets what is new after each round, in the scheduler's thread; it must be quick.
        max_rows: texts that are written at once.
        max_queue: requests that may wait.
    """

    def __init__(
        self, engine: Engine, notify: Callable[[list[News]], None], max_rows: int = 256, max_queue: int = 512
    ) -> None:
        self._engine, self._notify = engine, notify
        self.max_rows, self.max_queue = max_rows, max_queue
        self.counts = Counts()
        self._begin = engine.begin(1)
        self._changed = threading.Condition()
        self._queue: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._closing = self._draining = self._stirred = False
        self._next_look = self._next_telling = self._next_round = 0.0
        self._reading: deque[Job] = deque()
        self._rows: list[tuple[Job, int]] = []  # of the batch: a job and the number of its text
        self._logits_BV, self._state = self._begin[0][:0], self._begin[1].select([])
        self._news: list[News] = []
        self._thread = threading.Thread(target=self._run, name="textlstm-scheduler", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Rows in use, those whose prompt is being read included."""
        return len(self._rows) + sum(job.rows for job in tuple(self._reading))  # asked by other threads

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues the jobs of one request.

        Raises:
            UsageError: a job has more texts than the batch has rows.
            BusyError: too many requests wait already, or the scheduler is being closed.
        """
        if any(job.rows > self.max_rows for job in jobs):
            raise UsageError(f"at most {self.max_rows} texts are written at once; ask for fewer")
        with self._changed:
            if self._draining:
                raise BusyError("the server is shutting down; try another one")
            if len(self._queue) >= self.max_queue:
                self.counts.refused += 1
                raise BusyError(f"{self.max_queue} requests are waiting already; try again later")
            for job in jobs:
                self._queue.setdefault(job.owner, deque()).append(job)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Gives up jobs whose reader left; they leave the batch at the next round without a word."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._stirred = True
            self._changed.notify()

    def drain(self, deadline: float) -> None:
        """Takes no new requests; what is not done by the deadline ends with an error."""
        with self._changed:
            self._draining = self._stirred = True
            waiting = [job for jobs in self._queue.values() for job in jobs]
            for job in [*waiting, *self._reading, *(job for job, _ in self._rows)]:
                job.deadline = deadline if job.deadline is None else min(job.deadline, deadline)
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread; jobs that are not done get an error."""
        with self._changed:
            self._closing = self._draining = True
            self._changed.notify()
        self._thread.join()

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._publish(now=not (self._reading or self._rows))
            with self._changed:
                while not (self._queue or self._reading or self._rows or self._closing):
                    self._changed.wait()
                if self._closing:
                    return self._fail_all(BusyError("the server is shutting down; try another one"))
                self._drop()
                self._admit()
            try:
                self._read()
                self._write()
                self._look_for()
            except Exception as error:  # a fault of the engine or of ours must not leave readers waiting
                LOG.exception("a round failed; its requests end with an error")
                self._fail_all(error)
            self.counts.rounds += 1

    def _drop(self) -> None:
        """Takes out what was cancelled, at once, and what is late, to the nearest LOOK seconds."""
        now = time.monotonic()
        if not self._stirred and now < self._next_look:
            return
        self._stirred, self._next_look = False, now + LOOK

        def over(job: Job) -> bool:
            return job.cancelled or (job.deadline is not None and now > job.deadline)

        for owner in [owner for owner, jobs in self._queue.items() if any(map(over, jobs))]:
            gone = [job for job in self._queue[owner] if over(job)]
            self._queue[owner] = deque(job for job in self._queue[owner] if not over(job))
            if not self._queue[owner]:
                del self._queue[owner]
            self._give_up(gone)
        if gone := [job for job in self._reading if over(job)]:
            self._reading = deque(job for job in self._reading if not over(job))
            self._give_up(gone)
        places = [place for place, (job, _) in enumerate(self._rows) if over(job)]
        if places:
            self.counts.cancelled += len({id(job) for job, _ in self._rows if job.cancelled})
            for job, number in (self._rows[place] for place in places):
                if self._draining and not job.cancelled:
                    self._end(job, number, error=BusyError("the server is shutting down"))
                elif not job.cancelled:
                    job.texts[number].untold.append(job.texts[number].writer.end("deadline"))
                    self._end(job, number, "deadline")
            self._keep_rows([place for place in range(len(self._rows)) if place not in set(places)])

    def _give_up(self, jobs: Sequence[Job]) -> None:
        error = BusyError("the request waited too long; try again later")
        self.counts.cancelled += sum(job.cancelled for job in jobs)
        self._news += [News(job, -1, error=error) for job in jobs if not job.cancelled]

    def _admit(self) -> None:
        """Lets jobs in while there are rows; the request that was served goes to the end of the line."""
        free = self.max_rows - self.running
        while self._queue:
            owner, jobs = next(iter(self._queue.items()))
            if jobs[0].rows > free:
                return
            job = jobs.popleft()
            free -= job.rows
            del self._queue[owner]
            if jobs:
                self._queue[owner] = jobs
            job.point = self._begin if job.start is None else job.start
            self._reading.append(job)

    def _read(self) -> None:
        """Reads a piece of as many prompts as are as long as the first one's piece."""
        done = [job for job in self._reading if job.place == len(job.ids) and job.search is None]
        if any(job.place < len(job.ids) for job in self._reading):
            together, length = self._choose()
            self._read_piece(together, length)
            chosen = set(map(id, together))
            self._reading = deque([j for j in self._reading if id(j) not in chosen] + together)
            done += [job for job in together if job.place == len(job.ids)]
        if done:
            self._reading = deque(job for job in self._reading if job.place < len(job.ids) or job.search is not None)
            self._join([job for job in done if job.beams is None])
            for job in done:
                if job.beams is not None:
                    self._begin_search(job)

    def _choose(self) -> tuple[list[Job], int]:
        unread = [job for job in self._reading if job.place < len(job.ids)]  # others are looked for by beams
        first = unread[0]
        length = min(len(first.ids) - first.place, first.piece)
        alike = [j for j in unread if len(j.ids) - j.place >= length and j.piece == first.piece]
        most = (ROUND if self._rows or first.top is not None else QUIET_ROUND) // length
        return alike[: max(1, most)], length

    def _read_piece(self, jobs: list[Job], length: int) -> None:
        ids_BT = np.stack([job.ids[job.place : job.place + length] for job in jobs])
        points = [job.point for job in jobs if job.point is not None]
        state = State.stack([state for _, state in points])
        if jobs[0].top is None:
            logits_BV, state = self._engine.prefill(ids_BT, state)
        else:
            logits_BTV, state = self._engine.run(ids_BT, state, np.arange(length))
            logits_BV = logits_BTV[:, -1]
            for row, (job, (before, _)) in enumerate(zip(jobs, points, strict=True)):
                logits_TV = np.concatenate([before, logits_BTV[row, :-1]])
                self._news.append(News(job, -1, tokens=measure(logits_TV, ids_BT[row], job.top or 0)))
        for row, job in enumerate(jobs):
            job.place += length
            job.point = logits_BV[row : row + 1], state.select([row])
            if job.trace is not None:
                job.trace.append(np.array(state.h_LBH[:, row]))
        self.counts.prompt_tokens += ids_BT.size

    def _join(self, jobs: Sequence[Job]) -> None:
        """Puts the texts of jobs whose prompts are read into the batch."""
        logits, states = [self._logits_BV], [self._state]
        for job in jobs:
            assert job.point is not None
            alive = [number for number, text in enumerate(job.texts) if text.writer.reason is None]
            kept = job.point if job.keep and not alive else None
            self._news.append(News(job, -1, reason="read", point=kept))
            for number, text in enumerate(job.texts):
                if text.writer.reason is not None:  # nothing was asked of it
                    self._news.append(News(job, number, reason=text.writer.reason))
            if alive:
                self._rows += [(job, number) for number in alive]
                logits.append(np.repeat(job.point[0], len(alive), axis=0))
                states.append(job.point[1].select([0] * len(alive)))
            job.point = None
            if job.seconds is not None:
                last = time.monotonic() + job.seconds
                job.deadline = last if job.deadline is None else min(job.deadline, last)
        if len(logits) > 1:
            self._logits_BV, self._state = np.concatenate(logits), State.stack(states)

    def _begin_search(self, job: Job) -> None:
        assert job.point is not None and job.beams is not None
        logits_BV, state = job.point
        self._news.append(News(job, -1, reason="read"))
        steps = beam_steps(job.texts[0].writer, logits_BV, job.beams, len(job.texts), job.length_penalty)
        self._reading.append(job)  # which it stays among: it takes rows, and is not in the batch
        self._step_search(job, steps, state, None)

    def _look_for(self) -> None:
        """Takes a step of each beam search."""
        for job in [job for job in self._reading if job.search is not None]:
            search = job.search
            assert search is not None
            logits_BV, state = self._engine.step(search.ids, search.state)
            self.counts.written_tokens += len(search.ids)
            self._step_search(job, search.steps, state, logits_BV)

    def _step_search(self, job: Job, steps: Beams, state: State, logits_BV: NDArray[np.float32] | None) -> None:
        """Hears what a search wants next, or tells what it has found."""
        try:
            ids, rows = next(steps) if logits_BV is None else steps.send(logits_BV)
            job.search = Search(steps, ids, state.select(rows.tolist()))
            return
        except StopIteration as end:
            found: list[Writer] = end.value
            if len(found) < len(job.texts):
                error = UsageError(f"there are {len(found)} such texts, not {len(job.texts)}; ask for fewer")
                self._news.append(News(job, -1, error=error))
            else:
                for number, (text, writer) in enumerate(zip(job.texts, found, strict=True)):
                    text.writer, text.stopped_by = writer, writer.stopped_by
                    self._news.append(News(job, number, writer.text, reason=writer.reason))
        except TextLSTMError as error:
            self._news.append(News(job, -1, error=error))
        job.search = None
        self._reading.remove(job)

    def _write(self) -> None:
        """Draws a token for every text, tells it, and steps the engine."""
        if not self._rows:
            return
        texts = [job.texts[number] for job, number in self._rows]
        logits_BV = self._biased(texts)
        measured_BV = self._measured(texts, logits_BV)
        ids_B, errors = _draw(logits_BV, [text.writer.row for text in texts])
        _measure(texts, measured_BV, ids_B)
        alive = []
        for place, (text, id) in enumerate(zip(texts, ids_B.tolist(), strict=True)):
            try:
                reason = errors[place] if place in errors else text.push(id)
            except TextLSTMError as error:  # its pattern cannot be followed any further
                reason = error
            if reason is None:
                alive.append(place)
                continue
            job, number = self._rows[place]
            if isinstance(reason, TextLSTMError):
                self._end(job, number, error=reason)
            else:
                point = self._point_after(place, id, reason) if job.keep and number == 0 else None
                self._end(job, number, reason, point)
        self.counts.written_tokens += len(texts) - len(errors)
        self._publish()  # before the step, so that others work while the engine does
        if len(alive) < len(texts):
            ids_B = ids_B[alive]
            self._keep_rows(alive)
        if alive:
            self._logits_BV, self._state = self._engine.step(ids_B, self._state)

    def _biased(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Logits (B, V) with what requests add to them."""
        logits_BV = self._logits_BV
        if biased := [place for place, text in enumerate(texts) if text.bias is not None]:
            logits_BV = logits_BV.copy()
            for place in biased:
                ids, values = texts[place].bias or ((), ())
                logits_BV[place, ids] += values
        return logits_BV

    def _measured(self, texts: Sequence[Text], logits_BV: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, V) that log-probabilities are told of: the model's, or of what tokens are drawn from."""
        measured_BV = self._logits_BV
        if places := [place for place, text in enumerate(texts) if text.processed and text.top is not None]:
            measured_BV = measured_BV.copy()
            for place in places:
                with np.errstate(divide="ignore"), contextlib.suppress(TextLSTMError):  # which the draw will meet
                    row = texts[place].writer.row
                    measured_BV[place] = np.log(probabilities(logits_BV[place : place + 1], [row])[0])
        return measured_BV

    def _end(
        self, job: Job, number: int, reason: str | None = None, point: Point | None = None,
        error: Exception | None = None,
    ) -> None:  # fmt: skip
        """Notes the end of a text, with what is still untold of it."""
        self._news.append(News(job, number, *job.texts[number].tell(), reason, point, error))

    def _point_after(self, place: int, id: int, reason: str) -> Point:
        """Where a text ended; its last token, unless that is the model's end, is still to be read."""
        logits_1V, state = self._logits_BV[place : place + 1], self._state.select([place])
        return (logits_1V, state) if reason == "end" else self._engine.step(np.array([id]), state)

    def _keep_rows(self, places: Sequence[int]) -> None:
        self._rows = [self._rows[place] for place in places]
        self._logits_BV, self._state = self._logits_BV[list(places)], self._state.select(places)

    def _fail_all(self, error: Exception) -> None:
        jobs = {id(job): job for job in [*self._reading, *(job for job, _ in self._rows)]}
        if self._closing:
            jobs |= {id(job): job for waiting in self._queue.values() for job in waiting}
            self._queue.clear()
        self._news += [News(job, -1, error=error) for job in jobs.values() if not job.cancelled]
        self._reading.clear()
        self._keep_rows([])
        self._publish(now=True)

    def _publish(self, now: bool = False) -> None:
        """Tells what is new, if it is time to; of texts that begin or end sooner than of others."""
        clock = time.monotonic()
        all_of_them = now or clock >= self._next_round
        if not now and (clock < self._next_telling or not (all_of_them or self._news)):
            return
        news, self._news, rows = self._news, [], self._rows
        if not all_of_them:
            jobs = {id(one.job) for one in news}
            rows = [row for row in rows if id(row[0]) in jobs]
        texts = ((job, number, job.texts[number]) for job, number in rows)
        news += [News(job, number, *text.tell()) for job, number, text in texts if text.fresh]
        if not news:
            return
        if all_of_them:
            self._next_round = clock + min(TELL_ROW * len(rows), TELL_MOST)
        self._next_telling = 0.0 if now else clock + TELL  # who comes first hears at once
        self._notify(news)


def _draw(logits_BV: NDArray[np.float32], rows: Sequence[Row]) -> tuple[NDArray[np.int64], dict[int, TextLSTMError]]:
    """Ids (B,), and errors of the rows that none can be drawn for: they must not harm the others."""
    try:
        return sample(logits_BV, rows), {}
    except TextLSTMError:
        ids_B, errors = np.zeros(len(rows), np.int64), {}
        for place, row in enumerate(rows):
            try:
                ids_B[place] = sample(logits_BV[place : place + 1], [row])[0]
            except TextLSTMError as error:
                errors[place] = error
        return ids_B, errors


def _measure(texts: Sequence[Text], logits_BV: NDArray[np.float32], ids_B: NDArray[np.int64]) -> None:
    """Notes the tokens of the texts that report theirs."""
    if places := [place for place, text in enumerate(texts) if text.top is not None]:
        tops = [texts[place].top or 0 for place in places]
        measured = measure(logits_BV[places], ids_B[places], max(tops))
        for place, top, token in zip(places, tops, measured, strict=True):
            texts[place].untold_tokens.append(token._replace(top=token.top[:top]))


def measure(logits_NV: NDArray[np.float32], ids_N: NDArray[np.int64], top: int) -> list[Token]:
    """Log-probabilities of tokens, and of the likeliest at each place, under the model's own distribution.

    Args:
        logits_NV: logits (N, V).
        ids_N: the tokens that came.
        top: number of likeliest tokens.
    """
    x_NV = log_softmax(logits_NV)
    chosen_N1 = x_NV[np.arange(len(ids_N)), ids_N][:, None]
    ranks, chosen = (1 + (x_NV > chosen_N1).sum(1)).tolist(), chosen_N1[:, 0].tolist()
    top = min(top, x_NV.shape[1])
    if top == 0:
        return [Token(id, value, (), rank) for id, value, rank in zip(ids_N.tolist(), chosen, ranks, strict=True)]
    best_NK = np.argpartition(x_NV, -top, axis=1)[:, -top:]
    values_NK = np.take_along_axis(x_NV, best_NK, axis=1)
    order_NK = np.lexsort((best_NK, -values_NK), axis=1)  # of equal ones the lowest id first
    best = np.take_along_axis(best_NK, order_NK, axis=1).tolist()
    values = np.take_along_axis(values_NK, order_NK, axis=1).tolist()
    tops = [list(zip(*pair, strict=True)) for pair in zip(best, values, strict=True)]
    return [Token(*row) for row in zip(ids_N.tolist(), chosen, tops, ranks, strict=True)]
