"""A small report document with everything that the page can show, hostile texts included."""

from typing import Any

from evaluation_runs import aligned

from evaluation import provenance
from evaluation.inputs import ReportInputs
from fusechat.config import RunConfig

EVIL = '<script>alert("x")</script>&'


def merge_report() -> dict[str, Any]:
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    return {
        "method": "sce", "parameters": {"select_topk": 0.1}, "targets": ["x", "y"],
        "total": {"elements": 9, "update_norm": [1.0, 2.0], "update_rms": [0.1, 0.2], "coefficients": [0.25, 0.75]},
        "tensors": {name: {"update_norm": [1.0, 2.0], "coefficients": [0.25, 0.75]} for name in names},
    }  # fmt: skip


def judged() -> dict[str, Any]:
    figures = {"score": 6.5, "low": 6.0, "high": 7.0, "judge_noise": 0.1, "questions": 6, "verdicts": 12, "nonsense": 1,
               "by_turn": {"1": 6.5}}  # fmt: skip
    cost = {
        "verdicts": 12,
        "asked_now": 12,
        "attempts_now": 12,
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "price": 0.0,
    }
    return {"model": EVIL, "url": "u", "repeats": 2, "temperature": 0.0, "baseline": None, "cost": cost,
            "sets": {"own": {"single": {"pivot": figures}}}}  # fmt: skip


def answer_set() -> dict[str, Any]:
    sampling = {"temperatures": [0.0], "max_new_tokens": 8, "seed": 0}
    shown = [{"id": "1", "category": "", "turns": [EVIL, "again"], "answers": {"pivot": [EVIL, "b"]}},
             {"id": "2", "category": "", "turns": ["x"], "answers": {"pivot": None}}]  # fmt: skip
    return {"name": "own", "form": "prompts", "questions": 30, "sampling": sampling, "models": {}, "shown": shown}


def minimal_document(config: RunConfig) -> dict[str, Any]:
    """A report of one model, whose texts are hostile."""
    loss = {"bits_per_byte": 1.234, "low": 1.1, "high": 1.3, "dialogues": 6, "bytes": 60, "nats": 50.0}
    accuracy = {"accuracy": 0.5, "low": 0.2, "high": 0.8, "exact": 3, "asked": 6}
    model = {
        "id": "pivot", "label": EVIL, "role": "pivot", "name": "p", "folder": EVIL, "fingerprint": "ab", "parameters": 5,
        "dtype": "float32", "device": "cpu", "seconds": 1.0, "tokens": 9, "rows": 5, "loss": {"all": loss, EVIL: loss},
        "accuracy": {"all": accuracy, EVIL: accuracy}, "nats": [1.0],
        "divergence": {"p": {"nats_per_row": 0.5, "low": 0.4, "high": 0.6, "dialogues": 6, "rows": 9}},
        "held_out_divergence": {"p": {"nats_per_row": 0.7, "low": 0.6, "high": 0.8, "dialogues": 3, "rows": 4}},
    }  # fmt: skip
    return {
        "format": 3, "updated": "2026-01-01T00:00:00+00:00", "run": provenance.run_record(ReportInputs.of(config)),
        "state": "finished", "now": "", "steps": [{"step": EVIL, "seconds": 3.0, "times": 1}],
        "divergence": {
            "teachers": ["p"], "training_dialogues": 6, "of": 9, "numbers": [], "held_out_teachers": ["p"],
            "held_out_dialogues": 3, "held_out_numbers": [], "missing": [],
        },
        "harness": {
            "version": "0", "figures": [EVIL], "models": {"pivot": {EVIL: {"value": 0.5, "low": 0.4, "high": 0.6}}}},
        "judge": judged(), "answer_sets": [answer_set()],
        "extraction": {"p": {"shards": 1, "rows": 9, "tokens": 20, "rate": [[1.0, 9.0], [2.0, 8.0]], "retries": 0,
                             "set_aside": 0}},
        "writing": {"rule": EVIL, "answers": 1200, "prompts": 9, "dialogues": 7, "prompts_without_answer": 2, "table": [
            {"writer": EVIL, "kind": EVIL, "answers": 1200, "kept": 7, "refused": {EVIL: 3, "not the reference": 1190}}]},
        "alignment": {"s": aligned()},
        "choice": [
            {"kind": EVIL, "source": EVIL, "dialogues": 3, "tokens": 30, "trust": 0.5},
            {"kind": EVIL, "source": None, "dialogues": 1, "tokens": 10, "trust": None},
        ],
        "held_out": {"dialogues": 6, "bytes": 60, "kinds": {EVIL: {"dialogues": 6, "bytes": 60}}, "items": []},
        "interval": {"level": 0.95, "min_dialogues": 5}, "notes": [EVIL], "exact_match_kinds": [EVIL], "models": [model],
        "differences": [],
        "answers": [
            {"dialogue": "d", "kind": EVIL, "question": EVIL, "reference": EVIL,
             "answers": {"pivot": {"text": EVIL, "exact": True}}},
        ],
        "samples": [{"prompt": EVIL, "answers": {"pivot": EVIL}}, {"prompt": "p", "answers": {"pivot": None}}],
        "artifacts": [{"stage": "merge", "name": EVIL, "url": EVIL, "bytes": 2048, "fingerprint": "cd", "seconds": 75.0,
                       "parents": {"tokens": "ef"}, "counts": {"rows": 1234, "share": 0.5, EVIL: 7, "nested": {"a": 1}, "flag": True}}],
        "training": {EVIL: [{"step": 1, "sft_loss": 2.0}, {"step": 2, "sft_loss": 1.0}]}, "merge": merge_report(),
        "config": {"evaluation": {"samples": [EVIL]}},
    }  # fmt: skip
