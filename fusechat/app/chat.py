"""`fusechat chat`: talk to one or several models on the terminal."""

import sys
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..text.dialogues import Message
from ..text.prompt_file import read_prompt_file


def chat_loop(models: list[str], *, max_new_tokens: int, temperature: float) -> None:
    """Read a line and answer it, until the input ends or says `/quit`; `/reset` forgets the dialogue.

    One model's answer is streamed; those of several stand side by side, each model going on with its own.

    Raises:
        ModelError: a folder is no chat model.
    """
    speakers = [_Speaker(model, max_new_tokens, temperature) for model in models]
    print(f"{', '.join(models)}: /reset forgets the dialogue, /quit ends", file=sys.stderr)
    for line in _lines():
        if line == "/quit":
            return
        if line == "/reset":
            for speaker in speakers:
                speaker.messages.clear()
        elif len(speakers) == 1:
            speakers[0].answer(line, stream=True)
        else:
            answers = [speaker.answer(line, stream=False) for speaker in speakers]
            _show_side_by_side(short_names(models), answers)


class _Speaker:
    """A loaded model and its dialogue."""

    def __init__(self, model: str, max_new_tokens: int, temperature: float) -> None:
        self.model = model
        self.messages: list[Message] = []
        self._tokenizer, self._network = _load(model)
        self._template = read_prompt_file(Path(model), self._tokenizer.get_chat_template())
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, **sampling}

    def answer(self, line: str, *, stream: bool) -> str:
        """The answer to a line, kept in the dialogue."""
        import torch
        from transformers import TextStreamer

        from ..text.template_heads import spoken
        from ..text.tokenization import tokenize_prompt

        tokenizer = self._tokenizer
        self.messages.append(Message("user", line))
        prompt = torch.tensor([tokenize_prompt(tokenizer, self._template, self.messages)], device=self._network.device)
        output = self._network.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), **self._options,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )  # fmt: skip
        text = spoken(tokenizer, self._template, output[0][prompt.shape[1] :].tolist())
        # A template may refuse an empty content; a model that said nothing is quoted as saying so.
        self.messages.append(Message("assistant", text if text.strip() else "(no answer)"))
        return text


def short_names(models: list[str]) -> list[str]:
    """The last parts of the models' paths, as many as tell them apart."""
    for length in range(1, max(len(Path(model).parts) for model in models)):
        names = ["/".join(Path(model).parts[-length:]) for model in models]
        if len(set(names)) == len(models):
            return names
    return models


def _show_side_by_side(names: list[str], answers: list[str]) -> None:
    """A column per model."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=True)
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*map(Text, answers))
    Console(highlight=False).print(table)


def _load(model: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    if not (Path(model) / "config.json").is_file() and (Path(model).exists() or model.count("/") != 1):
        raise ModelError(f"{model}: found no config.json; expected a Hugging Face folder such as runs/quickstart/fused")
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.chat_template is None:
        raise ModelError(f"{model}: has no chat template; a base model cannot chat")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    return tokenizer, network.to(device).eval()


def _lines() -> Any:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
