"""What a run shows and keeps: a bar per stage on a terminal, plain lines elsewhere, JSON lines in the run folder.

Progress goes to standard error, so that a command's result on standard output can be piped.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN_LINE_SECONDS = 5.0
"""Between two plain progress lines of one task."""


def setup_logging() -> None:
    """One handler on standard error; libraries are kept to warnings."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("fusechat").setLevel(logging.INFO)


def format_seconds(seconds: float) -> str:
    """65 -> '1:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Task:
    """One bar: something counted from 0 to total, with rate and time left."""

    def __init__(self, progress: "Progress", label: str, total: float, unit: str, done: float = 0) -> None:
        self._progress, self.label, self.total, self.unit = progress, label, total, unit
        self.done = self._first = done
        self.note = ""
        self._started = self._last_line = time.monotonic()
        self._bar = progress._add_bar(self)

    @property
    def rate(self) -> float:
        """Units per second since the task began here (what an earlier run had done does not count)."""
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def restart_clock(self) -> None:
        """Count the rate from now on: what came before was no work."""
        self._started, self._first = time.monotonic(), self.done

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more; `note` stands at the end of the line."""
        self.done += amount
        self.note = note or self.note
        self._progress._show(self)

    def finish(self) -> None:
        """Show the final count."""
        self._progress._show(self, final=True)

    def count(self) -> str:
        """`extract gemma3  40%  1,234/3,000 rows`."""
        share = 100 * self.done / self.total if self.total else 100.0
        return f"{self.label}  {share:.0f}%  {self.done:,.0f}/{self.total:,.0f} {self.unit}"

    def line(self) -> str:
        """`extract gemma3  40%  1,234/3,000 rows  512.0 rows/s  0:12 left`; slow ones by the minute."""
        rate, per = (self.rate, "s") if self.rate >= 0.1 or not self.rate else (60 * self.rate, "min")
        text = f"{self.count()}  {rate:,.1f} {self.unit}/{per}"
        if 0 < self.done < self.total and self.rate > 0:
            text += f"  {format_seconds((self.total - self.done) / self.rate)} left"
        return f"{text}  {self.note}".rstrip()


class Progress:
    """All bars of one command. Use as a context manager; `quiet` shows nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._rich: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._rich = Progress(*columns, console=Console(stderr=True))
            self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: float, unit: str, done: float = 0) -> Iterator[Task]:
        """A bar for the time of a `with` block."""
        task = Task(self, label, total, unit, done)
        try:
            yield task
        finally:
            task.finish()

    def _add_bar(self, task: Task) -> Any:
        if self._rich is None:
            self.say(task.count())
            return None
        return self._rich.add_task(f"{task.label:<22}", total=task.total or 1, completed=task.done, text="")

    def _show(self, task: Task, final: bool = False) -> None:
        with self._lock:
            if self._rich is not None:
                text = task.line().removeprefix(task.label).strip()
                self._rich.update(task._bar, completed=task.done if task.total else 1, text=text)
            elif final or time.monotonic() - task._last_line >= PLAIN_LINE_SECONDS:
                task._last_line = time.monotonic()
                self.say(task.line())


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one record to a JSON Lines file, in one write; behind a line that a killed process left torn, on a new line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


@contextmanager
def repeated(action: Callable[[], bool], seconds: float, name: str) -> Iterator[None]:
    """Do something now and then, in a thread, for the time of a `with` block; until it gives False.

    Args:
        seconds: before each time.
        name: of the thread.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds) and action():
            pass

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole records of a JSON Lines file that may still be written; none where there is no file.

    A line that a killed process left torn is passed over: what it was to say is said again or was never done.
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):  # not splitlines: a record may hold other line separators
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records
