"""Input that means harm: whatever a file holds, it ends in a result or in one of our errors, soon, and in few words.

Kinds: dialogue and question files, run files, chat templates, weights and configurations, stores and records, replies of a
judge. None may hang, raise anything else, write, or repeat a secret.
"""

import json
import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import tiny_run

from evaluation.judge.judge_prompts import read_score, read_verdict
from fusechat.config import load_config
from fusechat.errors import FuseChatError
from fusechat.models.model_files import INDEX_FILE, check_trainable, digests, read_model_config
from fusechat.models.model_limits import position_limit, vocabulary_columns
from fusechat.models.model_sizes import size_of_config
from fusechat.storage import artifact
from fusechat.storage.row_store import RowStore
from fusechat.storage.shard_layout import lay_out_shards
from fusechat.storage.tokens import Tokens, TokensReader
from fusechat.text import render_limit
from fusechat.text.chat_template import load_tokenizer
from fusechat.text.dialogues import read_dialogues
from fusechat.text.questions import read_questions
from merge.files.checkpoint import Checkpoint
from merge.files.lora import adapted_tensors
from merge.files.vocabulary import read_vocabulary

LONGEST_MESSAGE = 6000
SECONDS = 5
MEMORY = 2 * 2**30
"""Bytes that reading may take beyond what is taken already: without a bound, a device that never ends would end the machine."""
FORMS = ("prompts", "mt_bench", "alpaca_eval")


class Hang(BaseException):
    """Not an Exception, so that nothing takes it for an error of the input."""


def _hang(*_: object) -> None:
    raise Hang


@contextmanager
def limits() -> Iterator[None]:
    """Ends what takes too long with Hang, and what takes too much memory with MemoryError."""
    before = signal.signal(signal.SIGALRM, _hang)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def survives(read: Callable[[], Any]) -> str:
    """What our error says, or an empty text where there is a result; any other ending fails the test."""
    with limits():
        try:
            read()
        except FuseChatError as error:
            message = str(error)
            message.encode()
            assert len(message) < LONGEST_MESSAGE, f"{message[:300]}... has {len(message):,} characters"
            return message
    return ""


def nested(depth: int, begin: str = "[", end: str = "]") -> str:
    return begin * depth + end * depth


# Dialogue and question files.

QUESTION, ANSWER = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}
ROW = {"id": "a", "messages": [QUESTION, ANSWER]}
JSON_TEXTS = {
    "deep messages": '{"id": "a", "messages": ' + nested(900) + "}",
    "deep objects": nested(2000, '{"a":', "1}"),
    "deep tools": json.dumps(ROW)[:-1] + ', "tools": ' + nested(950) + "}",
    "deep template arguments": json.dumps(ROW)[:-1] + ', "template_arguments": {"a": ' + nested(900) + "}}",
    "deep lists": nested(5000),
    "open lists": "[" * 5000,
    "a number too long": '{"id": ' + "9" * 5000 + ', "messages": []}',
    "a long id": json.dumps({**ROW, "id": 10**4000}),
    "a long text as id": json.dumps({"id": "x" * 1_000_000, "messages": 3}),
    "a long key": json.dumps({"x" * 1_000_000: 1, "messages": 3}),
    "a long role": json.dumps({"id": "a", "messages": [{"role": "r" * 1_000_000, "content": ""}]}),
    "a long key of a turn": json.dumps({"id": "a", "messages": [{"role": "user", "k" * 1_000_000: "r"}]}),
    "a long column like a known one": json.dumps({**ROW, "message" * 20_000: 1}),
    "many keys": json.dumps({"id": "a", **{f"k{number}": 1 for number in range(8_000)}, "messages": 3}),
    "many keys, one twice": "{" + ",".join(f'"k{number}": 1' for number in range(40_000)) + ', "z": 1, "z": 2}',
    "infinite": '{"id": 1e999, "messages": []}',
    "an infinite weight": '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 1e999}]}',
    "NaN": '{"id": NaN, "messages": []}',
    "a key twice": '{"id": "a", "id": "b", "messages": []}',
    "nulls": '{"id": "\\u0000", "messages": [{"role": "user", "content": "\\u0000"}, {"role": "assistant", "content": "\\u0000"}]}',
    "half a pair as key": '{"\\ud800": 1, "messages": 3}',
    "half a pair as key twice": '{"\\ud800": 1, "\\ud800": 2}',
    "half a pair as role": '{"messages": [{"role": "\\udfff", "content": "x"}]}',
    "half a pair as key of a turn": '{"messages": [{"role": "user", "content": "x", "\\ud800": 3}]}',
    "half a pair as id": '{"id": "\\ud800x", "messages": 5}',
    "half a pair in an id that is none": '{"id": ["\\ud800"], "messages": 5}',
    "half a pair as type": '{"messages": [{"role": "user", "content": [{"type": "\\ud800"}]}]}',
    "half a pair as a tool": '{"messages": [], "tools": [{"name": "\\ud800"}]}',
    "half a pair as argument": '{"messages": [], "template_arguments": {"\\ud800": 1}}',
    "half a pair asked": '{"prompt": ["\\ud800"]}',
    "half a pair as question's id": '{"prompt": "x", "question_id": ["\\ud800"]}',
    "half a pair as category": '{"prompt": "x", "category": {"\\ud800": 1}}',
    "a deep reference": '{"prompt": "x", "reference": [{"a": ' + nested(900) + "}]}",
    "a long reference": '{"prompt": "x", "reference": ' + "9" * 4000 + "}",
    "a list of lists asked": '{"turns": [[["x"]]]}',
    "a role that is a list": '{"turns": [{"role": ["a"], "content": "x"}]}',
    "line ends": "\r\r\r",
    "one brace": "{",
    "a number": "3.5",
    "null": "null",
}  # fmt: skip


