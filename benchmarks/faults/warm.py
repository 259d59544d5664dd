"""What the process that all drivers are forked from has imported; nothing is started here.

A driver then begins in no time: two hundred runs on tiny models would spend nine tenths of their time on imports.
"""

import gc

from inference.engine.environment import prepare_environment

prepare_environment(1)  # before vLLM is imported

import ray
import torch
import transformers
import trl
import vllm.distributed.elastic_ep.elastic_execute
import vllm.entrypoints.llm
import vllm.model_executor.layers.fused_moe.experts.cpu_moe
import vllm.model_executor.layers.quantization.online
import vllm.model_executor.models.llama
import vllm.model_executor.models.mixtral
import vllm.v1.attention.backends.cpu_attn
import vllm.v1.core.sched.async_scheduler
import vllm.v1.engine.core_client
import vllm.v1.executor.uniproc_executor
import vllm.v1.pool.flash_maxsim
import vllm.v1.structured_output
import vllm.v1.worker.cpu_worker

import alignment.stage
import cluster.alignment
import cluster.answering
import cluster.extraction
import cluster.merging
import cluster.training
import evaluation.report.live
import evaluation.report.page
import evaluation.stage
import fusechat.app.cli
import fusechat.app.inspection
import fusechat.app.pipeline
import fusechat.app.summary
import inference.capture.topk_pooler
import inference.engine.engine
import inference.engine.plugin
import inference.scoring_worker
import inference.self_check
import merge.stage
import trainer.choice_stage
import trainer.fusion_trainer

__all__ = [
    "alignment",
    "cluster",
    "evaluation",
    "fusechat",
    "inference",
    "merge",
    "ray",
    "torch",
    "trainer",
    "transformers",
    "trl",
    "vllm",
]

torch.set_num_threads(1)
evaluation.report.page.page_template()
gc.collect()
gc.freeze()  # what no driver will free; looking through it would copy all memory into each
