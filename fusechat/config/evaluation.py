"""The run file's section on evaluation."""

import difflib
from typing import Literal

from pydantic import Field, model_validator

from .paths import FolderPath, PathText
from .secrets import refuse_key_as_variable, refuse_url_secrets
from .section import Name, Section

Form = Literal["prompts", "mt_bench", "alpaca_eval"]
"""What a file of questions holds, and how their answers are written."""


EXACT, SAMPLES = "exact", "samples"
"""Names of the sets that every run may have: held-out dialogues before their last answer, and `questions.samples`."""
SAMPLED_ROLES = ("pivot", "sft", "fused")
"""Roles of the models that answer the samples."""


class AnswerSetSection(Section):
    """A file of questions that every measured model answers, by vLLM on Ray."""

    name: Name
    """Short name; names the folder of its answers."""
    file: PathText
    """Questions: `.txt` (a prompt per line), JSON or JSON lines, MT-Bench's question file, AlpacaEval's instructions."""
    form: Form = "prompts"
    """What the file holds. Answers to the first two are written as FastChat's model answers, to the last as AlpacaEval's."""
    max_new_tokens: int = Field(1024, ge=1)
    """Longest answer to one turn, tokens."""
    temperature: float | None = Field(None, ge=0)
    """Of the sampling; default: 0, and in MT-Bench what FastChat takes for each category."""


JUDGE_MEANS = ("concurrency", "max_attempts", "backoff_seconds", "timeout_seconds", "key_variable", "limit_parameter")
"""Fields of the judge that say how verdicts are fetched, not what they are."""


class JudgeSection(Section):
    """A judge behind an OpenAI-compatible endpoint, for the answers to `evaluation.questions.sets`."""

    url: str
    """Base URL, such as `https://host/v1`; `/chat/completions` is added."""
    model: str
    """The judge's name at that endpoint."""
    key_variable: str | None = None
    """Environment variable that holds the key; the key itself never stands in a run file."""
    modes: list[Literal["single", "pairwise"]] = ["single"]
    """`single`: a score from 1 to 10 for each answer; `pairwise`: each model's answer against the baseline's, in both orders."""
    baseline: str = "sft"
    """Model that pairwise verdicts are against, as in `evaluation.models`."""
    repeats: int = Field(3, ge=1)
    """Times that each verdict is asked for; from two on the judge's own noise is measured."""
    temperature: float | None = Field(0.0, ge=0)
    """Of the judge; null: not sent, for judges that refuse it."""
    max_tokens: int | None = Field(512, ge=16)
    """Longest verdict, tokens, with what the judge thinks before; a longer one counts as nonsense. null: not sent."""
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit."""
    concurrency: int = Field(8, ge=1)
    """Requests at once."""
    max_attempts: int = Field(6, ge=1)
    """Tries of one request, when the endpoint is busy, broken or silent."""
    backoff_seconds: float = Field(1.0, gt=0)
    """Wait before the second try; doubled for each further one, unless the endpoint says how long."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Longest wait for one reply."""
    prompt_price: float = Field(0.0, ge=0)
    """Price of a million tokens that the judge reads, in any currency."""
    completion_price: float = Field(0.0, ge=0)
    """Price of a million tokens that it writes."""

    @model_validator(mode="after")  # of the whole section, whose message does not repeat the value as a field's does
    def _no_secret(self) -> "JudgeSection":
        refuse_url_secrets(self.url)
        if self.key_variable is not None:
            refuse_key_as_variable(self.key_variable)
        return self


class HeldOutSection(Section):
    """The loss on held-out dialogues, and the divergence from the teachers' rows."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Dtype of weights and activations of whatever is measured; auto: float32 on CPUs, what the checkpoint says on GPUs."""
    divergence_dialogues: int = Field(64, ge=0)
    """Dialogues, as many of each split, drawn by the run's seed, on whose rows the divergence from each teacher is measured; 0: none."""