@pytest.mark.parametrize("name", JSON_TEXTS)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_that_means_harm_is_read_or_refused(tmp_path: Path, name: str, ending: str) -> None:
    file = tmp_path / f"rows.{ending}"
    for text in (JSON_TEXTS[name], f"[{JSON_TEXTS[name]}]"):
        file.write_text(text)
        survives(lambda: list(read_dialogues(file)))
        survives(lambda: list(read_dialogues(file, on_bad="skip", ignore_keys=["left"])))
        for form in FORMS:
            survives(lambda form=form: read_questions(file, form))


texts = st.text(st.characters(), max_size=6)
keys = st.sampled_from(
    ["id", "messages", "conversations", "role", "from", "content", "value", "tool_calls", "function", "name", "arguments", "tools",
     "weight", "train", "type", "text", "reasoning", "system", "prompt", "turns", "instruction", "reference", "question_id", "\ud800"]
) | texts  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "function_call", "text", "image"])
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)
turns = st.lists(st.dictionaries(keys, documents, max_size=5), max_size=4)
rows = documents | st.fixed_dictionaries({}, optional={"id": documents, "messages": turns, "conversations": turns, "tools": documents,
                                                       "prompt": documents, "turns": documents, "instruction": documents})  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(row=rows)
def test_any_row_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, row: object) -> None:
    file = tmp_path_factory.getbasetemp() / "any_row.jsonl"
    file.write_text(json.dumps(row))
    survives(lambda: list(read_dialogues(file)))
    survives(lambda: list(read_dialogues(file, on_bad="skip")))
    survives(lambda: read_questions(file, "prompts"))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), head=st.sampled_from([b"", b"{", b"[", b"PAR1", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b'{"id":'])
       )  # fmt: skip
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, head: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any_bytes.jsonl"
    file.write_bytes(head + data)
    survives(lambda: list(read_dialogues(file)))
    survives(lambda: read_questions(file, "alpaca_eval"))


def test_paths_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    for ending in ("jsonl", "txt", "yaml"):
        os.mkfifo(tmp_path / f"pipe.{ending}")
        (tmp_path / f"endless.{ending}").symlink_to("/dev/zero")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "not" / "there")
    names = [*tmp_path.iterdir(), tmp_path / "pipe.jsonl" / "x", tmp_path / "loop.jsonl" / "x"]
    odd = [
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        "a\0b",
        "~nosuchuser/x",
        "~",
        "",
        "::",
        "::train",
        "x" * 5000,
        "y" * 300,
    ]
    for path in [*map(str, names), *odd]:
        assert survives(lambda path=path: list(read_dialogues(path))), path
        assert survives(lambda path=path: load_config(path)), path
        for form in ("prompts", "alpaca_eval"):
            assert survives(lambda path=path, form=form: read_questions(path, form)), path


