"""How far the teachers are, in three places that say the same: bars, one JSON line a shard, Ray's metrics (Prometheus).

A rate counts from a teacher's first engine that was ready, not from the start of the run: teachers may queue for room.
Metrics, each with the tag `teacher` (Ray puts `ray_` before the name): counters `fusechat_rows`, `fusechat_tokens`,
`fusechat_shards_done`, `fusechat_shards_retried`, `fusechat_shards_set_aside`; gauges `fusechat_engines`,
`fusechat_rows_per_second`, `fusechat_tokens_per_second`, `fusechat_seconds_left`.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from ray.util.metrics import Counter, Gauge

from fusechat.progress import Progress, Task, format_seconds
from fusechat.storage.work import Listener, Work

GAUGE_SECONDS = 1.0
"""Between two settings of the gauges."""
COUNTERS = {
    "rows": "rows written",
    "tokens": "tokens read",
    "shards_done": "shards written",
    "shards_retried": "shards that failed and were queued again",
    "shards_set_aside": "shards that failed as often as cluster.max_attempts allows",
}
GAUGES = {
    "engines": "engines at work",
    "rows_per_second": "rows a second since the teacher's first engine was ready",
    "tokens_per_second": "tokens a second since then",
    "seconds_left": "for the rows that are left, at that rate",
}


class TeacherMeter:
    """Counts of one teacher, or of all: `whole` counts along what its teachers count."""

    def __init__(self, name: str, task: Task, *, num_shards: int, missing: int, whole: "TeacherMeter | None") -> None:
        """
        Args:
            num_shards: of the whole store.
            missing: of them, those that are to be done here.
        """
        self.name, self.task, self.whole, self.num_shards = name, task, whole, num_shards
        self._before, self._began = num_shards - missing, 0.0
        self.rows = self.tokens = self.done = self.retried = self.set_aside = 0

    def begin(self) -> None:
        """The first engine is ready: rates count from here."""
        if not self._began:
            self._began = time.monotonic()
            self.task.restart_clock()
        if self.whole is not None:
            self.whole.begin()

    @property
    def seconds(self) -> float:
        """Since the first engine was ready."""
        return time.monotonic() - self._began if self._began else 0.0

    def rate(self, amount: float) -> float:
        """Of what was counted here, per second."""
        return amount / self.seconds if self.seconds else 0.0

    def count(self, *, rows: int = 0, tokens: int = 0, done: int = 0, retried: int = 0, set_aside: int = 0) -> None:
        """Add to the counts and show them."""
        self.rows, self.tokens, self.done = self.rows + rows, self.tokens + tokens, self.done + done
        self.retried, self.set_aside = self.retried + retried, self.set_aside + set_aside
        if self.whole is not None:
            self.whole.count(rows=rows, tokens=tokens, done=done, retried=retried, set_aside=set_aside)
        self.task.advance(rows, note=self._shards(f"{self.rate(self.tokens):,.0f} tokens/s"))

    def line(self) -> str:
        """What is said at the end."""
        rates = f"{self.rate(self.rows):,.0f} rows/s  {self.rate(self.tokens):,.0f} tokens/s"
        return f"{self.task.label}: {self._shards(f'{self.rows:,} rows in {format_seconds(self.seconds)}  {rates}')}"

    def _shards(self, first: str) -> str:
        shards = f"shards {self._before + self.done}/{self.num_shards}"
        return f"{first}  {shards}  tried again {self.retried}  set aside {self.set_aside}"


class ExtractionMeter:
    """The teachers of one driver; bars stay for the time of the `with` block whose stack is given."""

    def __init__(self, progress: Progress, works: Sequence[Work], bars: contextlib.ExitStack) -> None:
        """
        Args:
            works: of the teachers, by their names; those with nothing left are not shown.
        """
        works = [work for work in works if work.missing]
        self._ticked = 0.0
        self.counters = {name: Counter(f"fusechat_{name}", text, ("teacher",)) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(f"fusechat_{name}", text, ("teacher",)) for name, text in GAUGES.items()}
        self._progress = progress

        def make(name: str, some: Sequence[Work], whole: TeacherMeter | None) -> TeacherMeter:
            total, done = sum(work.total for work in some), sum(work.done for work in some)
            task = bars.enter_context(progress.task(f"extract {name}".rstrip(), total, "rows", done=done))
            shards, missing = sum(work.num_units for work in some), sum(len(work.missing) for work in some)
            return TeacherMeter(name, task, num_shards=shards, missing=missing, whole=whole)

        whole = make("", works, None) if len(works) > 1 else None
        self.teachers = {work.name: make(work.name, [work], whole) for work in works}

    def listen(self, work: Work) -> Listener:
        """Counts what becomes of a teacher's shards."""
        return _TeacherListener(self, self.teachers[work.name])

    def tick(self, engines: dict[str, int], *, last: bool = False) -> None:
        """Set the gauges, at most once a second.

        Args:
            engines: teacher -> engines at work.
            last: set them in any case; nothing comes after.
        """
        if not last and time.monotonic() - self._ticked < GAUGE_SECONDS:
            return
        self._ticked = time.monotonic()
        for name, meter in self.teachers.items():
            rate = meter.rate(meter.rows)
            values = {
                "engines": engines[name],
                "rows_per_second": rate,
                "tokens_per_second": meter.rate(meter.tokens),
            }
            if rate:
                values["seconds_left"] = (meter.task.total - meter.task.done) / rate
            for gauge, value in values.items():
                self._gauges[gauge].set(value, {"teacher": name})

    def say_result(self) -> None:
        """One line per teacher."""
        for meter in self.teachers.values():
            self._progress.say(meter.line())


class _TeacherListener(Listener):
    """Passes the news of one teacher's shards on to its meter and to Ray's metrics."""

    def __init__(self, meter: ExtractionMeter, teacher: TeacherMeter) -> None:
        self._counters, self._teacher = meter.counters, teacher

    def on_started(self) -> None:
        self._teacher.begin()

    def on_done(self, result: dict[str, Any]) -> None:
        self._teacher.count(rows=result["rows"], tokens=result["tokens"], done=1)
        for counter, amount in (("rows", result["rows"]), ("tokens", result["tokens"]), ("shards_done", 1)):
            if amount:
                self._counters[counter].inc(amount, {"teacher": self._teacher.name})

    def on_failed(self, record: dict[str, Any]) -> None:
        event = "set_aside" if record["set_aside"] else "retried"
        self._teacher.count(**{event: 1})
        self._counters[f"shards_{event}"].inc(1, {"teacher": self._teacher.name})
