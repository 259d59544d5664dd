"""`fusechat submit`: a run as a Ray job. Sends it, follows its log, survives a lost connection, stops it.

A run resumes from its stores, so submitting it again is how it is retried. Submission ids are `RUN-DIGEST-ATTEMPT`: the
same run file finds its own attempts, joins one that is running (and refuses one that runs another stage) and begins the
next one otherwise. No secret is sent: what the job needs must be in the environment of the nodes.
"""

import asyncio
import logging
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fusechat.config import RunConfig
from fusechat.errors import ClusterSetupError, first_line
from fusechat.version import __version__

from . import working_dir
from .job_names import attempt_prefix, entrypoint
from .job_server import connect, submit_when_ready

SILENT_SECONDS = 60.0
"""After so long without a line the log is opened afresh: a connection that died without a word looks the same."""
RECONNECT_SECONDS = 900.0
"""How long a lost connection is tried again; the job goes on meanwhile."""
RETRY_SECONDS = 2.0
INTERRUPTED = 130
ON_ITS_CLUSTER = "cluster.address=auto"
"""Set for a job whose run file names no cluster: it works on the one that it was sent to."""


class Submission:
    """A cluster's job server, and the jobs of one run on it."""

    def __init__(self, address: str, config: RunConfig, *, say: Callable[[str], None]) -> None:
        """Connect, and compare versions.

        Raises:
            ClusterSetupError: no Ray at the address, a wrong token, or another version of Ray.
        """
        self.config, self.say = config, say
        self.client = connect(address)
        self.prefix = attempt_prefix(config)

    def attempts(self) -> dict[str, Any]:
        """Submission id -> job, of this run's attempts, oldest first."""
        jobs = {job.submission_id: job for job in self.client.list_jobs() if job.submission_id}
        own = [name for name in jobs if re.fullmatch(re.escape(self.prefix) + r"\d+", name)]
        return {name: jobs[name] for name in sorted(own, key=lambda name: int(name.rsplit("-", 1)[1]))}

    def find(self, submission_id: str) -> str:
        """The id, if there is such a job.

        Raises:
            ClusterSetupError: there is none; the ones there are named.
        """
        known = [job.submission_id for job in self.client.list_jobs() if job.submission_id]
        if submission_id not in known:
            newest = ", ".join(sorted(known)[-8:]) or "none"
            raise ClusterSetupError(f"no job {submission_id!r} at {self.client.get_address()}; there are: {newest}")
        return submission_id

    def running(self, stage: str | None = None) -> str | None:
        """The attempt of this run that has not ended.

        Raises:
            ClusterSetupError: it runs another stage than the one asked for.
        """
        alive = {name: job for name, job in self.attempts().items() if not job.status.is_terminal()}
        for name, job in reversed(alive.items()):
            its_stage = (job.metadata or {}).get("stage")
            if stage is not None and its_stage != stage:
                raise ClusterSetupError(
                    f"{name} is running at {self.client.get_address()} with --stage {its_stage}, asked for is --stage {stage}; "
                    f"wait for it, end it with --stop, or join it with --submission-id {name}"
                )
            return name
        return None

    def start(self, run_file: Path, folder: Path, overrides: list[str], stage: str) -> str:
        """Send the working directory and start the next attempt.

        Args:
            stage: `run`, or a name of `fusechat.app.pipeline.STAGES`.
        Raises:
            ClusterSetupError: a working directory that is too large or cannot work elsewhere.
        """
        folder = folder.resolve()
        if not run_file.resolve().is_relative_to(folder):
            raise ClusterSetupError(
                f"{run_file}: not in the working directory {folder}; move it there, or give --working-dir"
            )
        excludes = working_dir.excludes_of(self.config.cluster, self.config.layout, folder)
        files = working_dir.sent_files(folder, excludes)
        working_dir.check_working_dir(self.config, folder, files)
        attempt = 1 + max((int(name.rsplit("-", 1)[1]) for name in self.attempts()), default=0)
        submission_id = f"{self.prefix}{attempt}"
        if not self.config.cluster.address:
            overrides = [*overrides, ON_ITS_CLUSTER]
        self.say(f"submit: sending {folder}, {sum(files.values()) / working_dir.MIB:,.1f} MiB in {len(files)} files")
        submit_when_ready(
            self.client,
            entrypoint=entrypoint(run_file.resolve().relative_to(folder), overrides, stage),
            submission_id=submission_id,
            runtime_env={
                "working_dir": str(folder),
                "excludes": excludes,
                "env_vars": {"PYTHONUNBUFFERED": "1", **self.config.cluster.env_vars},
            },
            metadata={"fusechat": __version__, "run": str(self.config.run.output), "stage": stage},
        )
        return submission_id

    def stop(self, submission_id: str) -> None:
        """Ask the job to end, and wait until it has; what it finished is kept."""
        if not self.client.stop_job(submission_id):
            self.say(f"submit: {submission_id} had ended before: {self.client.get_job_status(submission_id)}")
            return
        while not self.client.get_job_status(submission_id).is_terminal():
            time.sleep(0.2)
        self.say(f"submit: {submission_id} is stopped; the same submit command goes on from there")

    def follow(self, submission_id: str) -> int:
        """Copy the job's log to standard output until it ends.

        Returns:
            0 if it succeeded; else its own exit status, or 1; 130 if this command was interrupted, not the job.
        """
        try:
            asyncio.run(self._copy_log(submission_id))
        except KeyboardInterrupt:
            self.say(f"submit: {submission_id} goes on; the same command joins it again, with --stop it ends it")
            return INTERRUPTED
        job = self.client.get_job_info(submission_id)
        self.say(f"submit: {submission_id}: {job.status}")
        if str(job.status) == "SUCCEEDED":
            return 0
        if job.message:
            self.say(f"submit: {job.message.strip().splitlines()[0]}")
        return int(job.driver_exit_code or 1)

    async def _copy_log(self, submission_id: str) -> None:
        printed, lost_since = 0, None
        while True:
            try:
                position = 0
                async for text in _until_silent(self.client.tail_job_logs(submission_id)):
                    # An opened log begins at its first line again.
                    _show(text[max(0, printed - position) :])
                    position += len(text)
                    printed = max(printed, position)
                    lost_since = None
                if self.client.get_job_status(submission_id).is_terminal():
                    # What came after the last look; nothing where the log was read to its end.
                    _show(self.client.get_job_logs(submission_id)[printed:])
                    return
                lost_since = None
            except _lost_connection() as error:
                lost_since = lost_since or time.monotonic()
                self._count_on(submission_id, lost_since, error)
            await asyncio.sleep(RETRY_SECONDS)

    def _count_on(self, submission_id: str, lost_since: float, error: BaseException) -> None:
        """Say that a connection was lost, or give up."""
        address, seconds = self.client.get_address(), time.monotonic() - lost_since
        if "does not exist" in str(error):
            raise ClusterSetupError(
                f"{address}: no longer knows {submission_id}, so it was restarted; submit again to go on from what is finished"
            ) from None
        if seconds > RECONNECT_SECONDS:
            raise ClusterSetupError(
                f"{address}: no answer for {seconds:.0f} s; the job goes on without this command: reattach with "
                f"--submission-id {submission_id}"
            ) from None
        if seconds < RETRY_SECONDS:
            self.say(f"submit: connection lost ({first_line(error)}); the job goes on, trying again")