class ExactSection(Section):
    """Held-out dialogues whose last answer is compared by exact match."""

    kinds: list[str] = []
    """Kinds of dialogue whose last assistant turn is a short exact answer: models are asked, and compared by exact match."""
    max_new_tokens: int = Field(48, ge=1)
    """Longest answer, tokens; also of an answer to `questions.samples`."""


class QuestionsSection(Section):
    """What the models are asked beside the held-out dialogues."""

    sets: list[AnswerSetSection] = []
    """Sets of questions for the models to answer."""
    samples: list[str] = []
    """Prompts answered by the pivot, the SFT-only control and the fused model, to look at."""


class LmEvalSection(Section):
    """Benchmarks of EleutherAI's harness; needs the extra `lm-eval`."""

    tasks: list[str] = []
    """Tasks for every measured model, under its template."""
    folder: FolderPath | None = None
    """Folder of further task files."""
    limit: int | None = Field(None, ge=1)
    """Questions of each task; default: all of them."""
    unsafe_code: bool = False
    """Let the harness run, on the workers' machines, code that the models write: tasks such as `humaneval` and `mbpp` ask for it."""


EVALUATION_MEANS = {"judge": set(JUDGE_MEANS), "lm_eval": {"unsafe_code"}}
"""Fields of the section that say how figures are reached, not what they are, as pydantic's `exclude` takes them."""


class EvaluationSection(Section):
    """How good the models are."""

    models: list[str] | None = None
    """Models to measure, out of `pivot`, `sft`, `target.NAME`, `fused`, `round.NUMBER`, `source.NAME`; default: all of them."""
    sources: bool = True
    """Also measure the sources, each under its own tokenizer and template (only where `models` names none)."""
    held_out: HeldOutSection = HeldOutSection()
    """Loss and divergence."""
    exact: ExactSection = ExactSection()
    """Exact answers."""
    questions: QuestionsSection = QuestionsSection()
    """What the models are asked beside them."""
    judge: JudgeSection | None = None
    """Who judges the answers to `questions.sets`; default: nobody."""
    lm_eval: LmEvalSection = LmEvalSection()
    """Benchmarks."""

    @model_validator(mode="after")
    def _sets_fit(self) -> "EvaluationSection":
        names = [answer_set.name for answer_set in self.questions.sets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"questions.sets: two are called {twice[0]!r}; give each a name of its own")
        if taken := {EXACT, SAMPLES} & set(names):
            raise ValueError(
                f"questions.sets: found the name {min(taken)!r}, which a run's own questions have; take another"
            )
        if self.judge is not None and not names:
            raise ValueError("judge: there are no answers to judge; name questions in evaluation.questions.sets")
        return self

    def set_names(self, model_id: str) -> list[str]:
        """Names of the sets of questions that a measured model answers."""
        own = [EXACT] if self.exact.kinds else []
        own += [SAMPLES] if self.questions.samples and model_id in SAMPLED_ROLES else []
        return own + [one.name for one in self.questions.sets]

    def measured(self, known: list[str]) -> list[str]:
        """Ids of the models that are measured, out of those that the run will have, in their order."""
        wanted = self.models or [name for name in known if self.sources or not name.startswith("source.")]
        return [name for name in known if name in wanted]

    def check_models(self, known: list[str]) -> None:
        """Raises ValueError for a model that the run will not have (the nearest is named), or a baseline that is not measured."""
        for name in self.models or []:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the run has {', '.join(known)}"
                raise ValueError(f"evaluation.models: found {name!r}, which this run does not have; {hint}")
        measured = self.measured(known)
        if self.judge is not None and "pairwise" in self.judge.modes and self.judge.baseline not in measured:
            raise ValueError(
                f"evaluation.judge.baseline: found {self.judge.baseline!r}, the models that answer are "
                f"{', '.join(measured)}; name one of these"
            )
