"""Where everything of a run lies: names of artifacts in, folders and URLs out. Knows nothing about what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

IfChanged = Literal["refuse", "restart"]


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

    def _place(self, key: str, base: str | Path) -> str:
        return self.places.get(key) or f"{base}/{key}"

    def tokens_url(self, name: str, split: str = "train") -> str:
        """Tokens artifact of a model; split is `train` or `held_out`."""
        return self._place(f"tokens/{name}" + ("" if split == "train" else f".{split}"), self.store_url)

    def logprobs_url(self, name: str) -> str:
        """Logprobs store of a model."""
        return self._place(f"logprobs/{name}", self.store_url)

    def aligned_url(self, source: str) -> str:
        """Aligned store of a source."""
        return self._place(f"aligned/{source}", self.store_url)

    @property
    def choice_url(self) -> str:
        """Artifact that says which source teaches which dialogue."""
        return self._place("choice", self.store_url)

    def target_path(self, name: str) -> Path:
        """Model folder of a target (a source's name, `joint`, or `sft` for the control)."""
        return Path(self._place(f"targets/{name}", self.run_folder))

    def answers_path(self, answer_set: str, model_id: str) -> Path:
        """Folder of a model's answers to a set of questions."""
        return Path(self._place(f"answers/{answer_set}/{model_id}", self.run_folder))

    @property
    def prompts_path(self) -> Path:
        """Folder of the checked prompts, prompts.jsonl."""
        return Path(self._place("writing/prompts", self.run_folder))

    def written_answers_path(self, writer: str) -> Path:
        """Folder of all answers of a writer to the prompts."""
        return Path(self._place(f"writing/answers/{writer}", self.run_folder))

    @property
    def written_path(self) -> Path:
        """Folder of the dialogues that were kept of all answers, and of the verdicts on all of them."""
        return Path(self._place("writing/dialogues", self.run_folder))

    @property
    def verdicts_path(self) -> Path:
        """File of the judge's replies."""
        return Path(self._place("verdicts.jsonl", self.run_folder))

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
        return Path(self._place("dialogues", self.run_folder))

    @property
    def fused_path(self) -> Path:
        """Model folder of the fused model."""
        return Path(self._place("fused", self.run_folder))

    @property
    def report_path(self) -> Path:
        """Folder of the report."""
        return self.run_folder / "report"

    @property
    def measured_path(self) -> Path:
        """Folder of what was measured of each model."""
        return Path(self._place("measured", self.run_folder))


@dataclass(frozen=True)
class RunLayout(Places):
    """The places of one run, and what to do with work of another recipe that stands there."""

    run_folder: Path
    store_url: str
    places: Mapping[str, str]
    if_changed: IfChanged = "refuse"
