"""The figures as Markdown for docs/performance.md."""

from typing import Any

from fusechat.markdown import markdown_table

WANTED = {
    "extract_over_prefill_gpu": "at least 0.95",
    "extract_over_prefill_gpu_k64": "at least 0.95",
    "extract_over_prefill_moe_gpu": "at least 0.95",
    "extract_over_prompt_logprobs_gpu": "at least 1.15",
    "extract_over_prompt_logprobs_gpu_k64": "at least 1.15",
    "gpu_memory_over_control_gib": "at most 1",
    "engine_start_seconds": "at most 40",
    "step_over_sft_gpu": "at most 1.02",
    "step_over_sft_gpu_k64": "at most 1.02",
    "peak_over_sft_gpu": "at most 1.0",
    "peak_over_sft_gpu_k64": "at most 1.0",
    "step_over_sft_fsdp2_gpu": "at most 1.02",
    "peak_over_sft_fsdp2_gpu": "at most 1.0",
}
"""Every figure that has a bound; the last line of the benchmark has each of them, null where it was not measured."""


def table(figures: dict[str, Any]) -> str:
    """A table of the figures with bounds, then one of a step's profile where there is one; the device named above."""
    lines = [
        f"{figures['device']}, torch {figures['torch']}, vLLM {figures['vllm']}",
        "",
    ]
    rows = [(f"`{name}`", _shown(figures.get(name)), wanted) for name, wanted in WANTED.items()]
    lines += markdown_table(["figure", "found", "wanted"], rows)
    if profile := figures.get("profile"):
        lines += [
            "",
            f"One shard, {profile['seconds']} s; the device is busy for {profile['device_busy_share']:.0%}:",
            "",
        ]
        heads = ["section", "host, ms", "share of the time", "device, ms", "share of its busy time"]
        lines += markdown_table(heads, [_of_section(*section) for section in profile["sections"].items()])
    return "\n".join(lines)


def _of_section(name: str, measured: dict[str, Any]) -> tuple[str, ...]:
    host = (str(measured["host_ms"]), f"{measured['host_share']:.1%}") if "host_ms" in measured else ("", "")
    return (name, *host, str(measured["device_ms"]), f"{measured['device_share']:.1%}")


def _shown(value: Any) -> str:
    return "not measured" if value is None else str(value)
