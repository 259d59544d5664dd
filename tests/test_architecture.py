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
CHOOSERS = {"fusechat/cli.py", "fusechat/pipeline.py", "fusechat/summary.py", "fusechat/ablation.py"}


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a file imports absolutely, anywhere in it, and modules named to import_module."""
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


def test_core_imports_no_stage_but_where_stages_are_chosen() -> None:
    for path in (ROOT / "fusechat").rglob("*.py"):
        if str(path.relative_to(ROOT)) not in CHOOSERS:
            assert not imports_of(path) & {*STAGES, "cluster"}, path


def test_core_contract_of_import_linter_names_every_module_but_those_that_choose_stages() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (core,) = [contract["source_modules"] for contract in contracts if contract["name"] == "The core knows no stage"]
    modules = {path.stem for path in (ROOT / "fusechat").glob("*.py")} - {"__init__", "__main__"}
    choosers = {Path(path).stem for path in CHOOSERS} | {"status"}  # shows the pipeline's steps
    assert sorted(core) == sorted(f"fusechat.{name}" for name in modules - choosers)


@pytest.mark.parametrize(("library", "owner"), OWNERS.items())
def test_engine_trainer_and_ray_are_imported_by_their_owner_only(library: str, owner: str) -> None:
    users = {path.relative_to(ROOT).parts[0] for path in source_files() if library in imports_of(path)}
    assert users == {owner}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_resolves_to_this_checkout(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(ROOT)


def test_packages_are_listed_for_the_build() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == there


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['fusechat', 'run', '--help']\nfrom fusechat.cli import main\n"
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
