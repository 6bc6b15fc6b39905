"""``qrkt-hw jobs list``, ``show``, ``cancel``, ``adopt``, ``export`` and ``check``."""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from qrkt_hw.commands.interface import PATH, Group, data_dir_flag, echo, json_flag, run_argument, table, told
from qrkt_hw.errors import UserError

PENDING = ("planned", "submitting", "submitted", "held")


@click.group(cls=Group)
def jobs() -> None:
    """Jobs that a run sent to a device: what they are, cost and wait for."""


@jobs.command("list", examples="qrkt-hw jobs list runs/NAME")
@run_argument
@json_flag
def list_(run: Path | None, as_json: bool) -> None:
    """Every job of RUN: state, device, executions, estimated and billed seconds."""
    folder, journal = _open(run, write=False)
    with journal:
        kinds = {a.id: a.kind for a in journal.activities()}
        found = journal.submissions()
        billed = sum(s.billed or 0.0 for s in found)
        if as_json:
            told([_shown(s, kinds) for s in found])
            return
        rows = [
            {"#": str(s.id), "for": kinds[s.activity], "state": s.state, "job": s.job or "-", "device": s.device,
             "executions": f"{s.executions:,}", "estimated s": f"{s.estimated:.1f}",
             "billed s": "-" if s.billed is None else f"{s.billed:.1f}"}
            for s in found
        ]  # fmt: skip
        # a terminal of 80 columns has room for ids, not for what is the same in all rows, nor for ids of 36 characters
        same = [key for key in ("for", "device") if len({row[key] for row in rows}) == 1]
        apart = ["job"] if any(len(row["job"]) > 24 for row in rows) else []
        columns = [key for key in (rows[0] if rows else ()) if key not in same + apart]
        table(columns, ([row[key] for key in columns] for row in rows), right=columns[-3:])
        for row, one in zip(rows, found, strict=True):
            if told_of := "; ".join(text for text in ([row["job"]] if apart else []) + [one.remark] if text):
                echo(f"#{one.id}: {told_of}")
        where = "".join(f", {word} {rows[0][key]}" for key, word in (("for", "for"), ("device", "on")) if key in same)
        echo(f"{len(found)} jobs of {folder.path}{where}, {billed:.1f} s billed")


@jobs.command(examples="qrkt-hw jobs show runs/NAME --number 2")
@run_argument
@click.option("--number", type=int, help="which, by its number in the list  [default: the last]")
@json_flag
def show(run: Path | None, number: int | None, as_json: bool) -> None:
    """One job of RUN, everything the journal knows of it."""
    from datetime import datetime

    folder, journal = _open(run, write=False)
    with journal:
        chosen = _chosen(journal, number)[-1:]
        if not chosen:
            raise UserError(f"run: {folder.path} sent no job")
        kinds = {a.id: a.kind for a in journal.activities()}
        shown = _shown(chosen[0], kinds)
        if as_json:
            told(shown)
            return
        for key, value in shown.items():
            if key in ("created", "changed"):
                value = datetime.fromtimestamp(value).isoformat(" ", "seconds")
            if key == "circuits":
                value = f"{len(value)}: " + ", ".join(k[:12] for k in value)
            echo(f"{key:12} {value if value not in (None, '') else '-'}")


@jobs.command(examples="qrkt-hw jobs cancel runs/NAME")
@run_argument
@click.option("--number", type=int, help="only this one, by its number in the list")
@json_flag
def cancel(run: Path | None, number: int | None, as_json: bool) -> None:
    """Cancel the jobs of RUN that are not done; what they used already is billed."""
    folder, journal = _open(run, write=True)
    with journal, _answers(as_json) as answer:
        chosen = _chosen(journal, number, PENDING)
        if not chosen:
            answer(None, f"no job of {folder.path} is under way")
            return
        service = None
        for one in chosen:
            if one.state == "planned":
                journal.mark(one, "failed", remark="cancelled before it was sent")
                answer(one.id, "cancelled before it was sent")
                continue
            service = service or _service(journal, one)
            job_id = one.job or service.find(one.tag)
            if job_id is None:
                answer(one.id, f"the service finds no job by its tag; it stays {one.state}")
                continue
            text = service.cancel(job_id)
            if text == "done":  # its result waits to be taken
                journal.mark(one, "submitted", job=job_id)
                answer(one.id, f"job {job_id} is done already; --resume takes its result")
            else:
                journal.mark(one, "failed", job=job_id, remark="cancelled by qrkt-hw jobs cancel")
                answer(one.id, f"job {job_id} {text}")


