"""Held-out scoring on Ray by a plain transformers forward in the engine's place: for tests of where it is done."""

import sys
from typing import Any

import plain_engine
from plain_engine import PlainEngine
from ray import cloudpickle

from inference.held_out.worker import HeldOutWorker

# Workers do not have the folder of the tests on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(plain_engine)


class PlainHeldOutWorker(HeldOutWorker):
    """The real one but for its engine."""

    def _open_engine(self, max_tokens: int, **_: Any) -> Any:
        engine = PlainEngine(str(self.inputs.model.model), k=self.inputs.k, max_tokens=max_tokens)
        self._engine = engine  # type: ignore[assignment]
        return engine
