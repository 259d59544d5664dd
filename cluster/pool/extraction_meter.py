"""How far the teachers are, in three places that say the same: bars, one JSON line a shard, Ray's metrics (Prometheus).

A rate counts from a teacher's first engine that was ready, not from the start of the run: teachers may queue for room.
Metrics, each with the tag `teacher` (Ray puts `ray_` before the name): counters `fusechat_rows`, `fusechat_tokens`,
`fusechat_shards_done`, `fusechat_shards_retried`, `fusechat_shards_set_aside`; gauges `fusechat_engines`,
`fusechat_rows_per_second`, `fusechat_tokens_per_second`, `fusechat_seconds_left`.
"""

import contextlib
import time
from typing import Any

from ray.util.metrics import Counter, Gauge

from fusechat.progress import Progress, ShardLog, Task, format_seconds
from fusechat.storage.row_store import RowStore

GAUGE_SECONDS = 1.0
"""Between two settings of the gauges."""
COUNTERS = {
    "rows": "rows written",
    "tokens": "tokens read",
    "shards_done": "shards written",
    "shards_retried": "shards that failed and were queued again",
    "shards_set_aside": "shards that failed as often as extraction.max_attempts allows",
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

    def __init__(
        self,
        progress: Progress,
        stores: dict[str, RowStore],
        missing: dict[str, list[int]],
        logs: dict[str, ShardLog],
        bars: contextlib.ExitStack,
    ) -> None:
        """
        Args:
            missing: per store the shards that are to be done.
            logs: per store where each shard is written down.
        """
        self._logs, self._ticked = logs, 0.0
        self._counters = {name: Counter(f"fusechat_{name}", text, ("teacher",)) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(f"fusechat_{name}", text, ("teacher",)) for name, text in GAUGES.items()}
        self._progress = progress

        def make(name: str, names: list[str], whole: TeacherMeter | None) -> TeacherMeter:
            total = sum(stores[one].plan.num_rows for one in names)
            rest = sum(stores[one].plan.num_rows_of(missing[one]) for one in names)
            label = f"extract {name}".rstrip()
            task = bars.enter_context(progress.task(label, total, "rows", done=total - rest))
            shards = sum(stores[one].plan.num_shards for one in names)
            return TeacherMeter(
                name, task, num_shards=shards, missing=sum(len(missing[one]) for one in names), whole=whole
            )

        whole = make("", list(stores), None) if len(stores) > 1 else None
        self.teachers = {name: make(name, [name], whole) for name in stores}

    def on_done(self, name: str, result: dict[str, Any]) -> None:
        """Count one written shard: `shard`, `attempt`, `rows`, `tokens`, `seconds`."""
        self.teachers[name].count(rows=result["rows"], tokens=result["tokens"], done=1)
        for counter, amount in (("rows", result["rows"]), ("tokens", result["tokens"]), ("shards_done", 1)):
            if amount:
                self._counters[counter].inc(amount, {"teacher": name})
        self._logs[name].done(result)

    def on_failed(self, name: str, record: dict[str, Any]) -> None:
        """Count one failure of a shard: `shard`, `attempt`, `set_aside`, `error`."""
        event = "set_aside" if record["set_aside"] else "retried"
        self.teachers[name].count(**{event: 1})
        self._counters[f"shards_{event}"].inc(1, {"teacher": name})
        self._logs[name].failed(record)

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
