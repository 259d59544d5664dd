"""`fusechat inspect`: figures of an artifact, and one dialogue in readable form."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer

from ..errors import ArtifactError, ConfigError
from ..storage.artifact import RECIPE_FILE, RECORD_FILE, read_record
from ..storage.contracts import CHOICE, RowKind, TokenField
from ..storage.files import listing
from ..storage.row_store import RowStore
from ..storage.tokens import Tokens
from ..storage.tokens_reader import TokensReader
from ..storage.zarr_arrays import ATTRIBUTE, whole_array
from . import written_answers
from .verification import verify_files, verify_store


def show_artifact(url: str, *, dialogue: int, num_rows: int, verify: bool, repair: bool = False) -> None:
    """Print the record, the figures and one dialogue of an artifact.

    Args:
        verify: read every object and file first, and check that it is as it was written.
        repair: the same, and take away what is damaged, so that the stage makes it again.
    Raises:
        ArtifactError: there is nothing that FuseChat made; or `verify` found damage (all of it is listed).
    """
    url = url.rstrip("/")
    record = read_record(f"{url}/{RECORD_FILE}") or read_record(f"{url}/{RECIPE_FILE}")
    if record is None:
        raise ArtifactError(
            f"{url}: found neither {RECORD_FILE} nor plan.json; give the folder of an artifact, such as runs/quickstart/logprobs/smollm2"
        )
    kind = record.get("kind")
    print(f"{url}: {kind}, {'finished ' + str(record['finished']) if 'finished' in record else 'not finished'}")
    print(
        json.dumps(
            {key: record[key] for key in ("counts", "settings", "parents") if key in record},
            indent=1,
            ensure_ascii=False,
        )
    )
    if (verify or repair) and verify_files(url, record, repair):
        return
    lines: list[str] = []
    if kind in ("logprobs", "aligned"):
        store = RowStore.open(url, kind)
        if verify or repair:
            verify_store(store, repair)
        print("\n".join([*store_figures(store), *alignment_figures(record.get("counts", {}))]))
        lines = dialogue_lines(store, record.get("parents", {}), dialogue, num_rows)
    elif kind == "choice":
        lines = choice_lines(url, dialogue)
    elif kind in written_answers.KINDS and "prompts" in {kind, *record.get("parents", {})}:
        lines = written_answers.prompt_lines(url, kind, dialogue)
    elif kind == "tokens":
        lines = token_lines(url, dialogue, num_rows)
    for line in lines:
        print(line)


def store_figures(store: RowStore) -> list[str]:
    """Size, bytes a row, coverage, tail mass, mean label logprob, over the shards that are there."""
    present = sorted(store.present_shards())
    blocks = [store.read_shard(shard) for shard in present]
    if not blocks:
        return ["no shard is written yet"]
    labels = np.concatenate([block["label_logprob"] for block in blocks])
    mass = np.concatenate([np.exp(block["topk_logprobs"]).sum(axis=1) for block in blocks])
    real = np.isfinite(labels)
    lines = [
        f"shards {len(present)}/{store.layout.num_shards}  rows {len(labels):,}/{store.layout.num_rows:,}  "
        f"bytes {store.num_bytes():,} ({store.num_bytes() / max(len(labels), 1):.1f} a row)",
        f"rows with a score {real.mean():.2%}  tail mass {1 - mass[mass > 0].mean():.4f}  "
        f"mean label logprob {labels[real].mean():.4f} nats",
    ]
    if "kind" in blocks[0]:
        kinds = np.bincount(np.concatenate([block["kind"] for block in blocks]), minlength=len(RowKind))
        lines.append("kinds: " + "  ".join(f"{RowKind(i).name} {n:,}" for i, n in enumerate(kinds) if n))
    return lines


def alignment_figures(counts: dict[str, Any]) -> list[str]:
    """How good an alignment is, overall and by kind of text; nothing for other artifacts. See docs/alignment.md."""
    if "coverage" not in counts:
        return []
    columns = ("coverage", "mass_home", "bits_per_byte_lost_share", "label_bits_per_byte_lost_share")
    lines = [f"{'text':<14}{'rows':>12}{'coverage':>10}{'mass home':>11}{'bits/byte lost':>16}{'by the labels':>15}"]
    for name, part in {"all": counts, **counts.get("by_text", {})}.items():
        shown = ["-" if part[column] is None else f"{part[column]:.2%}" for column in columns]
        lines.append(f"{name:<14}{part['rows']:>12,}{shown[0]:>10}{shown[1]:>11}{shown[2]:>16}{shown[3]:>15}")
    return lines


def dialogue_lines(store: RowStore, parents: dict[str, str], dialogue: int, num_rows: int) -> list[str]:
    """One line a row of a dialogue: the token that stands there, its logprob, and the top-k tokens.

    Args:
        parents: role -> fingerprint, as in the store's record.
    """
    _check_number(dialogue, store.layout.num_dialogues, "store")
    if store.layout.shard_of(dialogue) not in store.present_shards():
        return [f"dialogue {dialogue}: its shard is not written yet"]
    reader = TokensReader(tokens_url_of(store.url, parents.get("tokens") or parents.get("pivot_tokens")))
    tokens, decode = reader.read(range(dialogue, dialogue + 1)), _decoder(reader)
    labels = tokens.token_ids[tokens.is_scored]
    block = store.read_dialogue(dialogue)
    prompt = decode(tokens.token_ids[: int(np.argmax(tokens.is_scored))].tolist())
    lines = [
        f"dialogue {dialogue}, up to its first scored token: {prompt!r}",
        "token  logprob (nats)  top tokens (probability)",
    ]
    for row in range(min(num_rows, len(labels))):
        shown = [
            f"{decode([int(i)])!r} {np.exp(p):.2f}"
            for i, p in zip(block["topk_ids"][row][:5], block["topk_logprobs"][row][:5], strict=True)
            if np.isfinite(p)
        ]
        kind = f"  [{RowKind(int(block['kind'][row])).name}]" if "kind" in block else ""
        lines.append(
            f"{decode([int(labels[row])])!r:>16}  {block['label_logprob'][row]:8.3f}  {'  '.join(shown)}{kind}"
        )
    return lines


def choice_lines(url: str, dialogue: int) -> list[str]:
    """Who teaches a dialogue, with what trust, and what all models lose on its labels."""
    import zarr

    group = zarr.open_group(store=url, mode="r")
    attributes: Any = group.attrs[ATTRIBUTE]
    arrays = {name: whole_array(group, name) for name in CHOICE.names}
    _check_number(dialogue, arrays["source"].shape[0], "artifact")
    names, number = attributes["sources"], int(arrays["source"][dialogue])
    losses = {name: arrays["source_losses"][place, dialogue] for place, name in enumerate(names)}
    losses |= {"pivot": arrays["pivot_loss"][dialogue], "label frequency": arrays["frequency_loss"][dialogue]}
    teacher = "nobody (plain SFT)" if number < 0 else f"{names[number]}, trust {arrays['trust'][dialogue]:.3f}"
    return [
        f"dialogue {dialogue}: taught by {teacher}",
        "loss of its labels, nats: " + "  ".join(f"{name} {loss:,.2f}" for name, loss in losses.items()),
    ]


def token_lines(url: str, dialogue: int, num_rows: int) -> list[str]:
    """The template's use, then one line a token: id, text, field, whether it is scored, byte span."""
    reader = TokensReader(url)
    _check_number(dialogue, reader.num_dialogues, "artifact")
    tokens, decode = reader.read(range(dialogue, dialogue + 1)), _decoder(reader)
    rows = zip(tokens.token_ids, tokens.field, tokens.is_scored, tokens.span.tolist(), strict=True)
    lines = [f"dialogue {dialogue}: {_by_field(tokens)}", "id  token  field  scored  bytes of the field"]
    for token_id, field, scored, (start, end) in list(rows)[:num_rows]:
        span = f"{start}..{end}" if start >= 0 else ""
        name = TokenField(int(field)).name.lower()
        lines.append(
            f"{token_id:>7}  {decode([int(token_id)])!r:<18}  {name:<11}  {'scored' if scored else '':<6}  {span}".rstrip()
        )
    return lines


