"""What answering and evaluation would refuse, found before anything costs time: a run in; nothing, or a UserError, out.

Loads no model library, and no harness unless its tasks are asked for.
"""

from fusechat.config import RunConfig
from fusechat.text.questions import read_questions

from . import harness
from .judge.judge_client import judge_key


def check_questions(config: RunConfig) -> None:
    """Raises DialogueError for a file of `evaluation.questions.sets` that cannot be read, or holds what is no question."""
    for section in config.evaluation.questions.sets:
        read_questions(section.file, section.form)


def check(config: RunConfig) -> None:
    """Refuse what can be known from the run file, its files of questions, the environment and the harness.

    Raises:
        DialogueError: as `check_questions`.
        ConfigError: the judge's key is not there, the harness is not installed or does not have a task.
    """
    section = config.evaluation
    check_questions(config)
    if section.judge is not None:
        judge_key(section.judge)
    if section.lm_eval.tasks:
        harness.check(section.lm_eval.tasks, section.lm_eval.folder, unsafe_code=section.lm_eval.unsafe_code)
