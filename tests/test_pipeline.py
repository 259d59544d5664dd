"""The whole chain through real Ray and real vLLM on tiny models: what a run leaves, that it skips, and that it resumes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from killed_runs import fusechat, kill_when
from reasoning_runs import reasoning_run
from tiny_runs import tiny_run

pytestmark = pytest.mark.pipeline


WATCHED = """
import sys
import torch, transformers.modeling_utils as modeling
from dataclasses import replace
from fusechat.app import cli, pipeline

made, plain_steps, plain_init = [], pipeline.steps, modeling.PreTrainedModel.__init__

def init(self, *arguments, **options):
    made.append(type(self).__name__)
    plain_init(self, *arguments, **options)

def watched(step):
    def make(config, progress):
        made.clear()
        result = step.make(config, progress)
        print(f"driver of {step.label}: networks {made}, cuda {torch.cuda.is_initialized()}", file=sys.stderr)
        return result
    return replace(step, make=make)

modeling.PreTrainedModel.__init__ = init
torch.cuda._lazy_init = lambda: made.append("cuda")
pipeline.steps = lambda config: [watched(step) for step in plain_steps(config)]
cli.main()
"""
"""The command line in a process that says which networks each step made there."""


@pytest.fixture(scope="module")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path], dialogue_files: dict[str, Path]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """(run file, result of `fusechat run`)."""
    base = tmp_path_factory.mktemp("pipeline")
    path = base / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run(base / "out", tiny_models, dialogue_files)), encoding="utf-8")
    return path, fusechat("run", "-c", path, program=("-c", WATCHED))


@pytest.fixture(scope="module")
def output(finished_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return finished_run[0].parent / "out"


def test_run_ends_with_a_table_of_all_models(finished_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    shown = finished_run[1].stdout
    for word in ("llama", "sft", "mixtral", "fused", "bits per byte", "Seconds per stage", "arithmetic"):
        assert word in shown, shown


def test_driver_loads_no_network_but_where_it_trains(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    lines = [line for line in finished_run[1].stderr.splitlines() if line.startswith("driver of ")]
    assert len(lines) == 10, finished_run[1].stderr
    for line in lines:
        label, _, said = line.removeprefix("driver of ").partition(": ")
        assert label in ("train", "merge") or said == "networks [], cuda False", line


def test_run_again_skips_every_stage_and_says_so(finished_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    again = fusechat("run", "-c", finished_run[0])
    lines = [line for line in again.stderr.splitlines() if ":" in line]
    assert sum("done before, skipped" in line for line in lines) == 10, again.stderr
    assert "done in" not in again.stderr


def test_run_with_another_plan_is_refused_with_the_difference(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    refused = fusechat("run", "-c", finished_run[0], "--set", "extraction.k=4", check=False)
    assert refused.returncode == 2
    assert re.search(r"settings\.k: 5 -> 4", refused.stderr) and "if_changed=restart" in refused.stderr


def test_status_and_inspect_show_what_is_there(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]], output: Path
) -> None:
    shown = fusechat("status", "-c", finished_run[0]).stdout
    assert len(re.findall(r"\bdone\b", shown)) == 34, shown
    for kind in ("logprobs/mixtral", "aligned/mixtral"):
        shown = fusechat("inspect", output / kind, "--verify", "--dialogue", "1").stdout
        assert "every checksum holds" in shown and "mean label logprob" in shown and "top tokens" in shown


def test_stores_open_with_stock_zarr_and_hold_probabilities(output: Path) -> None:
    for folder in ("logprobs/llama", "logprobs/mixtral", "aligned/mixtral"):
        group = zarr.open_group(str(output / folder), mode="r")
        assert group["topk_ids"].dtype == np.uint16
        labels = group["label_logprob"][...]
        assert (labels[np.isfinite(labels)] <= 0).all()


def test_fused_model_opens_with_transformers_and_vllm(output: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output / "fused")
    model = AutoModelForCausalLM.from_pretrained(output / "fused")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )
    import torch

    expected = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    code = (
        "import os, sys, json\n"
        "os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING='0', VLLM_LOGGING_LEVEL='ERROR', VLLM_CPU_KVCACHE_SPACE='1')\n"
        "from vllm import LLM, SamplingParams\n"
        f"llm = LLM({str(output / 'fused')!r}, enforce_eager=True, max_model_len=256, dtype='float32')\n"
        f"out = llm.generate([{{'prompt_token_ids': {prompt}}}], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)\n"
        "print(json.dumps(out[0].outputs[0].token_ids[0]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == expected


def test_run_killed_in_extraction_and_training_goes_on_to_the_same_weights(
    tmp_path: Path, tiny_models: dict[str, Path], dialogue_files: dict[str, Path], output: Path
) -> None:
    path, run = tmp_path / "run.yaml", tiny_run(tmp_path / "out", tiny_models, dialogue_files)
    run["evaluation"]["models"] = ["fused"]  # of what comes behind the weights hardly anything is wanted here
    run["cluster"]["num_cpus"] = 1  # where the other run has as many workers as the machine has CPUs
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    kill_when(lambda: any((tmp_path / "out" / "logprobs").glob("*/label_logprob/c/*")), "run", "-c", path)
    kill_when(lambda: any((tmp_path / "out" / "targets").glob("*/*heckpoint*/*")), "run", "-c", path)
    fusechat("run", "-c", path)
    for name in ("fused", "targets/mixtral", "targets/sft"):
        one, other = tmp_path / "out" / name / "model.safetensors", output / name / "model.safetensors"
        assert one.read_bytes() == other.read_bytes(), name


def test_run_with_reasoning_and_tools_aligns_as_well_as_plain_text(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(reasoning_run(out, tiny_models)), encoding="utf-8")
    shown = fusechat("run", "-c", path)
    assert "hides earlier reasoning" in shown.stderr
    counts = json.loads((out / "aligned" / "velan-moe" / "artifact.json").read_text())["counts"]
    assert abs(counts["label_bits_per_byte_lost_share"]) <= 0.001, counts
    assert counts["tool_call_rows_without_source"] > 100
    apart = counts["tool_call_rows_without_source"] / counts["rows"]
    assert counts["coverage"] > 0.95 - apart, counts  # some marks have no counterpart in the other template
    ends = json.loads((out / "fused" / "generation_config.json").read_text())["eos_token_id"]
    asked = json.loads((out / "fused" / "fusechat_prompt.json").read_text())
    assert ends and asked["reasons"] is True
    inspected = fusechat("inspect", out / "tokens" / "smollm2", "--dialogue", "0")
    assert "reasoning" in inspected.stdout and "scored" in inspected.stdout


def test_run_that_asks_for_the_joint_target_too_keeps_rows_and_pairs(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]], output: Path
) -> None:
    """As the last lines of a pairwise run say; it comes last, because it changes the run."""
    asked = re.search(r"--set (training\.fusion=both) --set (run\.if_changed=restart)", finished_run[1].stdout)
    assert asked is not None, finished_run[1].stdout
    again = fusechat("run", "-c", finished_run[0], "--set", asked[1], "--set", asked[2])
    for step in ("extract", "align mixtral", "train choice", "train mixtral", "merge"):
        assert f"{step}: done before, skipped" in again.stderr, again.stderr
    assert (output / "targets" / "joint" / "artifact.json").exists()
    assert "target joint" in again.stdout and "taught by" in again.stdout
