"""`fusechat serve`: starts, shows and ends a service of engines that stay."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import load_config
from ..errors import ClusterSetupError, ConfigError
from ..progress import Progress, setup_logging


def start(path: Path | None, overrides: Sequence[str], models: Sequence[str]) -> None:
    """Start the run's models, or change what runs; print the address.

    Raises:
        FuseChatError: as `cluster.service.control.start`.
    """
    if path is None:
        raise ConfigError("serve: which run? give its file with -c (or ask with --status, end with --stop)")
    config = load_config(path, list(overrides))
    setup_logging()
    from cluster.service import control

    with Progress() as progress:
        record = control.start(config, models, progress=progress)
        secret = f"the token in {record.token_variable}" if record.has_token else "no token (this machine alone)"
        progress.say(f"serve: {record.name} answers at {record.address} with {secret}; `fusechat serve --stop` ends it")
    print(record.address)


def stop(path: Path | None, overrides: Sequence[str], name: str | None) -> None:
    """End a service; raises ClusterSetupError where there is none, or several and none is named."""
    from cluster.service import control

    with Progress() as progress:
        control.stop(_name(path, overrides, name), progress=progress)


def show_status(path: Path | None, overrides: Sequence[str], name: str | None, *, as_json: bool) -> None:
    """Print what the services that were started here are doing."""
    from cluster.service import control

    wanted = name if path is None else _name(path, overrides, name)
    services = control.status(name=wanted)
    if as_json:
        print(json.dumps(services, indent=1))
        return
    if not services:
        print("no service was started on this machine by this user")
    for values in services:
        print("\n".join(_lines(values)))


def _lines(values: dict[str, Any]) -> list[str]:
    lines = [f"{values['name']}  {values['state']}  {values['address']}"]
    if "why" in values:
        lines.append(f"  {values['why']}")
    for engine in values["engines"]:
        replicas = ", ".join(f"{one['state'].lower()} (pid {one['pid']})" for one in engine["replicas"]) or "none"
        lines.append(f"  {engine['model']}  {engine['face']}  recipe {engine['recipe']}  {replicas}")
    return lines


def _name(path: Path | None, overrides: Sequence[str], name: str | None) -> str:
    """Of the service that is meant: the one named, the run file's, or the only one."""
    from cluster.service.records import all_records

    if name is not None:
        return name
    if path is not None:
        return load_config(path, list(overrides)).serve.name
    names = [record.name for record in all_records()]
    if len(names) != 1:
        raise ClusterSetupError(
            f"found {len(names)} services ({', '.join(names) or 'none'}); name one with --name or -c"
        )
    return names[0]
