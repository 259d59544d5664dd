"""The model that lm-eval asks: cut texts, choices with and without chosen ids, thoughts, and what no engine does."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plain_engine import PlainEngine
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.errors import ConfigError
from fusechat.text.rendered import ChatTemplate

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
from lm_eval.models.huggingface import HFLM

from inference.harness.engine_model import EngineModel, wishes_of

CONTEXT = "The quick brown fox jumps over the lazy dog, and 3 + 4 = 7, so there are seven"
PAIRS = [(CONTEXT, choice) for choice in (" apples", "A", "B", "C")] + [("", "Hello there"), (CONTEXT, "D")]
TEXT = "Hello! How are you today? " * 6
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class PlainEngines:
    """Plain engines that are opened as a worker opens them, or answers that are given."""

    def __init__(self, folder: Path, *, gives_chosen_ids: bool = True, said: str | None = None) -> None:
        self.gives_chosen_ids, self._said = gives_chosen_ids, said
        self._engine = PlainEngine(str(folder), max_tokens=1000)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.stops: list[Sequence[str]] = []
        self.num_read = 0

    def score(self, token_ids: Any, is_scored: Any, chosen_ids: Any) -> Any:
        assert (chosen_ids is not None) == self.gives_chosen_ids
        self.num_read += len(token_ids)
        return self._engine.score(token_ids, is_scored, chosen_ids)

    def generate(self, prompts: Any, *, stop: Sequence[str], **settings: Any) -> Any:
        self.stops.append(stop)
        if self._said is not None:
            return [np.array(self._tokenizer(self._said).input_ids, np.int32)] * len(prompts)
        return self._engine.generate(prompts, **settings)


def model_of(engines: PlainEngines, template: ChatTemplate, folder: Path, max_length: int = 1000) -> EngineModel:
    return EngineModel(engines, AutoTokenizer.from_pretrained(folder), template, max_length=max_length, seed=0)


def requests_of(pairs: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [SimpleNamespace(args=pair) for pair in pairs]


@pytest.mark.parametrize("max_length", [1000, 24])
@pytest.mark.parametrize("gives_chosen_ids", [True, False])
def test_logprobs_are_those_of_the_harness_s_own_model_where_texts_are_cut_too(
    tiny_models: dict[str, Path], max_length: int, gives_chosen_ids: bool
) -> None:
    folder = tiny_models["llama"]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    # Of a text that it cuts, the harness's own model does not count the last token, which it need not read.
    own = HFLM(
        pretrained=network, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1, max_length=max_length - 1
    )
    engines = PlainEngines(folder, gives_chosen_ids=gives_chosen_ids)
    model = model_of(engines, ChatTemplate("{{ messages }}"), folder, max_length)
    for (logprob, says), (expected, expects) in zip(
        model.loglikelihood(requests_of(PAIRS), disable_tqdm=True), own.loglikelihood(requests_of(PAIRS), disable_tqdm=True),
        strict=True,
    ):  # fmt: skip
        assert logprob == pytest.approx(expected, rel=1e-4) and says == expects
    ones = [model.tok_encode(CONTEXT + text)[len(model.tok_encode(CONTEXT)) :] for _, text in PAIRS]
    saved = sum(len(one) == 1 for one, (context, _) in zip(ones, PAIRS, strict=True) if context) - 1
    assert saved > 0 and engines.num_read == len(PAIRS) - (saved if gives_chosen_ids else 0)
    assert model.loglikelihood_rolling(requests_of([(TEXT,), ("Hi",)])) == pytest.approx(
        own.loglikelihood_rolling(requests_of([(TEXT,), ("Hi",)]), disable_tqdm=True), rel=1e-4
    )


def test_a_thought_is_no_part_of_an_answer_and_may_hold_what_ends_one(tiny_models: dict[str, Path]) -> None:
    folder, asked = tiny_models["llama"], requests_of([("How many?", {"until": ["\n"], "max_gen_toks": 50})])
    said = "<think>\nLet me see.\nThree?\n</think>\n\nFour.\nOr five."
    engines = PlainEngines(folder, said=said)
    assert model_of(engines, ChatTemplate(THINKING, reasons=True), folder).generate_until(asked) == ["Four."]
    assert engines.stops == [()]
    engines = PlainEngines(folder, said="Four.\nOr five.")
    assert model_of(engines, ChatTemplate(THINKING), folder).generate_until(asked) == ["Four."]
    assert engines.stops == [["\n"]]


def test_a_text_that_the_model_goes_on_with_ends_with_its_words(tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["llama"]
    model = model_of(PlainEngines(folder), ChatTemplate(THINKING), folder)
    asked = [{"role": "user", "content": "How many?"}]
    assert model.apply_chat_template(asked).endswith("<|im_start|>assistant\n")
    begun = model.apply_chat_template([*asked, {"role": "assistant", "content": "There are "}], False)
    assert begun.endswith("<|im_start|>assistant\nThere are")


def test_what_no_engine_does_is_refused_and_not_left_out(tiny_models: dict[str, Path]) -> None:
    asked = {"until": ["\n", ""], "max_gen_toks": 5, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    assert wishes_of(asked) == (5, 0.5, ["\n"], {"top_p": 0.9})
    assert wishes_of({"until": "x", "temperature": 0.7, "do_sample": False}) == (256, 0.0, ["x"], {})
    refused = r"a task sets num_beams, expected of sampling: frequency_penalty, .*leave the task out"
    with pytest.raises(ConfigError, match=refused):
        wishes_of({"num_beams": 4})
    model = model_of(PlainEngines(tiny_models["llama"]), ChatTemplate("{{ messages }}"), tiny_models["llama"], 20)
    with pytest.raises(ConfigError, match=r"found answers of 20 tokens, .*reads 20 with the question"):
        model.generate_until(requests_of([("Hi", {"until": [], "max_gen_toks": 20})]))
    with pytest.raises(ConfigError, match=r"found a continuation of [0-9]+ tokens, .* reads 20; leave its task out"):
        model.loglikelihood(requests_of([("Hi", TEXT)]), disable_tqdm=True)