def _check_number(dialogue: int, count: int, what: str) -> None:
    if not 0 <= dialogue < count:
        raise ConfigError(f"--dialogue {dialogue}: the {what} has dialogues 0 to {count - 1}")


def _by_field(tokens: Tokens) -> str:
    """How many of a dialogue's tokens are of which field, and how many of these are scored."""
    scored = tokens.is_scored
    if not len(scored):
        return "set aside for this model, no tokens"
    counts = []
    for field in TokenField:
        own = tokens.field == field
        if own.any():
            counts.append(f"{field.name.lower()} {int(own.sum()):,} ({int((own & scored).sum()):,} scored)")
    return "tokens of each field: " + ", ".join(counts)


def tokens_url_of(url: str, fingerprint: str | None) -> str:
    """Where the tokens of a store's rows stand: beside it, under whatever name."""
    base = f"{url.rsplit('/', 2)[0]}/tokens"
    for name in listing(base):
        record = read_record(f"{base}/{name}/{RECORD_FILE}")
        if record is not None and record["fingerprint"] == fingerprint:
            return f"{base}/{name}"
    raise ArtifactError(
        f"{url}: its rows are of tokens {fingerprint}, and none below {base} are those; run `fusechat tokenize` of the run "
        "that made them"
    )


def _decoder(tokens: TokensReader) -> Callable[[list[int]], str]:
    """Ids -> their text. The tokenizer's file alone is read, in a moment; transformers would take seconds to be imported.

    Raises:
        ArtifactError: the model moved, or the hub does not give it.
    """
    model, revision = str(tokens.attributes["model"]), tokens.attributes["revision"]
    file = f"{model}/tokenizer.json"
    if not Path(model).is_dir():
        try:
            file = hf_hub_download(model, "tokenizer.json", revision=revision)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            raise ArtifactError(
                f"{tokens.url}: made with the tokenizer of {model}, which is no longer there; to see text, link that path to where "
                "the model lies now"
            ) from None
    return partial(Tokenizer.from_file(file).decode, skip_special_tokens=False)
