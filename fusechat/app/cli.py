"""The command line: parse first, import the heavy parts after."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import FuseChatError
from ..version import __version__
from .endings import end

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The run file (YAML).")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override: section.field=value. May be repeated.")]


def _version(show: bool) -> None:
    if show:
        print(f"fusechat {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Fuse chat LLMs of any architecture, size and tokenizer into one of the pivot's size."""


def _run_stage(config_path: Path, overrides: list[str], only: str | None) -> tuple[Any, dict[str, float]]:
    from ..config import load_config
    from ..progress import Progress, setup_logging

    config = load_config(config_path, overrides)
    setup_logging()
    from . import pipeline
    from .address_space import watch_address_space

    watch_address_space()
    with _resumable(), Progress() as progress:
        return config, pipeline.run(config, progress=progress, only=only)


@contextmanager
def _resumable() -> Iterator[None]:
    """Say what an interruption means; here, because typer ends the process without a word before `main` sees it."""
    try:
        yield
    except KeyboardInterrupt:
        print("fusechat: interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def run(config: ConfigOption, set_: SetOption = []) -> None:  # noqa: B006
    """Run all stages, skipping what is done, and show the result."""
    resolved, seconds = _run_stage(config, set_, None)
    from .summary import show_summary

    show_summary(resolved, seconds)


def _stage_command(stage: str, text: str) -> None:
    def command(config: ConfigOption, set_: SetOption = []) -> None:  # noqa: B006
        resolved, _ = _run_stage(config, set_, stage)
        print(resolved.run.output)

    command.__doc__ = text
    app.command(name=stage)(command)


for _stage, _text in {
    "write": "Let models answer the prompts, and keep answers as dialogues.",
    "tokenize": "Read, check and tokenize the dialogues for every model.",
    "extract": "Score the dialogues with every teacher and store the top-k rows.",
    "align": "Lay every source's rows on the pivot's tokens and vocabulary.",
    "train": "Train one target per source, and the SFT-only control.",
    "merge": "Merge the targets into the fused model.",
    "rounds": "Let the student answer, and train it on what the sources say of its answers.",
    "answer": "Let the measured models score the held-out dialogues and answer the questions.",
    "evaluate": "Make the report of what the measured models left.",
}.items():
    _stage_command(_stage, _text)


@app.command()
def ablate(
    config: Annotated[Path, typer.Option("-c", "--config", help="The ablation file (YAML).")],
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Run a grid of variants of a run, sharing what they have in common, and show its tables."""
    from ..config.ablation import load_ablation

    resolved = load_ablation(config, set_)
    from ..progress import Progress, setup_logging

    setup_logging()
    from . import ablation
    from .summary import show_tables

    with _resumable(), Progress() as progress:
        tables = ablation.run(resolved, progress=progress)
    show_tables(resolved.output, tables)


@app.command()
def status(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every few seconds, until the run ends.")] = False,
) -> None:
    """Show what a run has, per stage, source and shard."""
    from ..config import load_config
    from .status import show_status, watch_status

    (watch_status if watch else show_status)(load_config(config, set_))


@app.command()
def plan(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Show sizes, GPUs, hours, bytes and price of a run before anything is spent."""
    from ..config import load_config
    from .plan.report import show_plan

    show_plan(load_config(config, set_), as_json=as_json)


@app.command()
def submit(
    config: ConfigOption,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, such as http://head:8265.")],
    set_: SetOption = [],  # noqa: B006
    stage: Annotated[str, typer.Option(help="`run`, or one stage.")] = "run",
    working_dir: Annotated[Path, typer.Option(help="Folder to send; the run file lies in it.")] = Path("."),
    submission_id: Annotated[str | None, typer.Option(help="Join (or stop) this job instead of starting one.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the run's job; what is finished is kept.")] = False,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Print the submission id and return.")] = False,
) -> None:
    """Run on a Ray cluster as a job: send it, follow its log, join or stop it. The same run again goes on."""
    from cluster.jobs import submission

    from ..config import load_config
    from ..errors import ConfigError
    from .pipeline import STAGES

    if stage not in ("run", *STAGES):
        raise ConfigError(f"--stage {stage}: expected run, {', '.join(STAGES)}")
    status = submission.submit(
        load_config(config, set_), config, address=address, overrides=set_, folder=working_dir, stage=stage,
        submission_id=submission_id, stop=stop, follow=not no_follow,
    )  # fmt: skip
    raise typer.Exit(status)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="The run file (YAML).")] = None,
    set_: SetOption = [],  # noqa: B006
    models: Annotated[list[str], typer.Option("--models", help="Models of the run; default: all.")] = [],  # noqa: B006
    more: Annotated[list[str], typer.Argument(help="Further models, behind `--models`.")] = [],  # noqa: B006
    status: Annotated[
        bool, typer.Option("--status", help="Show the services started here, and their processes.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the service.")] = False,
    name: Annotated[str | None, typer.Option(help="Service to show or stop, in place of the run file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: everything as JSON.")] = False,
) -> None:
    """Keep the run's models as engines that answer over HTTP, until stopped; again: change what is served."""
    from . import serve as service

    if status:
        service.show_status(config, set_, name, as_json=as_json)
    elif stop:
        service.stop(config, set_, name)
    else:
        service.start(config, set_, [*models, *more])


@app.command()
def inspect(
    artifact: Annotated[str, typer.Argument(help="Folder or URL of an artifact.")],
    dialogue: Annotated[int, typer.Option(help="Dialogue (or prompt, with its answers) to show, counted from 0.")] = 0,
    rows: Annotated[int, typer.Option(help="Rows of it to show.")] = 24,
    verify: Annotated[bool, typer.Option("--verify", help="Read every object and check its checksum.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="The same, and take damaged shards away, to be made again.")
    ] = False,
) -> None:
    """Look into an artifact: sizes, figures, and one dialogue in readable form."""
    from .inspection import show_artifact

    show_artifact(artifact, dialogue=dialogue, num_rows=rows, verify=verify, repair=repair)


@app.command()
def chat(
    models: Annotated[list[str], typer.Argument(help="Model folders, such as runs/quickstart/fused.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: the most probable token each time.")] = 0.0,
) -> None:
    """Talk to a model, or to several side by side."""
    from .chat import chat_loop

    chat_loop(models, max_new_tokens=max_new_tokens, temperature=temperature)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Model folder, such as runs/quickstart/fused.")],
    repository: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Really send it; without it, only say what would be sent.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token_variable: Annotated[str, typer.Option(help="Environment variable that holds the hub's token.")] = "HF_TOKEN",
) -> None:
    """Upload a model to the hub."""
    from .push import push as upload

    print(upload(folder, repository, confirmed=yes, private=private, token_variable=token_variable))


def main() -> None:
    """Entry point: exit status 2 and one clear line for a user's mistake, 1 for a failure."""
    try:
        app()
    except (FuseChatError, MemoryError, RuntimeError, OSError) as error:
        end(error)
