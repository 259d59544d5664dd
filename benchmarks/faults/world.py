"""The runs that are disturbed: tiny models and dialogues, undisturbed runs, and run folders up to any stage.

Everything is made once below one folder and found there again, so that a whole collection may go on another day.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import command
from .equal import contents

ROOT = Path(__file__).parents[2]
STAGES = ("tokenize", "extract", "align", "train", "merge", "evaluate")
MADE = {
    "tokenize": ("dialogues", "tokens"), "extract": ("logprobs",), "align": ("aligned",), "train": ("choice", "targets"),
    "merge": ("fused",), "evaluate": ("measured", "report"),
}  # fmt: skip
"""Stage -> folders of a run that it makes."""

VARIANTS: dict[str, dict[str, Any]] = {
    "rows": {"training": {"row_choice": "source"}, "evaluation": {"models": ["fused"]}},
    "joint": {"training": {"row_choice": "trusted", "fusion": "both"}, "evaluation": {"models": ["pivot", "fused"]}},
}
"""Two runs: in the first every row teaches, in the second a choice stands before the targets, one of which is joint. Few models
are measured: starting their engines takes most of a run's time.
"""
ON_RAY: dict[str, Any] = {
    "training": {"row_choice": "source"}, "merge": {"max_shard_bytes": 120_000}, "evaluation": {"models": ["fused"]},
    "cluster": {"training_workers": 2, "max_attempts": 3, "num_cpus": None},
}  # fmt: skip
"""The run whose every stage is done by Ray's workers; two of them train a target together."""
SPREAD: dict[str, Any] = {
    "pivot": {"engine": {"tensor_parallel_size": 2, "kv_cache_gib": 0.05}}, "training": {"row_choice": "source"},
    "evaluation": {"models": ["fused"]}, "cluster": {"max_attempts": 3, "num_cpus": None},
}  # fmt: skip
"""The run whose pivot is spread over two ranks."""


@dataclass(frozen=True)
class Run:
    """One disturbed run: where it lies and how its command is given."""

    file: Path
    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Of the command `fusechat`."""
        given = (f"run.output={self.folder}", *self.overrides)
        return ["run", "-c", str(self.file), *(part for value in given for part in ("--set", value))]


class World:
    """All that trials start from."""

    def __init__(self, base: Path) -> None:
        self.base = base.resolve()
        self.inputs = self.base / "inputs"
        if not (self.inputs / "whole").exists():
            self._make_inputs()
        self.models = {name: self.inputs / name for name in ("llama", "mixtral")}
        self._reference: dict[str, dict[str, bytes]] = {}

    def _make_inputs(self) -> None:
        sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests")]
        import tiny_models
        from conftest import _dialogue

        shutil.rmtree(self.inputs, ignore_errors=True)
        tiny_models.save_llama(self.inputs / "llama")
        tiny_models.save_mixtral(self.inputs / "mixtral")
        for split, first in (("train", 0), ("held_out", 1000)):
            rows = [json.dumps(_dialogue(first + number), ensure_ascii=False) for number in range(14)]
            (self.inputs / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (self.inputs / "whole").touch()

    def run_file(self, variant: str, values: Mapping[str, Any] | None = None) -> Path:
        """The run file of a variant."""
        file = self.base / f"{variant}.yaml"
        if not file.exists():
            document: dict[str, Any] = {
                "run": {"output": str(self.base / "unused")},
                "pivot": {"name": "llama", "model": str(self.models["llama"])},
                "sources": [{"name": "mixtral", "model": str(self.models["mixtral"])}],
                "dialogues": {"train": [str(self.inputs / "train.jsonl")], "held_out": [str(self.inputs / "held_out.jsonl")],
                              "max_tokens": 256},
                "extraction": {"k": 5, "shard_tokens": 256, "self_check_dialogues": 1},
                "training": {"trl": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                                     "learning_rate": 1e-3, "save_steps": 1}},
                "evaluation": {"exact": {"kinds": ["arithmetic"], "max_new_tokens": 8}, "questions": {"samples": ["Say hello."]}},
                "cluster": {"engines": 1, "num_cpus": 1},
            }  # fmt: skip
            for section, fields in (values or VARIANTS[variant]).items():
                document[section] = {**document.get(section, {}), **fields}
            file.write_text(yaml.safe_dump(document), encoding="utf-8")
        return file

    def undisturbed(self, variant: str, make: Callable[[Run], command.Ending] | None = None) -> Path:
        """Folder of a whole run without a fault."""
        folder = self.base / "undisturbed" / variant
        mark = folder.with_name(f"{variant}.whole")
        if not mark.exists():
            shutil.rmtree(folder, ignore_errors=True)
            run = Run(self.run_file(variant), folder)
            ending = make(run) if make else command.run(run.arguments)
            assert ending.status == 0, ending.stderr[-3000:]
            mark.touch()
        return folder

    def reference(self, variant: str) -> dict[str, bytes]:
        """What an undisturbed run leaves, as it is compared."""
        if variant not in self._reference:
            self._reference[variant] = contents(self.undisturbed(variant))
        return self._reference[variant]

    def begin(self, variant: str, stage: str, folder: Path, overrides: tuple[str, ...] = ()) -> Run:
        """A run whose stages before `stage` stand; `done`: all of them."""
        shutil.rmtree(folder, ignore_errors=True)
        whole = self.undisturbed(variant)
        later = STAGES[STAGES.index(stage) :] if stage in STAGES else ()
        gone = {whole / name for made in later for name in MADE[made]}
        shutil.copytree(whole, folder, ignore=lambda place, names: [n for n in names if Path(place, n) in gone])
        return Run(self.run_file(variant), folder, overrides)
