"""Model cards: the evaluation in a form that the hub's own library reads, replaced and not piled up."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from evaluation.report.cards import write_cards

CARD = "---\nlibrary_name: transformers\ntags: [fusechat]\n---\n\n# Fused model\n\nText.\n"


def document(folder: Path, bits: float) -> dict[str, Any]:
    """A report of the pivot and the fused model."""
    figures = {"bits_per_byte": bits, "low": bits - 0.1, "high": bits + 0.1}
    models = [
        {
            "id": name, "label": name, "role": name, "folder": str(folder / name),
            "loss": {"all": figures, "chat": figures},
            "accuracy": {"all": {"accuracy": 0.5}, "chat": {"accuracy": 0.5}},
        }
        for name in ("pivot", "fused")
    ]  # fmt: skip
    loss = {"difference": -0.01, "low": -0.02, "high": -0.001, "supports": "lower"}
    return {
        "models": models, "held_out": {"dialogues": 9, "kinds": {"chat": {}}}, "config": {"run": {}},
        "differences": [{"model": "fused", "against": "pivot", "loss": {"all": loss}}],
        "harness": {"models": {"fused": {"arc_easy, acc": {"value": 0.25}, "arc_easy, bad": {"value": None}}}},
    }  # fmt: skip


def test_card_carries_the_figures_as_a_model_index_and_keeps_its_own_text(tmp_path: Path) -> None:
    for name in ("pivot", "fused"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(CARD)
    for bits in (2.0, 1.25):
        assert write_cards(document(tmp_path, bits)) == [tmp_path / "fused" / "README.md"]
    text = (tmp_path / "fused" / "README.md").read_text(encoding="utf-8")
    found = {(r.dataset_type, r.metric_name): r.metric_value for r in ModelCard(text).data.eval_results}
    assert found == {
        ("held-out-dialogues", "bits per byte, all"): 1.25, ("held-out-dialogues", "bits per byte, chat"): 1.25,
        ("held-out-dialogues", "exact answers, chat"): 0.5, ("arc_easy", "acc"): 0.25,
    }  # fmt: skip
    assert text.count("## Evaluation") == 1 and "| fused | 1.250 [1.150, 1.350] |" in text
    assert "# Fused model\n\nText." in text and "-0.0100 [-0.0200, -0.0010] bits per byte: lower" in text
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "transformers" and front["tags"] == ["fusechat"]
    assert (tmp_path / "pivot" / "README.md").read_text() == CARD, "a model that came from elsewhere keeps its card"


def test_folder_without_a_card_gets_none(tmp_path: Path) -> None:
    (tmp_path / "fused").mkdir()
    assert write_cards(document(tmp_path, 1.0)) == []