@jobs.command(examples="qrkt-hw jobs adopt runs/NAME\nqrkt-hw jobs adopt runs/NAME --number 2 --job ID")
@run_argument
@click.option("--number", type=int, help="only this one, by its number in the list")
@click.option("--job", "job_id", help="the service's id of the job, where its tag does not find it; needs --number")
@json_flag
def adopt(run: Path | None, number: int | None, job_id: str | None, as_json: bool) -> None:
    """Find jobs of RUN whose answer was lost; --resume then takes their results."""
    if job_id is not None and number is None:
        raise UserError("--job needs --number: which of the jobs in qrkt-hw jobs list it is")
    folder, journal = _open(run, write=True)
    with journal, _answers(as_json) as answer:
        chosen = _chosen(journal, number, ("submitting", "held"))
        if not chosen:
            answer(None, f"no job of {folder.path} is held")
            return
        service = _service(journal, chosen[0])
        for one in chosen:
            found = job_id or service.find(one.tag)
            if job_id is not None:
                service.look(job_id)
            if found is None:
                journal.mark(one, "held")
                answer(one.id, "the service finds no job by its tag; --resume --resubmit sends it anew")
            else:
                journal.mark(one, "submitted", job=found, remark="adopted")
                answer(one.id, f"adopted job {found}; --resume takes its result")


@contextmanager
def _answers(as_json: bool) -> Iterator[Callable[[int | None, str], None]]:
    """Takes what is to be said of jobs by their numbers: printed at once, or at the end as one JSON array."""
    found: list[dict[str, Any]] = []

    def answer(number: int | None, text: str) -> None:
        if as_json:
            found.extend([{"number": number, "answer": text}] if number is not None else [])
        else:
            echo(text if number is None else f"#{number}: {text}")

    yield answer
    if as_json:
        told(found)


@jobs.command(examples="qrkt-hw jobs export runs/NAME -o record.zip")
@run_argument
@click.option("--out", type=PATH, help="file of the record  [default: NAME-record.zip of RUN here]")
@json_flag
def export(run: Path | None, out: Path | None, as_json: bool) -> None:
    """A record of RUN that others can check: journal, counts, plan, calibration, model, results; no secrets, no paths.

    It is a zip file; unpacked it is a run folder. qrkt-hw jobs check FILE computes the figures again from the counts.
    """
    from qrkt_hw.commands.interface import writing
    from qrkt_hw.runs.atomic import write_bytes

    folder, journal = _open(run, write=False)
    out = out or Path(f"{folder.path.resolve().name}-record.zip")
    if out.exists():
        raise UserError(f"--out: {out} exists already; name another file")
    with journal:
        members = _members(folder, journal)
        jobs, activities = len(journal.submissions()), len(journal.activities())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    with writing("--out", out):
        write_bytes(out, file.getvalue())
    if as_json:
        told({"file": str(out), "files": len(members), "jobs": jobs, "activities": activities})
        return
    echo(
        f"{out}: {len(members)} files, {jobs} jobs of {activities} activities; check it with: qrkt-hw jobs check {out}"
    )


@jobs.command(examples="qrkt-hw jobs check record.zip")
@click.argument("record", type=PATH)
@data_dir_flag
@json_flag
def check(record: Path, data_dir: Path | None, as_json: bool) -> None:
    """Compute the figures of a RECORD of jobs export again, from the counts in it; sends nothing.

    It needs the data set, as infer does.
    """
    from qrkt_hw.backends.device.journal import PART, Journal
    from qrkt_hw.runs import RunFolder

    with TemporaryDirectory() as place:
        folder = RunFolder(_unpacked(record, Path(place)))
        with Journal(folder.journal, write=False) as journal:
            lines = []
            for activity in journal.activities():
                whole = activity.kind == "infer" and PART not in activity.arguments
                if whole and (line := _again(folder, journal, activity, data_dir)):
                    echo(line, err=as_json)
                    lines.append(line)
    if not lines:
        raise UserError(f"{record} holds no inference of a split that came to its end")
    if as_json:
        told({"record": str(record), "checked": lines})


def _open(run: Path | None, write: bool) -> tuple[Any, Any]:
    from qrkt_hw.runs import RunFolder, newest

    folder = RunFolder.open(run if run is not None else newest(having="journal.sqlite"))
    if run is None:
        echo(f"run {folder.path}", err=True)
    if not folder.journal.is_file():
        raise UserError(f"run: {folder.path} sent nothing to a device (it has no journal.sqlite)")
    from qrkt_hw.backends.device.journal import Journal

    return folder, Journal(folder.journal, write=write)


def _chosen(journal: Any, number: int | None, states: tuple[str, ...] = ()) -> list[Any]:
    """The jobs of that number (None for all) in these states (none for all). Raises UserError: no such number."""
    found = [s for s in journal.submissions() if number in (None, s.id)]
    if number is not None and not found:
        raise UserError(f"--number: the run has no job {number}; see qrkt-hw jobs list")
    return [s for s in found if not states or s.state in states]


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


