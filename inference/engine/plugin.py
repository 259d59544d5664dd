"""vLLM's door to this project: the entry point `vllm.general_plugins`, which every vLLM process runs at its start.

Registers, for each architecture that vLLM knows, a class that scores, with a top-k pooler, under the name `FusePooler<it>`.
The classes themselves are made when one is first asked for (`pooler_models.py`). Imports nothing heavy by itself.
"""

import gc
import multiprocessing

PREFIX = "FusePooler"


def register() -> None:
    """Register the classes; may run many times in one process."""
    # In a further rank this is the first moment after vLLM's import; see `fusechat/models/process_memory.py` and `rank.py`.
    gc.freeze()
    if multiprocessing.parent_process() is not None:
        gc.set_threshold(700)  # Python's own
    from vllm import __version__
    from vllm.model_executor.models import ModelRegistry

    from .internlm2 import register_config
    from .vllm_internals import copy_config_rule, is_known

    register_config()
    for architecture in sorted(ModelRegistry.get_supported_archs()):
        if architecture.startswith(PREFIX) or is_known(PREFIX + architecture):
            continue
        # The version is part of the name because vLLM caches what it learns about a class under its name.
        ModelRegistry.register_model(
            PREFIX + architecture, f"inference.engine.pooler_models:{architecture}@{__version__}"
        )
        copy_config_rule(architecture, PREFIX + architecture)
