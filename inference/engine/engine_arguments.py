"""From a run's engine section to vLLM's engine arguments.

Knows which runner, dtypes and limits each mode needs. Importing this module imports vLLM.
"""

from typing import Any, Literal

import torch
from vllm import envs
from vllm.config import PoolerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.transformers_utils.config import get_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from fusechat.config import EngineSection
from fusechat.errors import ConfigError, ModelError, first_line

from ..capture.topk_pooler import TASK
from .internlm2 import register_config
from .pooler_models import register_here
from .pooler_options import PoolerOptions

Runner = Literal["topk_pooler", "prompt_logprobs", "generate"]

OWN = {
    "additional_config", "convert", "enable_prefix_caching", "max_logprobs", "max_model_len", "model", "pooler_config",
    "revision", "runner", "skip_tokenizer_init",
}  # fmt: skip
"""Arguments that the engine itself decides."""


def engine_arguments(
    model: str,
    section: EngineSection,
    runner: Runner,
    *,
    k: int,
    max_tokens: int,
    text: bool = False,
    is_wide_on_cpus: bool = False,
) -> EngineArgs:
    """vLLM's arguments for one engine.

    Args:
        max_tokens: longest prompt; in `generate` prompt and answer together.
        text: the engine reads and writes text, too; else token ids alone.
        is_wide_on_cpus: on CPUs the dtype `auto` is float32, whatever the checkpoint says.
    Raises:
        ConfigError: `extra` sets what the engine decides itself.
        ModelError: the model's config cannot be read.
    """
    if own := sorted(OWN & section.extra.keys()):
        raise ConfigError(f"engine.extra: found {', '.join(own)}, which the engine decides itself; leave them out")
    config = _read_config(model, section)
    overrides = {**section.extra.get("hf_overrides", {}), "head_dtype": _head_dtype(section)}
    dtype = section.dtype
    if dtype == "auto":
        is_wide = is_wide_on_cpus and current_platform.is_cpu()
        dtype = "float32" if is_wide else _dtype(config, model)
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "tensor_parallel_size": section.tensor_parallel_size,
        "max_num_batched_tokens": section.max_num_batched_tokens,
        "max_num_seqs": min(256, section.max_num_batched_tokens),
        "gpu_memory_utilization": section.gpu_memory_utilization,
        "disable_log_stats": True,
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if current_platform.is_cpu():
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(section.kv_cache_gib * 2**30)}
    if runner == "topk_pooler":
        overrides["architectures"] = [register_here(config.architectures[0])]
        arguments |= {"runner": "pooling", "convert": "none", "pooler_config": PoolerConfig(task=TASK)}
        arguments |= {"additional_config": PoolerOptions(k)}
        if not current_platform.is_cpu():
            arguments |= _on_accelerators(section)
    else:
        arguments |= {"runner": "generate", "max_logprobs": k}
        if runner == "generate" and current_platform.is_cpu():
            arguments |= _whole_prompts(section, max_tokens)
    arguments |= {
        **section.extra,
        "hf_overrides": overrides,
        "model": model,
        # The reference capture samples one token behind the prompt.
        "max_model_len": max_tokens + (runner == "prompt_logprobs"),
        "skip_tokenizer_init": not text,
        "enable_prefix_caching": False,  # a cached position has no hidden state to take rows from
    }
    try:
        return EngineArgs(**arguments)
    except TypeError as error:
        raise ConfigError(f"engine.extra: {error}; expected names of vLLM's engine arguments") from None


def _whole_prompts(section: EngineSection, max_tokens: int) -> dict[str, Any]:
    """A prompt is read in one step, or in the next one.

    Of one that is cut between two steps vLLM samples a token and throws it away; to take back what this drew from the request's
    own generator it moves the generator's offset, which those of CPUs do not have: the engine would die.
    """
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(section.max_num_batched_tokens, max_tokens),
    }


def _on_accelerators(section: EngineSection) -> dict[str, Any]:
    """What an engine that only prefills wants of vLLM, where that differs from what vLLM takes by itself.

    - Two steps in flight: the next one is scheduled and queued while the device works on the last. vLLM leaves that out for
      pooling models, whose requests would each be answered later; here only the sum counts. Ray's older executor cannot.
    - No graphs: for pooling models vLLM has only those of pieces, and only of steps of up to 512 tokens, which are the few
      at the end of the work. Capturing them is a part of every start. Compilation, which is kept on disk, stays.
    """
    backend = section.extra.get("distributed_executor_backend")
    queued = backend in (None, "mp", "uni") or (backend == "ray" and envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND)
    return {"compilation_config": {"cudagraph_mode": "NONE"}} | ({"async_scheduling": True} if queued else {})


def _read_config(model: str, section: EngineSection) -> Any:
    register_config()
    try:
        config = get_config(model, section.extra.get("trust_remote_code", False))
    except (ValueError, OSError) as error:
        raise ModelError(f"{model}: its config cannot be read: {first_line(error)}") from error
    if not config.architectures:
        raise ModelError(f"{model}: config.json names no architecture; expected one such as LlamaForCausalLM")
    return config


def _head_dtype(section: EngineSection) -> str:
    if section.head_dtype != "auto":
        return section.head_dtype
    return "model" if current_platform.is_cpu() else "float32"


def _dtype(config: Any, model: str) -> Literal["auto", "float32"]:
    """What the checkpoint says: vLLM's `auto`, but that it would turn float32 into half precision."""
    dtype = ModelArchConfigConvertorBase.get_torch_dtype(config, model, revision=None, config_format="hf")
    return "float32" if dtype == torch.float32 else "auto"
