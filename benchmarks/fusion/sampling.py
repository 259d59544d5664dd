"""Answers drawn off a plain transformers forward: a small model and prompts in, texts out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusechat.text.dialogues import Message
from fusechat.text.tokenization import tokenize_prompt

MAX_NEW_TOKENS = 16
"""Of an answer, which is one word."""


@torch.inference_mode()
def sample(
    folder: Path, prompts: Sequence[Sequence[Message]], samples: int, temperature: float, seed: int
) -> list[list[str]]:
    """A model's answers to prompts, drawn at a temperature; "" where it broke off or said nothing that a dialogue holds."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    begun = [tokenize_prompt(tokenizer, tokenizer.chat_template, prompt) for prompt in prompts for _ in range(samples)]
    lengths = torch.tensor([len(ids) for ids in begun])
    ids = torch.zeros((len(begun), int(lengths.max()) + MAX_NEW_TOKENS), dtype=torch.long)
    for row, start in enumerate(begun):
        ids[row, : len(start)] = torch.tensor(start)
    generator = torch.Generator().manual_seed(seed)
    ends = torch.zeros(len(begun), dtype=torch.long)  # where an answer stopped; 0: not yet
    for step in range(MAX_NEW_TOKENS):
        left = torch.nonzero(ends == 0)[:, 0]
        if not len(left):
            break
        at = lengths[left] + step
        hidden = model.model(input_ids=ids[left, : int(at.max())], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[torch.arange(len(left)), at - 1]).float()
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        ids[left, at] = drawn
        ends[left] = torch.where(drawn == tokenizer.eos_token_id, at, 0)
    texts = []
    for row in range(len(begun)):
        answer = ids[row, lengths[row] : ends[row]].tolist() if ends[row] else []
        special = set(answer) & {*tokenizer.all_special_ids, *tokenizer.encode("<q><a>")}
        texts.append("" if special else str(tokenizer.decode(answer)).strip())
    return [["" if "\ufffd" in t else t for t in texts[i : i + samples]] for i in range(0, len(texts), samples)]
