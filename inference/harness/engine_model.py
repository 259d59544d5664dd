"""A measured model as the harness asks it: texts in; logprobs and answers out, which an engine gives.

The harness gives all requests of a kind at once, so that an engine is opened for the longest of them and its batches are full.
Knows nothing about tasks, artifacts or where the engine stands.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from fusechat.errors import ConfigError, DialogueError, ModelError
from fusechat.text.dialogues import Dialogue
from fusechat.text.rendered import ChatTemplate
from fusechat.text.template_heads import spoken
from fusechat.text.template_text import TemplateText

from ..capture.rows import TopKRows

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

ANSWER_TOKENS = 256
"""Longest answer where a task does not say: the harness's own default."""
SAMPLING = frozenset({"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"})
"""What a task may set of sampling beside its temperature."""
OTHER_WISHES = frozenset({"until", "max_gen_toks", "do_sample", "temperature"})

Pair = tuple[Any, list[int], list[int]]
"""What the harness keys a request by, token ids of its context, and of its continuation."""


class Asked(Protocol):
    """Whoever has the engines: each call gives the longest that it asks, in tokens."""

    def score(
        self, token_ids: Sequence[np.ndarray], is_scored: Sequence[np.ndarray], chosen_ids: Sequence[np.ndarray] | None
    ) -> list[TopKRows]:
        """As `Engine.score`; `chosen_ids` where `gives_chosen_ids`."""
        ...

    def generate(
        self, prompts: Sequence[np.ndarray], *, max_new_tokens: int, temperature: float, stop: Sequence[str], seed: Sequence[int],
        sampling: Mapping[str, float],
    ) -> list[np.ndarray]:  # fmt: skip
        """As `Engine.generate`, with the model's own ends of turn."""
        ...

    @property
    def gives_chosen_ids(self) -> bool:
        """Whether `score` takes chosen ids."""
        ...