def submit(
    config: RunConfig,
    run_file: Path,
    *,
    address: str,
    overrides: list[str],
    folder: Path,
    stage: str = "run",
    submission_id: str | None = None,
    stop: bool = False,
    follow: bool = True,
) -> int:
    """Send a run, or join or stop one that was sent; see `fusechat submit --help`.

    Returns:
        exit status for the command.
    Raises:
        ClusterSetupError: a mistake in what was asked, or another stage of this run that is running.
    """
    logging.disable(logging.INFO)  # the SDK tells of every upload and closed socket
    cluster = Submission(address, config, say=lambda line: print(line, file=sys.stderr, flush=True))
    named = cluster.find(submission_id) if submission_id else None
    if stop:
        job = named or cluster.running()
        if job is None:
            raise ClusterSetupError(f"no job of this run is running at {address}; name one with --submission-id")
        cluster.stop(job)
        return 0
    job = named or cluster.running(stage)
    if job is None:
        job = cluster.start(run_file, folder, overrides, stage)
        cluster.say(f"submit: started {job}")
    else:
        cluster.say(f"submit: {job} is there, joining it")
    if not follow:
        print(job)
        return 0
    return cluster.follow(job)


async def _until_silent(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The lines, until the log ends or is silent for long."""
    while True:
        try:
            yield await asyncio.wait_for(anext(lines), SILENT_SECONDS)
        except (StopAsyncIteration, TimeoutError):
            return


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _lost_connection() -> tuple[type[BaseException], ...]:
    import aiohttp
    import requests

    return (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)
