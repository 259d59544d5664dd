"""Where everything of a run lies: names of artifacts in, folders and URLs out. Knows nothing about what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

IfChanged = Literal["refuse", "restart"]

KINDS = {
    "dialogues": "dialogues", "tokens": "tokens", "logprobs": "logprobs", "aligned": "aligned", "choice": "choice",
    "targets": "target", "fused": "fused", "answers": "answers", "writing/prompts": "prompts", "writing/answers": "answers",
    "writing/dialogues": "written",
}  # fmt: skip
"""First part of an artifact's key, or the first two -> the kind that its record names."""
ON_STORE = ("tokens", "logprobs", "aligned", "choice")
"""Those that lie below `run.store`; all others lie in the run's folder."""


class Places:
    """What lies where, from a run folder, the base of its stores and the artifacts that stand elsewhere."""

    if TYPE_CHECKING:  # whoever inherits has these, as fields or as properties

        @property
        def run_folder(self) -> Path:
            """Folder of models, reports and logs."""

        @property
        def store_url(self) -> str:
            """Base URL or folder of the stores."""

        @property
        def places(self) -> Mapping[str, str]:
            """Artifacts that stand elsewhere: `aligned/NAME` -> folder or URL."""

    def url(self, key: str) -> str:
        """Folder or URL of what a key names: `aligned/NAME`, `fused`."""
        base = self.store_url if key.split("/")[0] in ON_STORE else self.run_folder
        return self.places.get(key) or f"{base}/{key}"

    def place(self, key: str) -> tuple[str, str]:
        """Folder or URL of an artifact, and its kind."""
        first, *rest = key.split("/")
        return self.url(key), KINDS[first] if first in KINDS else KINDS[f"{first}/{rest[0]}"]

    def tokens_url(self, name: str, split: str = "train") -> str:
        """Tokens artifact of a model; split is `train` or `held_out`."""
        return self.url(f"tokens/{name}" + ("" if split == "train" else f".{split}"))

    def logprobs_url(self, name: str) -> str:
        """Logprobs store of a model."""
        return self.url(f"logprobs/{name}")

    def aligned_url(self, source: str) -> str:
        """Aligned store of a source."""
        return self.url(f"aligned/{source}")

    @property
    def choice_url(self) -> str:
        """Artifact that says which source teaches which dialogue."""
        return self.url("choice")

    def target_path(self, name: str) -> Path:
        """Model folder of a target (a source's name, `joint`, or `sft` for the control)."""
        return Path(self.url(f"targets/{name}"))

    def answers_path(self, answer_set: str, model_id: str) -> Path:
        """Folder of a model's answers to a set of questions."""
        return Path(self.url(f"answers/{answer_set}/{model_id}"))

    @property
    def prompts_path(self) -> Path:
        """Folder of the checked prompts, prompts.jsonl."""
        return Path(self.url("writing/prompts"))

    def written_answers_path(self, writer: str) -> Path:
        """Folder of all answers of a writer to the prompts."""
        return Path(self.url(f"writing/answers/{writer}"))

    @property
    def written_path(self) -> Path:
        """Folder of the dialogues that were kept of all answers, and of the verdicts on all of them."""
        return Path(self.url("writing/dialogues"))

    @property
    def verdicts_path(self) -> Path:
        """File of the judge's replies."""
        return Path(self.url("verdicts.jsonl"))

    def log_path(self, name: str) -> Path:
        """JSON Lines file of what a step did: `run`, `extract.NAME`, `align.NAME`, `answer.ID`."""
        return self.run_folder / "logs" / f"{name}.jsonl"

    @property
    def digests_path(self) -> Path:
        """File that keeps the digests of models' files."""
        return self.run_folder / "digests.json"

    @property
    def dialogues_path(self) -> Path:
        """Folder of the checked dialogues, train.jsonl and held_out.jsonl."""
        return Path(self.url("dialogues"))

    @property
    def fused_path(self) -> Path:
        """Model folder of the fused model."""
        return Path(self.url("fused"))

    @property
    def report_path(self) -> Path:
        """Folder of the report."""
        return self.run_folder / "report"

    @property
    def measured_path(self) -> Path:
        """Folder of what was measured of each model."""
        return Path(self.url("measured"))


@dataclass(frozen=True)
class RunLayout(Places):
    """The places of one run, and what to do with work of another recipe that stands there."""

    run_folder: Path
    store_url: str
    places: Mapping[str, str]
    if_changed: IfChanged = "refuse"
