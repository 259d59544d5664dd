"""What the alignment benchmarks share: tokenizers and tokens, source rows, the rules that are compared.

Model rows come from a plain transformers forward and are kept in files. Where there is a tokenizer but no model, rows
come from `bigram_rows`.
"""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from alignment.in_memory import map_vocabularies
from alignment.rows.project_rows import project_rows
from alignment.rows.projection import Projection
from alignment.tokens.token_alignment import SpanAlignment, TargetRows, align_spans, both_target_rows
from alignment.vocabulary.vocabulary_file import Vocabularies
from fusechat.config import AlignmentSection
from fusechat.storage.tokens import Tokens
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import Dialogue
from fusechat.text.tokenization import tokenize_dialogues

K = 10
# For the base model, which has no template of its own; its BOS matters (see examples/templates).
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
RULES = {
    "default": AlignmentSection(),
    "frequency": AlignmentSection(row_rule="map"),
    "min_edit": AlignmentSection(row_rule="map", vocabulary_rule="min_edit"),
    "exact": AlignmentSection(row_rule="map", vocabulary_rule="exact"),
    "released": AlignmentSection(token_rule="released", vocabulary_rule="released", row_rule="map"),
}


def tokens_of(folder: Path, dialogues: list[Dialogue], template: str | None = None) -> tuple[Any, Tokens]:
    """Tokenizer and tokens of dialogues, as the tokenize stage makes them.

    Args:
        folder: of a model, or of a tokenizer alone.
    """
    own = (folder / "chat_template.jinja").exists()
    tokenizer, text = load_tokenizer(str(folder), template=template or (None if own else PLAIN_TEMPLATE))
    parts = list(tokenize_dialogues(tokenizer, text, dialogues))
    config = folder / "config.json"
    size = int(json.loads(config.read_text())["vocab_size"]) if config.exists() else len(tokenizer)
    attributes = {
        "model": str(folder), "revision": None, "template": text, "vocab_size": size, "tokenizer": str(folder),
        "dialogues_digest": "benchmark",
    }  # fmt: skip
    return tokenizer, Tokens.of_contents(
        np.concatenate([part.token_ids for part in parts]), np.concatenate([part.is_scored for part in parts]),
        np.concatenate([part.span for part in parts]), np.cumsum([0, *(len(part) for part in parts)]), attributes,
    )  # fmt: skip


def mistral_and_qwen(out: Path) -> tuple[Path, Path]:
    """Folders with Mistral's v1 tokenizer (32,000 ids) and Qwen1.5's (151,936), made of files that PyPI packages hold.

    `mistral_common` holds the first as a sentencepiece model, `dashscope` the second as a tiktoken file.
    """
    folders = out / "mistral-v1", out / "qwen1.5"
    if not all((folder / "config.json").exists() for folder in folders):
        for folder, build, size in zip(folders, (_mistral, _qwen), (32_000, 151_936), strict=True):
            build().save_pretrained(folder)
            (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
    return folders


def _packaged(package: str, file: str) -> str:
    """A file of an installed package, which is not imported for it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {package} is not installed, expected for its {file}: pip install {package}")
    return str(Path(spec.origin).parent / file)


def _mistral() -> Any:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = SentencePieceProcessor(model_file=_packaged("mistral_common", "data/tokenizer.model.v1"))
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    # Pieces stand in the order in which training made them; of two ways to make one the earlier parts come first.
    cuts = [
        (vocabulary[piece], vocabulary[piece[:n]], vocabulary[piece[n:]], piece[:n], piece[n:])
        for piece in vocabulary for n in range(1, len(piece)) if piece[:n] in vocabulary and piece[n:] in vocabulary
    ]  # fmt: skip
    merges = [cut[3:] for cut in sorted(cuts)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=INSTRUCT
    )


def _qwen() -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = TikTokenConverter(_packaged("dashscope", "resources/qwen.tiktoken"), pattern=pattern).converted()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": controls})
    fast.chat_template = CHATML
    return fast


def model_rows(folder: Path, tokens: Tokens, out: Path) -> dict[str, np.ndarray]:
    """Top-k rows of a model by a plain forward, kept in a file named by its tokens."""
    digest = hashlib.sha256(tokens.token_ids.tobytes() + tokens.is_scored.tobytes()).hexdigest()[:8]
    cache = out / f"{folder.name}.{digest}.npz"
    if not cache.exists():
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        parts = []
        for dialogue in range(tokens.num_dialogues):
            place = tokens.tokens_of(dialogue)
            ids = torch.tensor(tokens.token_ids[place].astype(np.int64))[None]
            targets = torch.tensor(np.flatnonzero(tokens.is_scored[place]))
            with torch.no_grad():
                hidden = model.model(ids).last_hidden_state[0, targets - 1]
                logprobs = torch.log_softmax(model.lm_head(hidden).float(), -1)
            best, best_ids = logprobs.topk(K, -1)
            own = logprobs.gather(-1, ids[0, targets][:, None])[:, 0]
            parts.append((best_ids.numpy().astype(np.int32), best.numpy(), own.numpy()))
        names = ("topk_ids", "topk_logprobs", "label_logprob")
        columns = zip(names, zip(*parts, strict=True), strict=True)
        np.savez(cache, **{name: np.concatenate(column) for name, column in columns})
    return dict(np.load(cache))


def bigram_rows(tokens: Tokens) -> dict[str, np.ndarray]:
    """Rows of a tokenizer without a model: after token a, token b has probability count(a b) / (count(a) + 1).

    Counted over the same tokens, so that every label has a probability; the K largest make the row.
    """
    size = int(tokens.attributes["vocab_size"])
    ids = tokens.token_ids.astype(np.int64)
    pairs, counts = np.unique(ids[:-1] * size + ids[1:], return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // size))
    pairs, counts, before = pairs[order], counts[order], pairs[order] // size
    starts = np.searchsorted(before, np.arange(size + 1))
    totals = np.bincount(ids[:-1], minlength=size) + 1
    targets = np.flatnonzero(tokens.is_scored)
    rank = starts[ids[targets - 1]][:, None] + np.arange(K)
    real = rank < starts[ids[targets - 1] + 1][:, None]
    rank = np.minimum(rank, len(pairs) - 1)
    shares = np.log(counts / totals[before])
    by_pair = np.argsort(pairs)
    own = by_pair[np.searchsorted(pairs[by_pair], ids[targets - 1] * size + ids[targets])]
    return {
        "topk_ids": np.where(real, pairs[rank] % size, 0).astype(np.int32),
        "topk_logprobs": np.where(real, shares[rank], -np.inf).astype(np.float32),
        "label_logprob": shares[own].astype(np.float32),
    }


def vocabularies_of(section: AlignmentSection, pivot: tuple[Any, Tokens], source: tuple[Any, Tokens]) -> Vocabularies:
    """Counts over all dialogues and the map; each side is its tokenizer and its tokens."""
    return map_vocabularies(section, (pivot[1], source[1]), (pivot[0], source[0]))


def project(
    section: AlignmentSection, pivot: Tokens, source: Tokens, rows: dict[str, np.ndarray], vocabularies: Vocabularies
) -> tuple[TargetRows, TargetRows, SpanAlignment, Projection]:
    """All dialogues as one shard, by one rule."""
    p, s = both_target_rows(pivot, source, range(pivot.num_dialogues))
    spans = align_spans(p, s)
    projection = project_rows(section, (pivot, source), (p, s), spans, rows, vocabularies, same_tokenizer=False)
    return p, s, spans, projection
