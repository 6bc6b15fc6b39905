"""``qrkt-hw jobs list``, ``show``, ``cancel`` and ``adopt``."""

from pathlib import Path
from typing import Any

import click

from qrkt_hw.commands.interface import Group, echo, run_argument, table
from qrkt_hw.errors import UserError

PENDING = ("planned", "submitting", "submitted", "held")


@click.group(cls=Group)
def jobs() -> None:
    """Jobs that a run sent to a device: what they are, cost and wait for."""


@jobs.command("list")
@run_argument
@click.option("--json", "as_json", is_flag=True, help="one JSON array on standard output")
def list_(run: Path | None, as_json: bool) -> None:
    """Every job of RUN: state, device, executions, estimated and billed seconds."""
    from qrkt_hw.runs.atomic import to_json

    folder, journal = _open(run, write=False)
    with journal:
        kinds = {a.id: a.kind for a in journal.activities()}
        found = journal.submissions()
        billed = sum(s.billed or 0.0 for s in found)
        if as_json:
            echo(to_json([_shown(s, kinds) for s in found]))
            return
        columns = ("#", "for", "state", "job", "device", "executions", "estimated s", "billed s", "remark")
        table(columns, (
            (str(s.id), kinds[s.activity], s.state, s.job or "-", s.device, f"{s.executions:,}", f"{s.estimated:.1f}",
             "-" if s.billed is None else f"{s.billed:.1f}", s.remark[:60])
            for s in found
        ))  # fmt: skip
        echo(f"{len(found)} jobs of {folder.path}, {billed:.1f} s billed")


@jobs.command()
@run_argument
@click.option("--number", type=int, help="which, by its number in the list  [default: the last]")
def show(run: Path | None, number: int | None) -> None:
    """One job of RUN, everything the journal knows of it."""
    from datetime import datetime

    _, journal = _open(run, write=False)
    with journal:
        found = journal.submissions()
        chosen = [s for s in found if s.id == number] if number is not None else found[-1:]
        if not chosen:
            raise UserError(f"--number: the run has no job {number}; qrkt-hw jobs list shows {len(found)}")
        kinds = {a.id: a.kind for a in journal.activities()}
        for key, value in _shown(chosen[0], kinds).items():
            if key in ("created", "changed"):
                value = datetime.fromtimestamp(value).isoformat(" ", "seconds")
            if key == "circuits":
                value = f"{len(value)}: " + ", ".join(k[:12] for k in value)
            echo(f"{key:12} {value if value not in (None, '') else '-'}")


@jobs.command()
@run_argument
@click.option("--number", type=int, help="only this one, by its number in the list")
def cancel(run: Path | None, number: int | None) -> None:
    """Cancel the jobs of RUN that are not done; what they used already is billed."""
    folder, journal = _open(run, write=True)
    with journal:
        chosen = _chosen(journal, number, PENDING)
        if not chosen:
            echo(f"no job of {folder.path} is under way")
            return
        service = None
        for one in chosen:
            if one.state == "planned":
                journal.mark(one, "failed", remark="cancelled before it was sent")
                continue
            service = service or _service(journal, one)
            job_id = one.job or service.find(one.tag)
            if job_id is None:
                echo(f"#{one.id}: the service finds no job by its tag; it stays {one.state}")
                continue
            text = service.cancel(job_id)
            if text == "done":  # its result waits to be taken
                journal.mark(one, "submitted", job=job_id)
                echo(f"#{one.id}: job {job_id} is done already; --resume takes its result")
            else:
                journal.mark(one, "failed", job=job_id, remark="cancelled by qrkt-hw jobs cancel")
                echo(f"#{one.id}: job {job_id} {text}")


@jobs.command()
@run_argument
@click.option("--number", type=int, help="only this one, by its number in the list")
@click.option("--job", "job_id", help="the service's id of the job, where its tag does not find it; needs --number")
def adopt(run: Path | None, number: int | None, job_id: str | None) -> None:
    """Find jobs of RUN whose answer was lost; --resume then takes their results."""
    if job_id is not None and number is None:
        raise UserError("--job needs --number: which of the jobs in qrkt-hw jobs list it is")
    folder, journal = _open(run, write=True)
    with journal:
        chosen = _chosen(journal, number, ("submitting", "held"))
        if not chosen:
            echo(f"no job of {folder.path} is held")
            return
        service = _service(journal, chosen[0])
        for one in chosen:
            found = job_id or service.find(one.tag)
            if job_id is not None:
                service.look(job_id)
            if found is None:
                journal.mark(one, "held")
                echo(f"#{one.id}: the service finds no job by its tag; --resume --resubmit sends it anew")
            else:
                journal.mark(one, "submitted", job=found, remark="adopted")
                echo(f"#{one.id}: adopted job {found}; --resume takes its result")


def _open(run: Path | None, write: bool) -> tuple[Any, Any]:
    from qrkt_hw.runs import RunFolder, newest

    folder = RunFolder.open(run if run is not None else newest(having="journal.sqlite"))
    if run is None:
        echo(f"run {folder.path}", err=True)
    if not folder.journal.is_file():
        raise UserError(f"run: {folder.path} sent nothing to a device (it has no journal.sqlite)")
    from qrkt_hw.backends.device.journal import Journal

    return folder, Journal(folder.journal, write=write)


def _chosen(journal: Any, number: int | None, states: tuple[str, ...]) -> list[Any]:
    found = [s for s in journal.submissions() if s.state in states]
    if number is None:
        return found
    if number not in [s.id for s in journal.submissions()]:
        raise UserError(f"--number: the run has no job {number}; see qrkt-hw jobs list")
    return [s for s in found if s.id == number]


def _service(journal: Any, submission: Any) -> Any:
    """The service that a job was sent to."""
    arguments = next(a for a in journal.activities() if a.id == submission.activity).arguments
    terms = arguments.get("terms")  # with the instance of the entry, where no flag named another
    if isinstance(terms, dict) and terms.get("provider") == "qrmi":
        from qrkt_hw.backends.qrmi import Resource

        return Resource(submission.device)
    from qrkt_hw.backends.ibm.account import Account

    instance = arguments.get("instance") or (terms.get("instance") if isinstance(terms, dict) else None)
    if instance is not None and not isinstance(instance, str):
        raise UserError(f"{journal.path} is damaged: instance of activity {submission.activity} is no text")
    return Account(instance)


def _shown(submission: Any, kinds: dict[int, str]) -> dict[str, Any]:
    return {
        "number": submission.id, "for": kinds[submission.activity], "state": submission.state, "job": submission.job,
        "tag": submission.tag, "session": submission.session, "device": submission.device,
        "executions": submission.executions, "estimated": submission.estimated, "billed": submission.billed,
        "circuits": list(submission.keys), "remark": submission.remark, "created": submission.created,
        "changed": submission.changed,
    }  # fmt: skip
