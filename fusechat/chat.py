"""`fusechat chat`: talk to a model on the terminal."""

import sys
from pathlib import Path
from typing import Any

from .errors import ModelError


def chat_loop(model: str, *, max_new_tokens: int, temperature: float) -> None:
    """Read a line, stream the answer, until the input ends or says `/quit`; `/reset` forgets the dialogue.

    Raises:
        ModelError: the folder is no chat model.
    """
    tokenizer, network = _load(model)
    from transformers import TextStreamer

    messages: list[dict[str, str]] = []
    print(f"{model}: /reset forgets the dialogue, /quit ends", file=sys.stderr)
    for line in _lines():
        if line == "/quit":
            return
        if line == "/reset":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        output = network.generate(
            **inputs.to(network.device), max_new_tokens=max_new_tokens, streamer=streamer,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id, **sampling,
        )  # fmt: skip
        answer = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})


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
    return tokenizer, AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(device).eval()


def _lines() -> Any:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
