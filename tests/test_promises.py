"""What docs/reliability.md and SECURITY.md promise names the tests that hold it, and each of these is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("docs/reliability.md", "SECURITY.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_names_tests_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = NAMED.findall(text)
    assert len(named) > 8, "a page of promises names its tests as `tests/FILE.py::test_NAME`"
    for file, name in named:
        assert (ROOT / file).is_file(), f"{page} names {file}"
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{page} names {name}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_of_promises_has_a_test(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise .*\n\|[-| ]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert tables, "expected a table whose first column is called promise"
    for row in "".join(tables).splitlines():
        assert NAMED.search(row) or "bench_faults" in row, row


def test_licences_of_all_dependencies_are_listed() -> None:
    command = [sys.executable, "supply/licences.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, [line for line in listed.stdout.splitlines() if "NO" in line or "named" in line]
    assert re.search(r"^zarr [\d.]+: MIT", listed.stdout, re.MULTILINE)
