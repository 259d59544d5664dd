"""What a run refuses before its first stage."""

from pathlib import Path

import pytest

from fusechat.app import pipeline
from fusechat.config import load_config
from fusechat.errors import ConfigError


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head:8265"])
def test_dashboard_as_address_is_refused_with_the_command_that_takes_it(
    monkeypatch: pytest.MonkeyPatch, run_file: Path, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        ConfigError, match=rf"^RAY_ADDRESS of the environment: found {address}.*submit --address {address}.*unset"
    ):
        pipeline.check(load_config(run_file))
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=rf"^cluster\.address: found {address}.*or leave it out"):
        pipeline.check(load_config(run_file, [f"cluster.address={address}"]))
    pipeline.check(load_config(run_file))
