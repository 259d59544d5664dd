"""Every inner name of vLLM that is used is there in the installed release, and means what it is used for."""

import dataclasses
import gc
import inspect

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbeddingShardIndices
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.triton_utils import dispatcher
from vllm.utils import gc_utils
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.pool.metadata import PoolingStates

from inference.engine import vllm_internals


def test_registry_knows_architectures_and_their_config_rules() -> None:
    assert vllm_internals.is_known("LlamaForCausalLM") and not vllm_internals.is_known("Nothing")
    assert issubclass(vllm_internals.known_class("LlamaForCausalLM"), nn.Module)  # type: ignore[arg-type]
    assert vllm_internals.known_class("Nothing") is None
    ruled = next(name for name in MODELS_CONFIG_MAP if name in ModelRegistry.models)
    vllm_internals.copy_config_rule(ruled, "OfATest")
    assert MODELS_CONFIG_MAP.pop("OfATest") is MODELS_CONFIG_MAP[ruled]
    vllm_internals.copy_config_rule("Nothing", "OfATest")
    assert "OfATest" not in MODELS_CONFIG_MAP


def test_logits_processor_and_shards_have_what_the_teachers_read() -> None:
    assert "skip_gather" in inspect.signature(LogitsProcessor.forward).parameters
    assert "head_dtype" in inspect.getsource(LogitsProcessor.__init__)
    fields = {field.name for field in dataclasses.fields(VocabParallelEmbeddingShardIndices)}
    assert "org_vocab_start_index" in fields and hasattr(VocabParallelEmbeddingShardIndices, "num_org_elements")


def test_processors_are_replaced_wherever_they_stand_one_for_one() -> None:
    class Processor(LogitsProcessor):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    class Stub(nn.Module):
        def __init__(self, processor: nn.Module) -> None:
            super().__init__()
            self.processor = processor

    shared, other = Processor(), Processor()
    model = nn.ModuleDict({"a": shared, "inner": nn.ModuleDict({"b": shared, "c": other, "plain": nn.Linear(1, 1)})})
    replaced = vllm_internals.replace_logits_processors(model, Stub)
    assert [stub.processor for stub in replaced] == [shared, other]
    assert model["a"] is model["inner"]["b"] is replaced[0] and model["inner"]["c"] is replaced[1]  # type: ignore[index]
    assert isinstance(model["inner"]["plain"], nn.Linear)  # type: ignore[index]


def test_pooling_state_keeps_chunks_and_forgets_them_when_cleaned() -> None:
    state = PoolingStates()
    vllm_internals.chunks_of(state).append(torch.zeros(1))
    assert len(vllm_internals.chunks_of(state)) == 1
    state.clean()
    assert vllm_internals.chunks_of(state) == []


def test_engine_has_a_core_that_shuts_down_and_the_scan_asks_hasattr() -> None:
    assert "self.engine_core" in inspect.getsource(LLMEngine.__init__) and callable(EngineCoreClient.shutdown)
    assert "hasattr(" in inspect.getsource(dispatcher), "vLLM's scan no longer asks hasattr: drop guarded_kernel_scan"
    assert {"_rebind_kernels", "_registry"} <= set(vars(dispatcher))


def test_a_process_is_looked_through_for_kernels_before_its_first_engine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(dispatcher, "_rebind_kernels", looked.append)
    monkeypatch.setattr(dispatcher, "_registry", {})
    for _ in range(2):
        with vllm_internals.guarded_kernel_scan():
            dispatcher._rebind_kernels([])
            dispatcher._registry["a.kernel"] = (None, None)
    assert looked == [[]]


def test_what_imports_made_stays_frozen_while_an_engine_starts_and_ends() -> None:
    of_imports: list[object] = []
    gc.freeze()
    try:
        with vllm_internals.imports_stay_frozen():
            of_the_engine: list[object] = []
            gc_utils.freeze_gc_heap()
            gc.unfreeze()
            collected = {id(thing) for thing in gc.get_objects()}  # what is frozen is not among them
            assert id(of_the_engine) in collected and id(of_imports) not in collected
    finally:
        gc.unfreeze()
    assert id(of_imports) in {id(thing) for thing in gc.get_objects()}
