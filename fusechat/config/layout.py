"""Where everything of a run lies: names of artifacts in, folders and URLs out. Knows nothing about what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .training import JOINT

IfChanged = Literal["refuse", "restart"]

KINDS = {
    "dialogues": "dialogues", "tokens": "tokens", "logprobs": "logprobs", "aligned": "aligned", "choice": "choice",
    "targets": "target", "fused": "fused", "answers": "answers", "held_out": "logprobs", "held_out_aligned": "aligned",
    "chosen": "chosen", "harness": "harness", "writing/prompts": "prompts", "writing/answers": "answers",
    "writing/dialogues": "written", "asked": "asked",
}  # fmt: skip
"""First part of an artifact's key, or the first two -> the kind that its record names."""
ON_STORE = ("tokens", "logprobs", "aligned", "choice", "held_out", "held_out_aligned", "chosen")
"""Those that lie below `run.store`; all others lie in the run's folder."""


def teacher_key(name: str, split: str, *, is_pivot: bool) -> str:
    """Key of a teacher's rows on the pivot's tokens of a split, `train` or `held_out`."""
    if split == "train":
        return f"logprobs/{name}" if is_pivot else f"aligned/{name}"
    return "held_out/pivot" if is_pivot else f"held_out_aligned/{name}"


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

    @property
    def asked_path(self) -> Path:
        """Folder of what a round asks its student, and of the given dialogues that it learns beside its answers."""
        return Path(self.url("asked"))

    def target_path(self, name: str) -> Path:
        """Model folder of a target (a source's name, `joint`, or `sft` for the control)."""
        return Path(self.url(f"targets/{name}"))

    def round_path(self, number: int) -> Path:
        """Folder of a round, which is a run of its own."""
        return self.run_folder / "rounds" / str(number)

    def round_student_path(self, number: int) -> Path:
        """Model folder of the student that a round trains."""
        return self.round_path(number) / "targets" / JOINT

    def held_out_url(self, model_id: str) -> str:
        """Rows of a measured model on the held-out dialogues."""
        return self.url(f"held_out/{model_id}")

    def held_out_aligned_url(self, source: str) -> str:
        """A source's rows on the held-out dialogues, on the pivot's tokens."""
        return self.url(f"held_out_aligned/{source}")

    def chosen_url(self, model_id: str, split: str, teacher: str) -> str:
        """What a measured model says of the ids of a teacher's rows on dialogues of a split."""
        return self.url(f"chosen/{model_id}/{split}.{teacher}")

    def harness_path(self, model_id: str) -> Path:
        """Folder of a measured model's figures of lm-eval."""
        return Path(self.url(f"harness/{model_id}"))

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
        """JSON Lines file of what a step did: `run`, `extract.NAME`, `align.NAME`, `held_out.ID`, `answer.ID`."""
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


@dataclass(frozen=True)
class RunLayout(Places):
    """The places of one run, and what to do with work of another recipe that stands there."""

    run_folder: Path
    store_url: str
    places: Mapping[str, str]
    if_changed: IfChanged = "refuse"
