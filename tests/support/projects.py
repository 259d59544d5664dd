"""A working directory from which a run is submitted."""

from pathlib import Path


def make_project(place: Path, run_file: Path) -> Path:
    """A working directory with a run file whose results lie outside of it, a file that travels and some that must not."""
    folder = place / "project"
    (folder / "data").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "data" / "big.jsonl").write_bytes(bytes(3 * 2**20))
    (folder / "notes.txt").write_text("travels")
    (folder / "run.yaml").write_text(run_file.read_text())
    return folder
