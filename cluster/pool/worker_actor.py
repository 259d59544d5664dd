"""The one Ray actor of the project's pool: a process that holds one worker at a time."""

import gc
from collections.abc import Callable
from typing import Any

from fusechat.storage.work import Place, Worker


class WorkerActor:
    """Makes the worker of a work, does units with it, and lets it go for the worker of the next work.

    A process that served a work has imported what an engine needs, and its next engine starts in a tenth of the time.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._worker: Worker | None = None

    def stand(self) -> None:
        """Returns as soon as the process runs: Ray has found a place for it."""

    def begin(self, make_worker: Callable[[Place], Worker]) -> dict[str, Any]:
        """Close the worker of the work before, if there was one, and start one for this work; raises what it raises."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            gc.collect()  # what an engine leaves in cycles would stand beside the next engine's weights
        self._worker = make_worker(self._place)
        return self._worker.start()

    def run_unit(self, unit: int) -> dict[str, Any]:
        """Do one unit; raises what the worker raises."""
        assert self._worker is not None, "begin comes first"
        return self._worker.run_unit(unit)
