"""Tokens of dialogues that come one after the other: made and written in pieces in this process, so that none is held for long.

For dialogues that stand in no split's file, such as written answers. The artifact is the one that `fusechat tokenize` would make.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from ..storage.artifact import Claim
from ..storage.files import delete_folder
from ..storage.pieces import open_pieces
from ..storage.token_pieces import JoinInputs, TokenJoiner, TokenSums, lay_out_pieces, sum_counts, write_piece
from ..storage.tokens import OF_TOKENS, finish_tokens
from .dialogues import Dialogue
from .model_tokens import ModelTokens, none_readable

PIECE_DIALOGUES = 1000


def write_streamed(
    claim: Claim, maker: ModelTokens, dialogues: Iterable[Dialogue], attributes: dict[str, Any]
) -> TokenSums:
    """Write a claimed tokens artifact but for its record.

    Args:
        attributes: of the artifact, beside those that the model gives.
    Returns:
        sums over all dialogues, as the template ends their turns.
    Raises:
        ModelError: nothing ends a turn, or no dialogue can be read.
    """
    delete_folder(f"{claim.url}.pieces")
    pieces, num_pieces = open_pieces(claim), 0
    left = iter(dialogues)
    while piece := list(islice(left, PIECE_DIALOGUES)):
        tokens, counts = maker.make(piece)
        write_piece(pieces, num_pieces, {name: getattr(tokens, name) for name in OF_TOKENS}, counts)
        num_pieces += 1
    sums = sum_counts(pieces, num_pieces, max_listed=1)
    if sums.num_set_aside and sums.num_set_aside == sums.dialogues:
        raise none_readable(maker.name, sums.dialogues, "the dialogues", sums.set_aside[0][1])
    appended = maker.own_end() if sums.turns and sums.open_turns == sums.turns else None
    lay_out_pieces(claim.url, pieces, sums, num_pieces, appended)
    joiner = TokenJoiner(JoinInputs(claim.url, pieces))
    joiner.start()
    for unit in range(num_pieces):
        joiner.run_unit(unit)
    joiner.close()
    made = {**maker.attributes(), "appended_end": appended, "turn_end_ids": sums.end_ids(appended)}
    finish_tokens(claim.url, {**attributes, **made})
    delete_folder(pieces)
    return sums