def test_changed_bytes_of_a_parquet_file_are_read_or_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([ROW, {**ROW, "id": "b"}]), tmp_path / "whole.parquet")
    whole, draw = (tmp_path / "whole.parquet").read_bytes(), random.Random(1)
    file = tmp_path / "changed.parquet"
    for _ in range(100):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            changed[draw.randrange(4, len(changed))] = draw.randrange(256)
        file.write_bytes(changed)
        survives(lambda: list(read_dialogues(file)))
        survives(lambda: read_questions(file, "prompts"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", "{}"), ("state.json", "x"), ("state.json", "[]"), ("state.json", nested(5000)),
        ("state.json", '{"_data_files": [{"filename": "../secret.arrow"}]}'), ("state.json", '{"_data_files": [{"filename": 5}]}'),
        ("dataset_dict.json", "{}"), ("dataset_dict.json", '{"splits": 5}'), ("dataset_dict.json", '{"splits": ["../secret"]}'),
        ("dataset_dict.json", '{"splits": ["gone"]}'),
    ],
)  # fmt: skip
def test_dataset_that_means_harm_is_refused(tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / name).write_text(text)
    message = survives(lambda: list(read_dialogues(folder)))
    assert "not readable as a saved dataset" in message and ("outside its folder" in message or "secret" not in text)


# Run files.


def tiny_values(tmp_path: Path) -> dict[str, Any]:
    here = {name: tmp_path / name for name in ("llama", "mixtral", "train", "held_out")}
    return tiny_run(tmp_path / "out", here, here)


def bomb(indent: str, wrap: str) -> str:
    """Lines of YAML in which each names the one before ten times."""
    lines = [f"{indent}z0: &z0 {{k: 1}}"]
    for number in range(1, 10):
        inner = ", ".join(f"k{each}: *z{number - 1}" for each in range(10))
        lines.append(
            f"{indent}z{number}: &z{number} {wrap[0]}{inner if wrap == '{}' else inner.replace('k', '').replace(': *', ': *')}{wrap[1]}"
        )
    return "\n".join(lines) + "\n"


YAML_TEXTS = [
    "&r\nrun: *r\n", "&r [*r]", f"run: {nested(3000)}", "run: " + nested(400, "{a: ", "1}"), "? " * 400 + "a",
    '!!python/object/apply:os.system ["touch harm"]', "run: !!python/name:os.system", 'run: !!python/object/new:os.system ["x"]',
    'run: !!binary "////"', "run: !!set {a, b}", "run: !!omap [a]", "run: !!pairs [a]", "run: !foo bar", 'run: !!timestamp "x"',
    'run: !!int "x"', 'run: !!float "x"', 'run: !!bool "x"', "run: 2024-99-99", "run: " + "9" * 5000, "run: 0x" + "f" * 10_000,
    "run: 1" + ":59" * 2000, "run: .inf", "run: {<<: 5}", "run: {<<: [[1]]}", "&a\n<<: *a\n", "? [a]\n: b", "? {a: b}\n: c", "~: 1",
    "1: 2", ".nan: 2", "2024-01-01: 3", "a: 1\n---\nb: 2", "%YAML 9.9\n---\na: 1", "x" * 100_000 + ": 1", "run:\n\tx: 1",
    "run: *nowhere", 'run: "\\ud800"', 'run: "\\0"', 'run: "\\Uffffffff"', 'run: "\\U00110000"', 'run: "\\x"', "\0", "",
    "\n".join(f"k{number}: 1" for number in range(5000)), "\n".join(f"a{number}: &a{number} 1" for number in range(5000)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(YAML_TEXTS)))
def test_yaml_that_means_harm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(YAML_TEXTS[number])
    assert survives(lambda: load_config(file))
    assert list(tmp_path.iterdir()) == [file], "a run file wrote"


@pytest.mark.parametrize(
    "lines", [bomb("    ", "{}"), "    z: &z {a: *z}\n", "    z: &z [*z]\n", "    z: " + nested(150) + "\n"]
)
def test_aliases_that_explode_are_refused(tmp_path: Path, lines: str) -> None:
    text = yaml.safe_dump(tiny_values(tmp_path))
    file = tmp_path / "run.yaml"
    file.write_text(text.replace("  trl:\n", f"  trl:\n{lines}"))
    assert "found more than" in survives(lambda: load_config(file))


