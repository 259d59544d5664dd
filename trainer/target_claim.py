"""A target's folder is taken, or is finished: known without torch, so that a run of which all is trained starts at once."""

import shutil

from fusechat.models.resolved_model import ResolvedModel
from fusechat.storage import artifact
from fusechat.storage.artifact import Artifact, Claim
from fusechat.storage.seals import CHECKPOINTS

from . import choice_stage
from .inputs import TrainingInputs


def claim_target(inputs: TrainingInputs, pivot: ResolvedModel, target_name: str) -> Claim:
    """Take a target's folder; neither rows nor a model are read.

    Raises:
        ArtifactError: the artifacts that it is trained from are missing, or the folder holds another recipe's work.
    """
    recipe, target = inputs.recipe(target_name), inputs.layout.target_path(target_name)
    claim = artifact.claim(
        target, "target", settings={**recipe.settings, "pivot": pivot.digests},
        parents=parents_of(inputs, target_name), if_changed=inputs.layout.if_changed,
    )  # fmt: skip
    if claim.artifact is not None:  # killed just before it could delete them
        shutil.rmtree(target / CHECKPOINTS, ignore_errors=True)
    return claim


def parents_of(inputs: TrainingInputs, target_name: str) -> dict[str, Artifact]:
    """What a target is trained from, by role: the choice is made here, unless it was before."""
    recipe = inputs.recipe(target_name)
    if "choice" in recipe.parents:  # not made before where this target is trained alone
        choice_stage.run(inputs.layout, inputs.pivot.name, inputs.source_names, is_round=inputs.is_round)
    return {role: artifact.load(*inputs.layout.place(key)) for role, key in recipe.parents.items()}
