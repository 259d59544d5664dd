"""Pieces of an artifact that workers make before they are joined: a folder beside the artifact's own, gone when it is whole.

Pieces of another recipe are worth nothing and are deleted: they are nobody's finished work. So are those beside a finished
artifact: of two drivers that make one at the same time, the slower may have begun a folder after the faster had deleted it.
"""

import contextlib

from .artifact import Artifact, Claim, read_json, storage_errors, write_json

_RECIPE = "recipe.json"


def without_pieces(claim: Claim) -> Artifact | None:
    """The artifact of a claim if it is finished; what a slower driver left beside it is then deleted."""
    if claim.artifact is not None:
        remove_pieces(_url(claim))
    return claim.artifact


def open_pieces(claim: Claim) -> str:
    """Folder or URL of the pieces of a claimed artifact; those of an earlier try at the same recipe are still there."""
    url = _url(claim)
    if read_json(f"{url}/{_RECIPE}") != claim.recipe:
        remove_pieces(url)
        write_json(f"{url}/{_RECIPE}", claim.recipe)
    return url


def _url(claim: Claim) -> str:
    return f"{claim.url}.pieces"


def finished_pieces(url: str) -> set[int]:
    """Numbers of the pieces whose counts, which are written last, are there and not empty."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    with storage_errors(url):
        entries = filesystem.ls(path, detail=True)
    names = [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["size"]]
    numbers = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return {int(number) for number in numbers if number.isdigit()}


def remove_pieces(url: str) -> None:
    """Delete the pieces, if there are any."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    with storage_errors(url), contextlib.suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)
    filesystem.invalidate_cache()