VALUES = [
    "", "..", "../../etc/passwd", "~", "~nosuch/x", "%s%n%d", "a#b", "a b", "a\nb", "a\0b", "\u202e", "x" * 5000, "file:///etc/passwd",
    "s3://", "://", "zip://a::b", "${HOME}", "$HOME", "/dev/zero", "::", "a::b", "{0.__class__}", "-rf", float("inf"), float("nan"), -1,
    10**30, 2**63, True, None, [], {}, [[]], {"a": {}}, {"": ""}, b"\xff",
]  # fmt: skip
PLACES = [
    "run.output", "pivot.name", "pivot.model", "pivot.engine", "sources.0.name", "sources.0.template", "sources.0.revision",
    "dialogues.train", "dialogues.max_tokens", "extraction.k", "training.trl.learning_rate", "evaluation.judge", "merge.method",
    "cluster.address", "cluster.env_vars", "evaluation.questions.samples",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_any_value_in_a_run_file_is_taken_or_refused(tmp_path: Path, place: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_values(tmp_path)))
    for value in VALUES:
        survives(
            lambda value=value: load_config(
                file, [f"{place}={json.dumps(value) if not isinstance(value, bytes) else value}"]
            )
        )
    assert list(tmp_path.iterdir()) == [file], "reading a run file wrote"


@pytest.mark.parametrize(
    "override",
    ["a", "=", "..=1", "sources.9.name=1", "sources.-1.name=1", "sources.²=1", f"sources.{'9' * 6000}=1", "run.output.x.y=1",
     "training.trl.q={a: &x [*x]}", "training.trl=!!python/name:os.system", f"x={'[' * 3000}", f"pivot={'9' * 5000}", "a=2024-99-99",
     "run.output=\\ud800"],
)  # fmt: skip
def test_any_override_is_refused(tmp_path: Path, override: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tiny_values(tmp_path)))
    survives(lambda: load_config(file, [override]))


SECRET = "hf_SECRETSECRETSECRET"


@pytest.mark.parametrize(
    "text",
    [f"hub_token: '{SECRET}\n", f"a: [{SECRET}\nb: c: d", f"cluster:\n  env_vars: HF_TOKEN={SECRET}\n",
     f"evaluation:\n  judge: {{model: m, url: 'https://user:{SECRET}@host/v1'}}\n",
     f"evaluation:\n  judge: {{model: m, url: 'https://host/v1', key_variable: '{SECRET}-'}}\n",
     f"training:\n  trl: {{hub_token: {SECRET}}}\n", f"training:\n  trl: {{deep: [{{api_key: {SECRET}}}]}}\n"],
)  # fmt: skip
def test_no_secret_of_a_run_file_is_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    message = survives(lambda: load_config(file))
    assert message and SECRET not in message, message


# Weights, configurations and adapters.


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}


def write_weights(path: Path, header: object, length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(64))


HEADERS: list[object] = [
    {"a": entry(data_offsets=[0, 2**63])}, {"a": entry(data_offsets=[-64, 0])}, {"a": entry(shape=[-4, -4])},
    {"a": entry(shape=[-4, 4], data_offsets=[64, 0])}, {"a": entry(shape=[2**63, 0], data_offsets=[0, 0], dtype="Q")},
    {"a": entry(shape=[4.5, 4])}, {"a": entry(shape=["4", "4"])}, {"a": entry(shape="44")}, {"a": entry(data_offsets=[0, 1, 2])},
    {"a": entry(data_offsets=[0])}, {"a": entry(dtype=["F32"])}, {"a": entry(dtype={})}, {"a": entry(shape=[True, 16])},
    {"a": entry(shape=[1] * 100_000 + [16])}, {"x" * 100_000: entry(dtype="Q")}, {"a": entry(shape=[4], data_offsets=[0, 64])},
    {"a": 5}, {"a": None}, [], 5, None, b"\xff\xfe{}", b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000,
    b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 64]}}',
    b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 64]}}',
    b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 64]}}',
]  # fmt: skip


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_weights(folder / "model.safetensors", {"a.weight": entry()})
    return folder


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_header_of_weights_that_means_harm_is_refused(model_folder: Path, number: int) -> None:
    write_weights(model_folder / "model.safetensors", HEADERS[number])
    assert survives(lambda: Checkpoint(model_folder))
    survives(lambda: check_trainable(model_folder, "model"))


@pytest.mark.parametrize("length", [0, 1, 7, 100 * 2**20, 10**9, 2**63, 2**64 - 1])
def test_header_of_weights_of_another_length_is_refused(model_folder: Path, length: int) -> None:
    write_weights(model_folder / "model.safetensors", {"a": entry()}, length)
    assert survives(lambda: Checkpoint(model_folder))
    survives(lambda: check_trainable(model_folder, "model"))


