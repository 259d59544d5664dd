"""The shape of the house: who may import whom, light start of the command line, packages resolve to this checkout."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("inference", "alignment", "trainer", "merge", "evaluation")
PACKAGES = ("fusechat", *STAGES, "cluster")
OWNERS = {"vllm": "inference", "trl": "trainer", "ray": "cluster"}
CHOOSERS = {"fusechat/app/cli.py", "fusechat/app/pipeline.py", "fusechat/app/summary.py", "fusechat/app/ablation.py"}


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a file imports absolutely, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def source_files() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_stages_never_import_each_other_nor_cluster() -> None:
    for stage in STAGES:
        forbidden = (set(STAGES) | {"cluster"}) - {stage}
        for path in (ROOT / stage).rglob("*.py"):
            assert not imports_of(path) & forbidden, path


def test_rooms_below_the_roof_import_no_stage() -> None:
    for path in (ROOT / "fusechat").rglob("*.py"):
        if path.relative_to(ROOT).parts[1] not in ("app", "__init__.py"):
            assert not imports_of(path) & {*STAGES, "cluster"}, path


def test_only_the_roof_and_the_cluster_carry_the_whole_run() -> None:
    """A room takes from a run what it needs in a record's `of`; all its other functions are told exactly their inputs."""
    rooms = [*STAGES, *(f"fusechat/{room}" for room in ("text", "models", "storage"))]
    takers = []
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "RunConfig" in ast.unparse(node.args) and node.name != "of":
                takers.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert takers == []


def test_modules_are_imported_by_statements_that_a_tool_can_follow() -> None:
    for path in source_files():
        names = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
        attributes = {
            node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)
        }
        assert not {"import_module", "__import__"} & (names | attributes), path


def test_every_folder_of_a_package_is_one() -> None:
    for path in source_files():
        assert (path.parent / "__init__.py").is_file(), path


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_engine_trainer_and_ray_are_imported_by_their_owner_only(library: str, owner: str) -> None:
    users = {path.relative_to(ROOT).parts[0] for path in source_files() if library in imports_of(path)}
    assert users == {owner}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_resolves_to_this_checkout(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(ROOT)


def test_packages_are_named_for_the_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["setuptools"]["packages"]["find"]["include"]) == {f"{name}*" for name in PACKAGES}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['fusechat', 'run', '--help']\nfrom fusechat.app.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'trl', 'zarr', 'numpy'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--config" in result.stdout


def test_aligner_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, alignment.stage\nprint({'torch', 'transformers'} & set(sys.modules) or 'neither')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "neither\n", result


def test_every_module_says_what_it_is_for() -> None:
    for path in source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