class EngineModel(TemplateLM):  # type: ignore[misc]
    """One model for the harness."""

    def __init__(
        self, engines: Asked, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, *, max_length: int, seed: int
    ) -> None:  # fmt: skip
        """
        Args:
            max_length: tokens that the model reads.
            seed: of sampled answers.
        """
        super().__init__()
        self._engines, self.tokenizer, self._template, self._seed = engines, tokenizer, template, seed
        tokenizer.chat_template = template.text  # what the harness records
        self._text = TemplateText(tokenizer, template)
        self.max_length = max_length

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a text; None: the tokenizer names none."""
        last: int | None = self.tokenizer.eos_token_id
        return last

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without a context: the one that begins texts, else the one that ends them."""
        first: int | None = self.tokenizer.bos_token_id
        first = self.eot_token_id if first is None else first
        if first is None:
            raise ModelError(
                f"{self._text.name}: the tokenizer names neither a bos_token nor an eos_token, and a task of lm-eval has texts "
                "without a context; set one in tokenizer_config.json"
            )
        return first

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its cache of requests by."""
        return self._text.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of messages; without a prompt it ends with the last of them, which the model goes on with."""
        asked = Dialogue("a question of lm-eval", ())
        try:
            text = self._text.write(asked, chat_history, add_generation_prompt)
        except DialogueError:  # as the harness's own models do where a template knows no system message
            chat_history = [message for message in chat_history if message["role"] != "system"]
            text = self._text.write(asked, chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        said = chat_history[-1]["content"].strip()
        return text[: text.rindex(said) + len(said)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; where a text begins with the token that begins texts, no second one is put before it."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.bos_token):
            add_special_tokens = False
        keywords = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **keywords))

    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        """Logprob, nats, of each continuation, and whether the model would have said it.

        Continuations of one token behind the same context (the letters of a multiple choice) are read in one forward.
        """
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        for number, (_, context, continuation) in enumerate(requests):
            is_one = len(continuation) == 1 and self._engines.gives_chosen_ids
            groups[tuple(context) if is_one else number].append(number)
        numbers = list(groups.values())
        dialogues = [self._dialogue(requests[group[0]]) for group in numbers]
        chosen = [self._choices([requests[number] for number in group]) for group in numbers]
        rows = self._engines.score(
            [ids for ids, _ in dialogues],
            [marks for _, marks in dialogues],
            chosen if self._engines.gives_chosen_ids else None,
        )
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for group, (ids, marks), one in zip(numbers, dialogues, rows, strict=True):
            if len(group) == 1:
                says = bool((one.topk_ids[:, 0] == ids[marks]).all())
                results[group[0]] = (float(one.label_logprob.sum(dtype=np.float64)), says)
                continue
            assert one.chosen_logprobs is not None, "several choices are asked only where they are given"
            for place, number in enumerate(group):
                says = bool(one.topk_ids[0, 0] == requests[number][2][0])
                results[number] = (float(one.chosen_logprobs[0, place]), says)
        return results

    def _dialogue(self, request: Pair) -> tuple[np.ndarray, np.ndarray]:
        """A request's int32 ids, cut on the left to what the model reads, and the marks of its continuation."""
        _, context, continuation = request
        if len(continuation) >= self.max_length:
            raise ConfigError(
                f"evaluation.lm_eval.tasks: found a continuation of {len(continuation)} tokens, {self._text.name} reads "
                f"{self.max_length}; leave its task out"
            )
        ids = np.array((context + continuation)[-self.max_length :], np.int32)
        marks = np.zeros(len(ids), bool)
        marks[len(ids) - len(continuation) :] = True
        return ids, marks

    def _choices(self, requests: Sequence[Pair]) -> np.ndarray:
        """int32 [targets, choices] of one dialogue; no choices where its label is all that is asked."""
        if len(requests) == 1:
            return np.zeros((len(requests[0][2]), 0), np.int32)
        return np.array([[continuation[0] for _, _, continuation in requests]], np.int32)

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Logprob, nats, of each whole text, read in windows of what the model reads."""
        windows: list[Pair] = []
        ends: list[int] = []
        for (text,) in (request.args for request in requests):
            pieces = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            windows += [(None, *make_disjoint_window(piece)) for piece in pieces]
            ends.append(len(windows))
        logprobs = [logprob for logprob, _ in self._loglikelihood_tokens(windows)]
        return [sum(logprobs[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt up to where its task wants it cut, without reasoning."""
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        wishes = [wishes_of(dict(request.args[1])) for request in requests]
        for number, wish in enumerate(wishes):
            groups[repr(wish)].append(number)
        answers = [""] * len(requests)
        for group in groups.values():
            longest, temperature, until, sampling = wishes[group[0]]
            room = self.max_length - longest
            if room < 1:
                raise ConfigError(
                    f"evaluation.lm_eval.tasks: found answers of {longest} tokens, {self._text.name} reads {self.max_length} with "
                    "the question; leave their task out"
                )
            made = self._engines.generate(
                [np.array(self.tok_encode(requests[number].args[0])[-room:], np.int32) for number in group],
                max_new_tokens=longest, temperature=temperature,
                stop=() if self._template.reasons else until,  # a thought may hold what ends an answer
                seed=[self._seed + number for number in group], sampling=sampling,
            )  # fmt: skip
            for number, ids in zip(group, made, strict=True):
                said = spoken(self.tokenizer, self._template, ids.tolist())
                if self._template.reasons:
                    said = said.lstrip()  # the lines between thought and answer
                answers[number] = postprocess_generated_text(said, until, None)
        return answers


def wishes_of(keywords: dict[str, Any]) -> tuple[int, float, list[str], dict[str, float]]:
    """Longest answer, temperature, what ends an answer, and further settings of sampling, as a task asks for them.

    Raises:
        ConfigError: a setting that engines do not have.
    """
    wanted = dict(normalize_gen_kwargs(keywords, ANSWER_TOKENS))
    if wanted.get("num_beams") == 1:  # no search: what an engine does
        del wanted["num_beams"]
    sampling = {name: value for name, value in wanted.items() if name not in OTHER_WISHES}
    if strange := sorted(sampling.keys() - SAMPLING):
        raise ConfigError(
            f"evaluation.lm_eval.tasks: a task sets {', '.join(strange)}, expected of sampling: {', '.join(sorted(SAMPLING))}; "
            "leave the task out"
        )
    temperature = float(wanted.get("temperature", 0.0)) if wanted["do_sample"] else 0.0
    until = [text for text in wanted["until"] if text]
    return wanted["max_gen_toks"], temperature, until, sampling
