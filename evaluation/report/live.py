"""The report while a run goes on: what the stages have left so far in, report.json and index.html out, again and again.

Cheap, and loads no model library: a thread writes the page every minute of a step, and once at its end. A finished
report is left alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fusechat.progress import repeated
from fusechat.storage.artifact import RECORD_FILE
from fusechat.storage.files import write_json

from .. import provenance
from ..inputs import ReportInputs
from . import page

SECONDS = 60.0
"""Between two pages of one step."""
UNMEASURED: dict[str, Any] = {
    "held_out": None, "notes": [], "divergence": None, "exact_match_kinds": [], "models": [], "differences": [],
    "answers": [], "samples": [], "answer_sets": [], "judge": None, "harness": None, "interval": None,
}  # fmt: skip
"""What only evaluation gives."""


def write(inputs: ReportInputs, now: str) -> None:
    """Write the page of a run that is not evaluated yet.

    Args:
        now: the step that is worked on.
    """
    if (inputs.layout.report_path / RECORD_FILE).exists():
        return
    course = provenance.course(inputs)
    notes = provenance.bad_metrics(course["training"])
    document = {**UNMEASURED, "state": "running", "now": now, **course, "notes": notes}
    write_json(str(inputs.layout.report_path / "report.json"), document)
    page.write(document, inputs.layout.report_path / "index.html")


def try_write(inputs: ReportInputs, now: str, *, say: Callable[[str], None]) -> bool:
    """As `write`; a page that cannot be written is said, and ends no run: hours of work must not be lost for it."""
    try:
        write(inputs, now)
    except Exception as error:
        say(f"report: the page cannot be written: {type(error).__name__}: {error}")
        return False
    return True


@contextmanager
def watched(inputs: ReportInputs, now: str, *, say: Callable[[str], None], seconds: float = SECONDS) -> Iterator[None]:
    """Keep the page up to date for the time of a `with` block."""
    with repeated(partial(try_write, inputs, now, say=say), seconds, "report"):
        yield
