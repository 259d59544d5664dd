"""Answers to prompts in memory, by one engine that is opened for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusechat.config import EngineSection
from fusechat.models.process_memory import without_garbage_collection
from fusechat.models.stop_ids import own_stop_ids


def generate_texts(
    model: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    template: str | None,
    template_arguments: Mapping[str, Any],
    engine: EngineSection,
) -> list[str]:
    """A text per row; `fusechat.generate` says the rest.

    Raises:
        DialogueError: a row that is no prompt, or that the template refuses.
        ModelError: a model that cannot be used.
        EngineError: the engine did not start, or died.
    """
    with without_garbage_collection():
        from fusechat.text.chat_template import load_tokenizer
        from fusechat.text.prompt_rows import read_prompts
        from fusechat.text.rendered import ChatTemplate
        from fusechat.text.template_heads import spoken
        from fusechat.text.tokenization import tokenize_prompt

        from ..engine.engine import Engine

    asked = read_prompts(rows)
    if not asked:
        return []
    tokenizer, text = load_tokenizer(model, template=template)
    chat_template = ChatTemplate(text, template_arguments)
    prompts = [np.array(tokenize_prompt(tokenizer, chat_template, messages), np.int32) for messages in asked]
    own = own_stop_ids(Path(model)) if Path(model).is_dir() else []
    stops = sorted({*own, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
    longest = max(map(len, prompts)) + max_new_tokens
    with Engine(model, max_tokens=longest, section=engine, face="generate") as opened:
        answers = opened.generate(
            prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop_token_ids=stops, seed=seed
        )
    return [spoken(tokenizer, chat_template, ids.tolist()) for ids in answers]
