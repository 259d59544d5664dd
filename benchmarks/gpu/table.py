"""The figures as Markdown for docs/performance.md."""

from typing import Any

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
        "| figure | found | wanted |",
    ]
    lines += ["|---|---|---|"]
    lines += [f"| `{name}` | {_shown(figures.get(name))} | {wanted} |" for name, wanted in WANTED.items()]
    if profile := figures.get("profile"):
        lines += [
            "",
            f"One shard, {profile['seconds']} s; the device is busy for {profile['device_busy_share']:.0%}:",
        ]
        lines += [
            "",
            "| section | host, ms | share of the time | device, ms | share of its busy time |",
            "|---|---|---|---|---|",
        ]
        for name, found in profile["sections"].items():
            host = f"{found['host_ms']} | {found['host_share']:.1%}" if "host_ms" in found else " | "
            lines.append(f"| {name} | {host} | {found['device_ms']} | {found['device_share']:.1%} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "not measured" if value is None else str(value)
