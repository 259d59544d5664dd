"""Pieces of an artifact that workers make before they are joined: a folder beside the artifact's own, gone when it is whole.

Pieces of another recipe are worth nothing and are deleted: they are nobody's finished work. So are those beside a finished
artifact: of two drivers that make one at the same time, the slower may have begun a folder after the faster had deleted it.
"""

from .artifact import Artifact, Claim
from .files import delete_folder, listing, read_json, write_json

_RECIPE = "recipe.json"


def without_pieces(claim: Claim) -> Artifact | None:
    """The artifact of a claim if it is finished; what a slower driver left beside it is then deleted."""
    if claim.artifact is not None:
        delete_folder(_url(claim))
    return claim.artifact


def open_pieces(claim: Claim) -> str:
    """Folder or URL of the pieces of a claimed artifact; those of an earlier try at the same recipe are still there."""
    url = _url(claim)
    if read_json(f"{url}/{_RECIPE}") != claim.recipe:
        delete_folder(url)
        write_json(f"{url}/{_RECIPE}", claim.recipe)
    return url


def _url(claim: Claim) -> str:
    return f"{claim.url}.pieces"


def finished_pieces(url: str) -> set[int]:
    """Numbers of the pieces whose counts, which are written last, are there and not empty."""
    names = [name for name, num_bytes in listing(url).items() if num_bytes and name.endswith(".json")]
    numbers = [name.removesuffix(".json") for name in names]
    return {int(number) for number in numbers if number.isdigit()}
