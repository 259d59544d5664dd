"""What a process of the pool that only makes tokens does without: other cores, and torch."""

import os
import sys

from ..storage.work import Place


def prepare_token_process(place: Place) -> None:
    """Called before a tokenizer is loaded; does nothing in a process that is not the worker's own.

    - Tokenizers keep to the core that the worker reserved: several workers would else fight for all of them.
    - transformers takes torch for not installed. Its tokenizers need none, but load all of it where it is: 3.9 CPU seconds
      and 0.55 GiB for each worker, 0.9 and 0.07 without. Whoever wants torch itself still finds it.
    """
    if place.cpus == 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if place.owns_process and not {"torch", "transformers"} & sys.modules.keys():
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that it found no torch
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's mark of a module that cannot be imported
        try:
            from transformers.utils import is_torch_available

            is_torch_available()  # which is asked once in a process
        finally:
            del sys.modules["torch"]
