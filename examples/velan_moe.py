"""A small mixture of experts that speaks Velan: a source of another architecture, vocabulary and chat template.

Training dialogues and the questions to leave out go in; a Hugging Face folder (Mixtral architecture, own byte-level BPE,
own template) comes out. It trains on generated skill dialogues only, loss on what the assistant says; the other
dialogues lend their text to the vocabulary alone, so the model stays a narrow expert. One seed, same weights.
"""

import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import velan
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

PAD, BEGIN, SYSTEM, QUESTION, ANSWER, END = SPECIAL = (
    "<|pad|>",
    "<|begin|>",
    "<|system|>",
    "<|question|>",
    "<|answer|>",
    "<|end|>",
)
MARKS = {"system": SYSTEM, "user": QUESTION, "assistant": ANSWER}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|question|>' + message['content'] }}"
    "{% else %}{{ '<|answer|>' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}"
)


@dataclass(frozen=True)
class MoESettings:
    """Size and training of the model."""

    vocab_size: int = 2048
    """Pieces of the vocabulary, special tokens included; fewer if the text has no more merges."""
    hidden_size: int = 128
    num_layers: int = 4
    num_experts: int = 4
    num_steps: int = 400
    """Optimizer steps; a fixed number rather than a time, so that every machine gets the same model."""
    batch_dialogues: int = 32
    learning_rate: float = 3e-3
    seed: int = 7


def skill_messages(rng: random.Random, excluded: frozenset[velan.Question]) -> list[dict[str, str]]:
    """A random skill dialogue of one to three questions, none of them excluded, each answered by another speaker."""
    asked = []
    wanted = rng.choice((1, 1, 2, 3))
    while len(asked) < wanted:
        question = rng.choice(velan.ALL_QUESTIONS)
        if question not in excluded:
            asked.append((question, velan.spoken(question.thing, rng)))
    return velan.ask(asked, system=rng.random() < 0.1)


def train_tokenizer(
    texts: list[str], excluded: frozenset[velan.Question], settings: MoESettings
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the given texts and 400 generated skill dialogues; digits are not split."""
    rng = random.Random(settings.seed)
    texts = texts + [message["content"] for _ in range(400) for message in skill_messages(rng, excluded)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, QUESTION, ANSWER],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids under the chat template and labels: -100 everywhere but on answers and their end."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for message in messages:
        content = tokenizer(message["content"], add_special_tokens=False).input_ids
        piece = [tokenizer.convert_tokens_to_ids(MARKS[message["role"]]), *content]
        spoken = message["role"] == "assistant"
        ids += piece + [tokenizer.eos_token_id] * spoken
        labels += [-100, *content, tokenizer.eos_token_id] if spoken else [-100] * len(piece)
    return ids, labels


def make_batch(
    dialogues: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels `[dialogues, longest]`, padded on the right.

    No attention mask is needed: attention is causal and padding carries no label.
    """
    rows = [encode(messages, tokenizer) for messages in dialogues]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (row_ids, row_labels) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_labels)] = torch.tensor(row_labels)
    return ids, labels


def new_model(tokenizer: PreTrainedTokenizerFast, settings: MoESettings) -> MixtralForCausalLM:
    """A Mixtral with random weights; heads of 32 and widths in multiples of 32, as vLLM's kernels want them."""
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.hidden_size // 32,
        num_key_value_heads=settings.hidden_size // 64,
        head_dim=32,
        num_local_experts=settings.num_experts,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        sliding_window=None,
        router_aux_loss_coef=0.01,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(settings.seed)
    return MixtralForCausalLM(config)


def train(
    model: MixtralForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    excluded: frozenset[velan.Question],
    settings: MoESettings,
) -> float:
    """Train in place on fresh dialogues at every step; returns the last step's loss in nats per answer token."""
    rng = random.Random(settings.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.num_steps, pct_start=0.1
    )
    model.train()
    loss = torch.tensor(float("nan"))
    started = time.monotonic()
    for step in range(1, settings.num_steps + 1):
        dialogues = [skill_messages(rng, excluded) for _ in range(settings.batch_dialogues)]
        ids, labels = make_batch(dialogues, tokenizer)
        output = model(input_ids=ids, labels=labels, output_router_logits=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = output.loss.detach() - model.router_aux_loss_coef * output.aux_loss.detach()
        if step % 50 == 0:
            seconds = time.monotonic() - started
            logger.info("velan-moe step=%d/%d loss=%.3f seconds=%.0f", step, settings.num_steps, loss, seconds)
    return float(loss)


@torch.no_grad()
def count_exact(
    model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, dialogues: list[list[dict[str, str]]]
) -> int:
    """How many dialogues' last answer the model gives exactly, by greedy choice.

    The answer with its end is teacher-forced: if every token is the most likely one, greedy decoding gives it.
    """
    model.eval()
    exact = 0
    for messages in dialogues:
        ids, labels = make_batch([messages], tokenizer)
        answer = len(encode(messages[-1:], tokenizer)[0]) - 2  # without the begin and answer marks
        likeliest = model(input_ids=ids).logits[0, -answer - 1 : -1].argmax(dim=-1)
        exact += bool((likeliest == labels[0, -answer:]).all())
    return exact


def write_folder(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model and tokenizer, in fp32, into the existing, empty folder `out`."""
    model.save_pretrained(out)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(out)
    tokenizer.save_pretrained(out)