# records -------------------------------------------------------------------------------------------------------------
TEXTS = ("config.yaml", "data.json", "results.json", "environment.json", "origin.json", "backend.json", "metrics.csv",
         "circuits/*.json", "inference/*.json")  # fmt: skip
BINARY = ("circuits/*.qpy", "model.safetensors", "inference/fine-tuned-*.safetensors")
PRIVATE = ("instance", "backends_file", "data_dir", "images", "texts", "paths")  # keys: left out
LARGEST = 4 << 30  # bytes of a record, unpacked
CRN = re.compile(r"crn:v\d+:[^\s\"',]*")
MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
PLACE = re.compile(r"(?<![\w.:/~])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s\"':,;()\[\]{}]+)+[/\\]([^/\\\s\"':,;()\[\]{}]+)")
README = """A record of qrkt-hw, made by: qrkt-hw jobs export RUN

Unpacked it is a run folder; record.json has the SHA-256 of every file and the versions it was made with.

    pip install 'qrkt-hw[train,aer,ibm]'
    qrkt-hw jobs check THIS.zip            # the figures again, from the counts; nothing is sent
    qrkt-hw jobs list FOLDER               # jobs, executions and bill (of the unpacked folder)
    qrkt-hw infer FOLDER --backend fake_fez --shots 1024    # the same weights elsewhere

journal.sqlite has the tables activities (what was asked for; plan: where every circuit lies, with the ISA circuits as
QPY), submissions (jobs, estimated and billed seconds), outcomes (the bits of every circuit by SHA-256 of what was
asked for, npz) and devices (gates, errors, durations and calibration of each device). API keys, CRNs, instances, inputs
of one's own and paths were taken out.
"""


def _clean(value: Any) -> Any:
    """Without keys of the account and the machine, and without paths, addresses and keys within texts."""
    from qrkt_hw.backends.ibm.account import redacted

    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items() if key not in PRIVATE}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if not isinstance(value, str):
        return value
    text = CRN.sub("crn:***", redacted(value))
    for word in (str(Path.home()), str(Path.cwd())):
        text = text.replace(word + os.sep, "") if len(word) > 1 else text
    return MAIL.sub("***", PLACE.sub(r"\1", text))


def _members(folder: Any, journal: Any) -> dict[str, bytes]:
    """The files of a record by name. Raises UserError: one would hold what must not be given away."""
    import yaml

    from qrkt_hw.runs.atomic import to_json
    from qrkt_hw.runs.config import is_nested
    from qrkt_hw.runs.folder import environment, read_json, read_yaml

    members: dict[str, bytes] = {}
    for file in (file for pattern in TEXTS for file in sorted(folder.path.glob(pattern))):
        name = file.relative_to(folder.path).as_posix()
        if name == "config.yaml":
            values = _clean(read_yaml(file, str(file))[0])
            if not is_nested(values):
                values["backends_file"] = None  # the last key of a flat one, which says that it is whole
            members[name] = yaml.safe_dump(values, sort_keys=False, explicit_end=True).encode()
        elif name == "metrics.csv":
            members[name] = file.read_bytes()
        else:
            content = read_json(file)
            cleaned = _clean(content)
            for source in [cleaned.get("source"), *cleaned.get("sources", {}).values()] if "circuits" in name else ():
                if isinstance(source, dict) and isinstance(source.get("text"), str):
                    source["sha256"] = hashlib.sha256(source["text"].encode()).hexdigest()
            members[name] = file.read_bytes() if cleaned == content else to_json(cleaned, indent=2).encode()
    if "results.json" in members:
        results = json.loads(members["results.json"])
        data = hashlib.sha256(members["data.json"]).hexdigest()
        if results.get("data_sha256", data) != data:  # it named a folder
            members["results.json"] = to_json({**results, "data_sha256": data}, indent=2).encode()
    for file in (file for pattern in BINARY for file in folder.path.glob(pattern)):
        members[file.relative_to(folder.path).as_posix()] = file.read_bytes()

    def clean(column: str, value: Any) -> Any:
        if column == "arguments":
            return json.dumps(_clean(json.loads(value)), sort_keys=True)
        if isinstance(value, bytes) and value.startswith(b"["):  # the shares of several devices
            return json.dumps(_clean(json.loads(value))).encode()
        return _clean(value) if column in ("remark", "session") else value

    with TemporaryDirectory() as place:
        journal.copy(Path(place) / "journal.sqlite", clean)
        members["journal.sqlite"] = (Path(place) / "journal.sqlite").read_bytes()
    members["README.txt"] = README.encode()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(members.items())}
    head = {"format": 1, "files": sums, "environment": environment()}
    members = {"record.json": to_json(head, indent=2).encode(), **members}
    for name, data_of in members.items():
        for what, word in _secrets():
            if word.encode() in data_of:
                raise UserError(f"run: {name} holds {what}; no record is written, take that out of the run first")
    return members