@settings(max_examples=200, deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {}, optional={"dtype": documents, "shape": st.lists(st.integers() | documents, max_size=4),
                      "data_offsets": st.lists(st.integers() | documents, max_size=3)}
    )
)  # fmt: skip
def test_any_entry_of_a_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_entry"
    folder.mkdir(exist_ok=True)
    write_weights(folder / "model.safetensors", {"a": entry(**changes)})
    survives(lambda: [tensor.raw(0, tensor.num_elements) for tensor in Checkpoint(folder).tensors.values()])


INDICES = [
    "[]", "5", '{"weight_map": 5}', '{"weight_map": [1]}', '{"weight_map": null}', '{"weight_map": {"a": "../x"}}',
    '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": {}}}',
    '{"weight_map": {"a": "a\\u0000"}}', '{"weight_map": {"a": "\\ud800"}}', '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": {"a": "' + "x" * 300 + '"}}', '{"weight_map": {"b": "model.safetensors"}}', nested(5000), "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INDICES)))
def test_index_that_means_harm_is_refused(model_folder: Path, number: int) -> None:
    (model_folder / INDEX_FILE).write_text(INDICES[number])
    assert survives(lambda: Checkpoint(model_folder))
    survives(lambda: check_trainable(model_folder, "model"))
    survives(lambda: digests(model_folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", INDEX_FILE, "tokenizer.json", "adapter_config.json"]
)
@pytest.mark.parametrize("is_pipe", [True, False])
def test_pipes_and_devices_in_a_model_folder_are_refused(model_folder: Path, name: str, is_pipe: bool) -> None:
    (model_folder / name).unlink(missing_ok=True)
    if is_pipe:
        os.mkfifo(model_folder / name)
    else:
        (model_folder / name).symlink_to("/dev/zero")
    for read in (
        lambda: Checkpoint(model_folder), lambda: check_trainable(model_folder, "model"), lambda: digests(model_folder),
        lambda: read_model_config(model_folder), lambda: read_vocabulary(model_folder),
    ):  # fmt: skip
        survives(read)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 8,
}
CONFIGS = [
    "", "[]", "5", "null", nested(5000), "9" * 5000, '{"vocab_size": NaN, "max_position_embeddings": NaN}',
    '{"vocab_size": ' + "9" * 5000 + "}", '{"text_config": 5}', '{"text_config": [1]}', '{"quantization_config": [1]}',
    '{"quantization_config": {"quant_method": {}}}', '{"model_type": ["x"]}', '{"model_type": {}}', '{"model_type": "\\ud800"}',
    '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}', '{"rope_scaling": {"type": ["linear"], "factor": 2}}',
    '{"rope_scaling": {"type": "linear", "factor": 1e999}, "max_position_embeddings": 8}',
    *(json.dumps({**LLAMA, key: value}) for key in LLAMA for value in (-5, 0, 10**9, 1e999, "x", None, [1]) if key != "model_type"),
    *(json.dumps({**LLAMA, "num_key_value_heads": value}) for value in (-5, 0, "x", [1])), '{"model_type": "llama", "dtype": "evil"}',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_configuration_that_means_harm_is_read_or_refused(model_folder: Path, number: int) -> None:
    (model_folder / "config.json").write_text(CONFIGS[number])
    survives(lambda: check_trainable(model_folder, "model"))
    survives(lambda: position_limit(model_folder))
    survives(lambda: vocabulary_columns(model_folder))
    survives(lambda: size_of_config(read_model_config(model_folder)))


ADAPTERS = [
    "[]", "5", "null", nested(5000), "9" * 5000, '{"lora_alpha": "x"}', '{"lora_alpha": [1]}', '{"lora_alpha": 1e999}',
    '{"lora_alpha": NaN}', '{"lora_alpha": ' + "9" * 4000 + "}", '{"alpha_pattern": {"(": 1}}', '{"alpha_pattern": [1]}',
    '{"alpha_pattern": {"a": "x"}}', '{"init_lora_weights": {}}', '{"init_lora_weights": [1]}', '{"peft_type": [1]}',
]  # fmt: skip
FACTORS: list[dict[str, object]] = [
    {"shape": [16]}, {"dtype": "I32"}, {"dtype": "F8_E4M3", "data_offsets": [0, 16]}, {"shape": [0, 4], "data_offsets": [0, 0]},
]  # fmt: skip


@pytest.mark.parametrize("text", [*ADAPTERS, *FACTORS])
def test_adapter_that_means_harm_is_refused(model_folder: Path, tmp_path: Path, text: str | dict[str, object]) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    changes = text if isinstance(text, dict) else {}
    (folder / "adapter_config.json").write_text(text if isinstance(text, str) else "{}")
    names = [f"base_model.model.a.lora_{side}.weight" for side in "AB"]
    write_weights(folder / "adapter_model.safetensors", {name: entry(**changes) for name in names})
    base = Checkpoint(model_folder).tensors
    assert survives(lambda: adapted_tensors(Checkpoint(folder), base))


TOKENIZERS = [
    "[]", "5", "null", nested(5000), "9" * 5000, '{"model": 5}', '{"model": {"vocab": 5}}', '{"model": {"vocab": [1]}}',
    '{"model": {"vocab": {}}, "added_tokens": [1]}', '{"model": {"vocab": {}}, "added_tokens": [{"content": "a", "id": 1e999}]}',
    '{"model": {"vocab": {"a": "x"}}}', '{"model": {"vocab": {"a": -1}}}', '{"model": {"vocab": {"a": 9223372036854775808}}}',
    '{"model": {"vocab": {"a": {}}}}',
]  # fmt: skip


@pytest.mark.parametrize("text", TOKENIZERS)
def test_tokenizer_of_a_merge_that_means_harm_is_refused(model_folder: Path, text: str) -> None:
    (model_folder / "tokenizer.json").write_text(text)
    assert survives(lambda: read_vocabulary(model_folder))


# Stores and records.

WRONG = [
    None,
    5,
    -1,
    2**63,
    1e308,
    "x",
    [],
    {},
    [1],
    True,
    "../..",
    {"a": 1},
    0,
    [0],
    [2**40],
    [2**40, 3],
    "<f8",
    "int64",
    [-1],
]
SPOILT = ["", "[]", "5", "null", "{", "[" * 5000, '{"a":' * 3000]


def changed(document: Any, draw: random.Random) -> str:
    """The JSON document with one value, anywhere in it, replaced by a wrong one."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(document)
    node, key = draw.choice(places)
    node[key] = draw.choice(WRONG)
    return json.dumps(document)


def spoil(url: Path, read: Callable[[], Any], draw: random.Random) -> None:
    """Spoil each file of a store in many ways, one at a time, and read it each time."""
    whole = {path: path.read_bytes() for path in sorted(url.rglob("*")) if path.is_file()}
    chunks = [path for path in whole if path.name != "zarr.json"]
    survives(read)
    for path, data in whole.items():
        if path.name == "zarr.json":
            variants = [text.encode() for text in (*SPOILT, *(changed(json.loads(data), draw) for _ in range(15)))]
        else:
            flipped = bytearray(data)
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            variants = [b"", data[: len(data) // 2], bytes(flipped), draw.randbytes(50), whole[draw.choice(chunks)]]
        for variant in variants:
            path.write_bytes(variant)
            survives(read)
        path.write_bytes(data)
    assert not survives(read), "the store is whole again"


def test_spoilt_rows_are_read_or_refused(tmp_path: Path) -> None:
    layout = lay_out_shards(np.array([3, 4, 5]), np.array([3, 4, 5]), 6)
    store = RowStore.create(str(tmp_path), "logprobs", layout, k=3, vocab_size=100, logprob_step=1 / 32, settings={})
    draw = np.random.default_rng(0)
    for shard in range(layout.num_shards):
        num_rows = layout.rows(shard).stop - layout.rows(shard).start
        logprobs = -np.sort(draw.random((num_rows, 3), np.float32) + 1.5, axis=1)
        ids = np.tile(np.arange(3, dtype=np.uint16), (num_rows, 1))
        store.write_shard(shard, {"topk_ids": ids, "topk_logprobs": logprobs, "label_logprob": logprobs[:, 0].copy()})

    def read() -> None:
        opened = RowStore.open(str(tmp_path), "logprobs")
        opened.label_logprobs(0), list(opened.iter_shards()), opened.read_dialogue(0), opened.missing_shards()

    spoil(tmp_path, read, random.Random(3))


def test_spoilt_tokens_are_read_or_refused(tmp_path: Path) -> None:
    spans = np.full((12, 2), -1, np.int32)
    tokens = Tokens.of_contents(
        np.arange(12, dtype=np.int32), np.ones(12, bool), spans, np.array([0, 3, 7, 12]), {"model": "m"}
    )
    tokens.write(str(tmp_path))

    def read() -> None:
        Tokens.read(str(tmp_path))
        reader = TokensReader(str(tmp_path))
        reader.read(range(reader.num_dialogues)), reader.layout(6)

    spoil(tmp_path, read, random.Random(4))


RECORDS = [
    *SPOILT[1:], '"x"', "9" * 5000, "{}", '{"kind": "tokens"}', '{"kind": ["tokens"], "fingerprint": "a", "counts": {}, "seconds": 1}',
    '{"kind": "tokens", "fingerprint": 5, "counts": {}, "seconds": 1}', '{"kind": "tokens", "fingerprint": "a", "counts": 5, "seconds": 1}',
    '{"kind": "tokens", "fingerprint": "a", "counts": {}, "seconds": "x"}',
    '{"kind": "fused", "fingerprint": "a", "counts": {}, "seconds": 1}',
    '{"kind": "tokens", "settings": ' + nested(900) + "}",
]  # fmt: skip


@pytest.mark.parametrize("text", [*RECORDS, "pipe", "endless"])
def test_record_of_an_artifact_that_means_harm_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / artifact.RECORD_FILE
    if text == "pipe":
        os.mkfifo(file)
    elif text == "endless":
        file.symlink_to("/dev/zero")
    else:
        file.write_text(text)
    before = sorted(tmp_path.iterdir())
    if text != "null":  # which says that there is no record
        assert (
            survives(lambda: artifact.claim(tmp_path, "tokens", settings={"a": 1}, parents={})) or text == RECORDS[-6]
        )
        assert sorted(tmp_path.iterdir()) == before, "a refused claim wrote"
    assert survives(lambda: artifact.load(tmp_path, "tokens"))


# Replies of a judge.

REPLIES = [
    "", "SCORE:", "SCORE: 11", "SCORE: 1e9", "SCORE: " + "9" * 5000, "SCORE: NaN", "<script>SCORE: 10</script>", "<think>SCORE: 10",
    "SCORE: ９", "VERDICT: C", "VERDICT: A VERDICT: B", "\0", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_reply_that_is_no_verdict_counts_as_none(reply: str) -> None:
    with limits():
        assert read_score(reply) is None or reply == "SCORE: ９"
        assert read_verdict(reply) is None


@pytest.mark.parametrize(
    "part",
    [
        " ",
        "\n",
        "*",
        "SCORE:",
        "SCORE: 1",
        "SCORE: *",
        "VERDICT: ",
        "VERDICT:A ",
        "<think>",
        "</think>",
        "#",
        "[(",
        "\n*",
    ],
)
def test_endless_reply_is_read_in_time(part: str) -> None:
    for reply in (part * 20_000, f"{part * 20_000}x", f"x\n{part * 20_000}\nSCORE: 5"):
        with limits():
            read_score(reply), read_verdict(reply)


# Chat templates: foreign code. Memory beyond what the process may take is a refusal; a bound below that needs a process of its own.

PLAIN = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ lipsum(n=10000000) }}", "{{ 'x' * 10**11 }}",
    "{% set all = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set all.s = all.s ~ all.s %}{% endfor %}",
    "{{ ''.__class__.__mro__ }}", "{{ messages.__class__.__base__.__subclasses__() }}", "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "{% import 'x' as y %}", "{% include '/etc/passwd' %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ 1 // 0 }}",
    "{{ '%0999999999d' % 1 }}", "{{ '{:>9999999999}'.format(1) }}", "{{ 'a'|center(10**11) }}", "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{% if 1 %}" * 2000, "{{ [1, 'a']|sort }}",
    "{{ strftime_now(5) }}", "{{ messages|tojson(indent=999999999) }}", "{{ namespace|tojson }}",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TEMPLATES)))
def test_template_that_means_harm_is_refused_in_time(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(render_limit, "MAX_SECONDS", 0.5)
    message = survives(lambda: load_tokenizer(str(tiny_models["llama"]), template=TEMPLATES[number] + PLAIN))
    assert "root:" not in message
    assert message or "__" in TEMPLATES[number]  # Jinja's sandbox shows nothing for a name that it hides
