"""Artifacts that a test changes after they were finished, as if their stage had made them so."""

from pathlib import Path

from fusechat.storage.artifact import RECORD_FILE
from fusechat.storage.files import read_json, write_json
from fusechat.storage.seals import file_seals, sealed


def seal_again(folder: str | Path) -> None:
    """Give a finished artifact's record the digests of what its folder holds now."""
    url = f"{folder}/{RECORD_FILE}"
    record = read_json(url)
    assert record is not None
    write_json(url, sealed({**record, "files": file_seals(Path(folder), record["kind"])}))