def _secrets() -> Iterator[tuple[str, str]]:
    """What no file of a record may hold, and what that is."""
    from qrkt_hw.backends.ibm.account import saved_accounts, secrets

    yield from (("an API key", word) for word in secrets())
    saved = saved_accounts()
    for name, entry in saved.items() if isinstance(saved, dict) else ():
        yield from ((("an instance of the account", str(entry["instance"])),) if entry.get("instance") else ())
        yield from ((("the name of an account", name),) if not name.startswith("default-ibm") else ())
    if instance := os.environ.get("QISKIT_IBM_INSTANCE"):
        yield "an instance of the account", instance
    if len(str(Path.home())) > len("/root"):
        yield "a path of the home folder", str(Path.home()) + os.sep


def _unpacked(record: Path, place: Path) -> Path:
    """A record's files in ``place``, each checked. Raises UserError: it is none, or a file is not what it was."""
    try:
        with zipfile.ZipFile(record) as archive:
            if sum(one.file_size for one in archive.infolist()) > LARGEST:
                raise UserError(f"{record} would unpack to more than {LARGEST:,} bytes")
            sums = json.loads(archive.read("record.json"))["files"]
            for name, wanted in sums.items():
                parts = Path(name).parts
                if Path(name).is_absolute() or ".." in parts or len(parts) > 2:
                    raise UserError(f"{record} is damaged: {name!r} is no name of a file in it")
                content = archive.read(name)
                if hashlib.sha256(content).hexdigest() != wanted:
                    raise UserError(f"{record} is damaged: {name} is not what was exported (another sha256)")
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(content)
    except FileNotFoundError as error:
        raise UserError(f"no file {record}") from error
    except (OSError, ValueError, LookupError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{record} is no record of qrkt-hw jobs export ({type(error).__name__})") from error
    return place


def _again(folder: Any, journal: Any, activity: Any, data_dir: Path | None) -> str | None:
    """What an inference gives when its values are made of the counts in the journal once more; None without figures.

    Raises UserError: other figures than those that were recorded, or results that are missing.
    """
    from qrkt_hw.backends.device.jobs import Recorded
    from qrkt_hw.backends.several import Devices
    from qrkt_hw.experiments import devices, inference
    from qrkt_hw.experiments.loading import load, read_split
    from qrkt_hw.models.weights import load_weights
    from qrkt_hw.runs.folder import read_json

    kept = [read_json(file) for file in sorted(folder.inference.glob("*.json"))]
    mine = [one for one in kept if one.get("backend_details", {}).get("activity") == activity.name and "loss" in one]
    if not mine:
        return None
    asked, parts = mine[-1], journal.parts(activity)
    samples = read_split(folder, asked["split"], asked["count"], data_dir)
    there = [one for one in parts or [activity] if journal.submissions(one, ["done"])]
    recorded = {str(one.arguments.get("backend")): Recorded(journal, one) for one in there}
    backend: Devices | Recorded = next(iter(recorded.values()))
    fitted = asked.get("fine_tuned")
    for key, one in recorded.items():
        one.others = [other for name, other in recorded.items() if name != key]
        one.in_order = not one.others and fitted is None  # a fine-tuning asked for others before
    if parts:
        backend = Devices(",".join(recorded), recorded, {}, journal.plan(activity)[0])
    terms = activity.arguments.get("terms")
    batch, repeated = terms.get("batch") if isinstance(terms, dict) and not parts else None, asked.get("repeated")
    backend.batch = batch if isinstance(batch, int) and batch > 0 else None
    with backend.open():
        model = load(folder, backend)
        tuned = None
        if fitted is not None:
            load_weights(model, folder.inference / Path(fitted["weights"]).name)
            tuned = devices.FineTuned(fitted, load(folder))
        more = {"stage_shots": asked.get("stage_shots", ()), "repeat": repeated if isinstance(repeated, int) else 0}
        found = inference.infer_split(folder, model, asked["split"], samples, backend, tuned=tuned, **more)
    same = {key: (asked[key], found[key]) for key in ("accuracy", "loss", "agreement")}
    what = f"{asked['split']}, {asked['count']} samples on {asked['backend']}"
    for key, (then, now) in same.items():
        if abs(then - now) > (1e-5 if key == "loss" else 1e-9):
            raise UserError(f"{what}: {key} is {now:.6f} by the counts, and was recorded as {then:.6f}")
    order = (
        " (found by their order: the angles differ in rounding)" if any(r.by_order for r in recorded.values()) else ""
    )
    return f"{what}: accuracy {found['accuracy']:.4f} and loss {found['loss']:.4f} by the counts, as recorded{order}"
