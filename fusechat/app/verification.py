"""`fusechat inspect --verify` and `--repair`: an artifact in; what of it is damaged, said or taken away, out."""

from typing import Any

from ..errors import ArtifactError
from ..storage import damage
from ..storage.row_store import RowStore
from ..storage.seals import broken_of


def verify_files(url: str, record: dict[str, Any], repair: bool) -> bool:
    """Look through the files of a finished artifact; whether there was damage, which then is taken away.

    Raises:
        ArtifactError: there is damage, and it is not to be repaired.
    """
    broken = damage.repair_files(url, record) if repair else broken_of(url, record, thorough=True)
    lines = "\n  ".join(f"{name} {reason}" for name, reason in broken.items())
    if broken and not repair:
        raise ArtifactError(
            f"{url}: {len(broken)} damaged files:\n  {lines}\nRun `fusechat inspect {url} --repair`, then the stage that writes "
            "it: it makes them again."
        )
    if broken:
        print(
            f"{len(broken)} damaged files:\n  {lines}\ntaken away: the stage that writes the artifact makes them again"
        )
    elif record.get("files"):
        print(f"{len(record['files'])} files read; every one is as it was written")
    return bool(broken)


def verify_store(store: RowStore, repair: bool) -> None:
    """Look through the objects of a store, finished or not; with `repair` damage is taken away.

    Raises:
        ArtifactError: there is damage, and it is not to be repaired.
    """
    damages = damage.find_damage(store)
    lines = "\n  ".join(map(str, damages))
    if damages and not repair:
        raise ArtifactError(
            f"{store.url}: {len(damages)} damaged objects:\n  {lines}\nRun `fusechat inspect {store.url} --repair`, then "
            "the stage that writes the store: it makes only these shards again."
        )
    present, total = len(store.present_shards()), store.layout.num_shards
    if damages:
        shards = damage.repair(store, damages)
        print(
            f"{len(damages)} damaged objects:\n  {lines}\ntaken away: shards {shards}; the stage that writes the store "
            "makes them again"
        )
    else:
        print(f"{present} of {total} shards are written; every object read, every checksum holds")
