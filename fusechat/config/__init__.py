"""The run file: one YAML in, frozen sections out. Imports nothing heavy, so that the command line answers at once."""

from .cluster import ClusterSection, PlanSection
from .evaluation import (
    AnswerSetSection,
    EvaluationSection,
    ExactSection,
    HeldOutSection,
    JudgeSection,
    LmEvalSection,
    QuestionsSection,
)
from .models import EngineSection, ModelSection
from .rounds import RoundsSection
from .run import RunConfig, load_config
from .stages import AlignmentSection, Capture, DialoguesSection, ExtractionSection, MergeSection, RunSection
from .training import CONTROL, FUSION_FIELDS, JOINT, LoraSection, TrainingSection

__all__ = [
    "CONTROL",
    "FUSION_FIELDS",
    "JOINT",
    "AlignmentSection",
    "AnswerSetSection",
    "Capture",
    "ClusterSection",
    "DialoguesSection",
    "EngineSection",
    "EvaluationSection",
    "ExactSection",
    "ExtractionSection",
    "HeldOutSection",
    "JudgeSection",
    "LmEvalSection",
    "LoraSection",
    "MergeSection",
    "ModelSection",
    "PlanSection",
    "QuestionsSection",
    "RoundsSection",
    "RunConfig",
    "RunSection",
    "TrainingSection",
    "load_config",
]
