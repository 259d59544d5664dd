"""Run files that mean harm are taken or refused: no tag is run, no alias explodes, nothing is written, no secret repeated."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import nested, survives
from tiny_runs import tiny_run

from fusechat.config import load_config


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
