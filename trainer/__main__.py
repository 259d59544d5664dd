"""`accelerate launch -m trainer RUN.yaml TARGET [section.field=value ...]`: one of several processes that train a target."""

import sys

from accelerate import PartialState

from fusechat.config import load_config
from fusechat.errors import UserError
from fusechat.progress import Progress, setup_logging

from .inputs import TrainingInputs
from .stage import run


def main(arguments: list[str]) -> int:
    """Train one target; 2 for a user's mistake."""
    if len(arguments) < 2:
        print("usage: accelerate launch [...] -m trainer RUN.yaml TARGET [section.field=value ...]", file=sys.stderr)
        return 2
    setup_logging()
    try:
        with Progress() as progress:
            inputs = TrainingInputs.of(load_config(arguments[0], arguments[2:]))
            artifact = run(inputs, arguments[1], progress=progress)
    except UserError as error:
        print(error, file=sys.stderr)
        return UserError.exit_status
    if PartialState().is_main_process:
        print(artifact.url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
