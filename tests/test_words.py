"""The words of docs/glossary.md: each stands there once, and no public name uses another word for the same thing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fusechat", "inference", "alignment", "trainer", "merge", "evaluation", "cluster")
MUST_STAND = {
    *("pivot", "source", "student", "target", "control", "fused model", "teacher", "author"),
    *("prompt", "dialogue", "field", "scored token", "row", "k", "span"),
    *("shard", "chunk", "part", "recipe", "layout", "plan", "artifact", "run"),
    *("work", "unit", "worker", "engine", "service"),
}
MAY_SAY = {
    "plan": (
        "fusechat/app/plan/",
        "fusechat/app/cli.py: plan",
        "fusechat/config/run.py: plan",
        "fusechat/config/cluster.py: PlanSection",
    ),
    "job": ("cluster/",),
    "jobs": ("cluster/",),
    "replica": ("cluster/", "fusechat/config/serve.py"),
    "replicas": ("cluster/", "fusechat/config/serve.py"),
}
"""Stranger -> where it is the right word."""


def tables() -> tuple[list[str], list[str]]:
    """The words that have a meaning, and those that no name uses."""
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    meant, strangers = text.split("## Words that no public name uses")
    return tuple(
        [word for word in re.findall(r"^\| ([^|]+?) \|", part, re.M) if word != "word"] for part in (meant, strangers)
    )  # type: ignore[return-value]


def public_names(path: Path, source: str) -> Iterator[str]:
    """Names of the module and its folders, of its classes and functions, and of fields of classes."""
    yield from path.with_suffix("").parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            fields = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
            yield from (field.id for field in fields if isinstance(field, ast.Name))


def words_of(name: str) -> set[str]:
    """`ShardPlan` and `shard_plan` are both `shard` and `plan`; names that begin with _ are not public."""
    return set() if name.startswith("_") else {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)}


def strangers_in(path: Path, source: str, strangers: set[str]) -> list[str]:
    places = {
        f"{path.as_posix()}: {name}"
        for name in public_names(path, source)
        for word in words_of(name) & strangers
        if not f"{path.as_posix()}: {name}".startswith(MAY_SAY.get(word, ("nowhere",)))
    }
    return sorted(places)


def test_glossary_says_each_word_once() -> None:
    meant, strangers = tables()
    words = meant + [word for word in strangers if word != "plan"]
    assert len(words) == len(set(words)) and set(meant) >= MUST_STAND


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_use_no_strangers(package: str) -> None:
    strangers = set(tables()[1])
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    strangers |= {f"{word}s" for word in strangers}
    lines = [
        line for file in files for line in strangers_in(file.relative_to(ROOT), file.read_text("utf-8"), strangers)
    ]
    assert not lines, "docs/glossary.md says what to call these:\n" + "\n".join(lines)


def test_strangers_are_seen_in_every_kind_of_name() -> None:
    source = "class MergePlan:\n    plan: int\n    def make_plan(self): ...\n    def _plan(self): ...\nplan = 1"
    names = [line.split(": ")[1] for line in strangers_in(Path("merge/plan.py"), source, {"plan"})]
    assert names == ["MergePlan", "make_plan", "plan"]
    assert not strangers_in(Path("fusechat/app/plan/run.py"), source, {"plan"})
    assert not strangers_in(Path("merge/planet.py"), "def explain(): ...", {"plan"})
    assert strangers_in(Path("merge/stage.py"), "jobs: int\nclass A:\n    jobs: int", {"jobs"}) == [
        "merge/stage.py: jobs"
    ]
    assert not strangers_in(Path("cluster/jobs/submission.py"), "class Job: ...", {"job", "jobs"})
