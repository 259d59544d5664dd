"""Fields of earlier run files: the old name in; the new one, or what became of it, out."""

MOVED = {
    "cluster.teacher_cpus": "cluster.engine_cpus",
    "evaluation.dtype": "evaluation.held_out.dtype",
    "evaluation.kl_dialogues": "evaluation.held_out.divergence_dialogues",
    "evaluation.exact_match_kinds": "evaluation.exact.kinds",
    "evaluation.max_new_tokens": "evaluation.exact.max_new_tokens",
    "evaluation.answers": "evaluation.questions.sets",
    "evaluation.samples": "evaluation.questions.samples",
    "evaluation.lm_eval": "evaluation.lm_eval.tasks",
    "evaluation.lm_eval_folder": "evaluation.lm_eval.folder",
    "evaluation.lm_eval_limit": "evaluation.lm_eval.limit",
    "evaluation.lm_eval_unsafe_code": "evaluation.lm_eval.unsafe_code",
    "extraction.max_attempts": "cluster.max_attempts",
    "extraction.replicas": "cluster.engines",
    "extraction.shards_in_flight": "cluster.units_in_flight",
    "extraction.storage_patience_seconds": "cluster.storage_patience_seconds",
}
"""Old name -> new one. `evaluation.lm_eval` was a list and is a section now."""
BATCHED = "models are measured by engines, which fill their batches by themselves (`engine.max_num_batched_tokens`); take it out"
REMOVED = {
    "run.places": "`fusechat ablate` keeps what its runs share by itself; take it out",
    "evaluation.batch_tokens": BATCHED,
    "evaluation.held_out.batch_tokens": BATCHED,
}
"""Old name -> what to do, where no field took its place."""


def moved_hint(name: str) -> str | None:
    """What to tell the user of a field by its earlier name; None where there was no such field."""
    if name in MOVED:
        return f"moved to {MOVED[name]}, write it there"
    return f"is no field of a run file any more; {REMOVED[name]}" if name in REMOVED else None
