"""What was asked of a device and what came back, on disk, so that nothing is paid for twice.

An activity is one inference or training on one device, or on several devices, each of which has a part. Its
submissions go through the states

``planned -> submitting -> submitted -> done``, or ``failed`` (refused by the service, or failed there), or ``held``:
sent, without an answer, and not found by its tag; it is adopted or sent again only on the user's word. Every change is
on disk before the next step is taken (SQLite, synchronous).
"""

import io
import json
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from qiskit.primitives import BitArray

from qrkt_hw.backends.device.cache import locked
from qrkt_hw.errors import UserError

State = Literal["planned", "submitting", "submitted", "done", "failed", "held"]
FORMAT = 1
PART = "part_of"  # among the arguments of an activity: the name of that whose part it is
_TABLES = """
create table if not exists activities (
  id integer primary key, name text not null, kind text not null, device text not null, arguments text not null,
  finished integer not null default 0, plan blob, calibrated text, created real not null);
create table if not exists submissions (
  id integer primary key, activity integer not null, tag text not null unique, state text not null, job text,
  session text, device text not null, keys text not null, executions integer not null, estimated real not null,
  billed real, remark text not null default '', created real not null, changed real not null);
create table if not exists outcomes (
  activity integer not null, key text not null, submission integer not null, data blob not null,
  primary key (activity, key));
create table if not exists answers (
  activity integer not null, position integer not null, key text not null, seconds real not null default 0, data blob,
  primary key (activity, position));
create table if not exists devices (activity integer primary key, data text not null);
"""
_DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # what reading a damaged file ends in


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it would steer a terminal")
    return text


def _text(value: str | None) -> str | None:
    """Text of the service without what would steer a terminal."""
    return None if value is None else "".join(c if c.isprintable() else " " for c in str(value))


Text = Annotated[str, AfterValidator(_printable)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, le=253_402_300_799)]  # seconds since 1970, until the year 9999


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Activity(_Row):  # one inference or training on a device
    id: int  # in the journal
    name: Text  # unique in the world; makes tags
    kind: Text  # ``infer``, ``train`` or ``generate``
    device: Text  # where
    arguments: dict[str, Any]  # what it was started with
    finished: Annotated[bool, Field(strict=False)]  # whether it came to its end
    created: Moment  # seconds since 1970


class Submission(_Row):
    """One job, or the intention of one."""

    id: int  # in the journal
    activity: int  # it belongs to
    tag: Text  # under which the job is found
    state: State  # see the module
    job: Text | None  # the service's id, once known
    session: Text | None  # of the service, where there is one
    device: Text  # where
    keys: Annotated[tuple[str, ...], Field(strict=False)]  # content hashes of the PUBs in it, in order
    executions: Annotated[int, Field(ge=0)]  # circuits x shots
    estimated: Amount  # QPU seconds; None before the bill
    billed: Amount | None
    remark: Annotated[str, AfterValidator(_text)]  # what went wrong
    created: Moment  # seconds since 1970
    changed: Moment


Row = TypeVar("Row", bound=_Row)


class Journal:
    """The journal of a run, in a file or, without a path, in memory; one process writes, by any of its threads, and
    others may read.

    Raises UserError: another process is writing, or the file is damaged or cannot be written.
    """

    _handle: Any = None
    _base: Any = None

    def __init__(self, path: Path | None, write: bool = True) -> None:
        self.path, self._mutex = path, threading.RLock()
        self.positions: Counter[int] = Counter()  # runs that this process has answered, by activity
        if path is not None and write:
            self._lock(path)
        try:
            # not mode=ro: what a killed process left half-written must be rolled back before anything is read
            self._base = sqlite3.connect(
                ":memory:" if path is None else path, isolation_level=None, timeout=20, check_same_thread=False
            )
            self._base.row_factory = sqlite3.Row
            if self._base.execute("pragma user_version").fetchone()[0] not in (0, FORMAT):
                raise UserError(f"{path} was written by another version of qrkt-hw; read it by that version")
            if write:
                self._base.execute("pragma synchronous = full")
                self._base.executescript(_TABLES + f"pragma user_version = {FORMAT};")
            self._base.execute("select count(*) from submissions").fetchone()
            if not write:
                self._base.execute("pragma query_only = on")
        except (*_DAMAGE, UserError) as error:
            self.close()
            if isinstance(error, UserError):
                raise
            if write and "readonly" in str(error):
                raise UserError(f"run: {path} cannot be written") from error
            raise UserError(f"{path} is damaged: it is not a journal ({error})") from error

    def _lock(self, path: Path) -> None:
        try:
            self._handle = locked(path.with_suffix(".lock"))
        except OSError as error:
            raise UserError(f"run: {path.parent} cannot be written: {error.strerror}") from error
        if self._handle is None:
            what = f"{path.parent} is locked by another process that is running on a device"
            raise UserError(f"run: {what}; wait for it, or stop it")

    def close(self) -> None:
        for one in (self._base, self._handle):
            if one is not None:
                one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute; all rows, as a page of the file may turn out to be damaged only when it is read."""
        try:
            with self._mutex:
                return self._base.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:  # a full disk, a folder that may not be written
            raise UserError(f"{self.path} cannot be read or written: {error}") from error
        except _DAMAGE as error:
            raise UserError(f"{self.path} is damaged: it is not a journal ({error})") from error

    def _has(self, table: str) -> bool:
        return bool(self._do("select name from sqlite_master where name = ?", (table,)))

    def _read(self, kind: type[Row], what: str, row: Any, holds: bool = True) -> Row:
        try:
            if not holds:
                raise ValueError("of no activity")
            listed = "arguments" if kind is Activity else "keys"
            return kind.model_validate({**dict(row), listed: json.loads(row[listed])})
        except (ValidationError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path} is damaged: {what} {row['id']} is not what qrkt-hw writes") from error

    def start(self, kind: str, device: str, arguments: dict[str, Any]) -> Activity:
        values = (uuid.uuid4().hex[:12], kind, device, json.dumps(arguments, sort_keys=True, default=str), time.time())
        self._do("insert into activities (name, kind, device, arguments, created) values (?, ?, ?, ?, ?)", values)
        return self.activities()[-1]

    def activities(self) -> list[Activity]:
        rows = self._do("select id, name, kind, device, arguments, finished, created from activities order by id")
        return [self._read(Activity, "activity", row) for row in rows]

    def unfinished(self, kind: str) -> Activity | None:
        """The newest activity of that kind, where it did not come to its end."""
        own = [a for a in self.activities() if a.kind == kind and PART not in a.arguments]
        return own[-1] if own and not own[-1].finished else None

    def parts(self, activity: Activity) -> list[Activity]:
        """The parts of an activity on several devices, one for each device."""
        return [a for a in self.activities() if a.arguments.get(PART) == activity.name]

    def finish(self, activity: Activity) -> None:
        for one in (activity, *self.parts(activity)):
            self._do("update activities set finished = 1 where id = ?", (one.id,))

    def keep_plan(self, activity: Activity, plan: bytes | None, calibrated: str | None) -> None:
        self._do("update activities set plan = ?, calibrated = ? where id = ?", (plan, calibrated, activity.id))

    def plan(self, activity: Activity) -> tuple[bytes | None, str | None]:
        ((plan, calibrated),) = self._do("select plan, calibrated from activities where id = ?", (activity.id,))
        if not isinstance(plan, bytes | None) or not isinstance(calibrated, str | None):
            raise UserError(f"{self.path} is damaged: the plan of activity {activity.id} is not what qrkt-hw writes")
        return plan, calibrated

    def keep_device(self, activity: Activity, described: dict[str, Any]) -> None:
        """Keep what the plan was made for: gates, calibration and limits of the device, options of the packer."""
        self._do("insert or replace into devices values (?, ?)", (activity.id, json.dumps(described)))

    def device(self, activity: Activity) -> dict[str, Any]:
        """What :meth:`keep_device` kept. Raises UserError: nothing, as in journals of earlier versions."""
        kept = self._has("devices")
        rows = self._do("select data from devices where activity = ?", (activity.id,)) if kept else []
        try:
            return dict(json.loads(rows[0]["data"]))
        except (LookupError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path} does not say what device {activity.device} was") from error

    def copy(self, path: Path, clean: Callable[[str, Any], Any]) -> None:
        """Write a new journal with everything but answers, each value as ``clean(column, value)`` returns it.

        Raises UserError: it cannot be written.
        """
        with Journal(path) as other:
            for table in filter(self._has, ("activities", "submissions", "outcomes", "devices")):
                for row in self._do(f"select * from {table}"):
                    values = {column: clean(column, value) for column, value in dict(row).items()}
                    places = ", ".join("?" * len(values))
                    other._do(f"insert into {table} ({', '.join(values)}) values ({places})", list(values.values()))

    def intend(
        self, activity: Activity, device: str, keys: Sequence[str], executions: int, estimated: float
    ) -> Submission:
        now = time.time()
        tag = f"qrkt-job-{activity.name}-{uuid.uuid4().hex[:16]}"
        self._do(
            "insert into submissions (activity, tag, state, device, keys, executions, estimated, created, changed) "
            "values (?, ?, 'planned', ?, ?, ?, ?, ?, ?)",
            (activity.id, tag, device, json.dumps(list(keys)), executions, estimated, now, now),
        )
        return self._read(Submission, "job", self._do("select * from submissions where tag = ?", (tag,))[0])

    def submission(self, identity: int) -> Submission:
        return self._read(Submission, "job", self._do("select * from submissions where id = ?", (identity,))[0])

    def submissions(self, activity: Activity | None = None, states: Sequence[str] | None = None) -> list[Submission]:
        """Of one activity, its parts included, or of all, in the order they were intended."""
        known = [row["id"] for row in self._do("select id from activities")]
        whole = known if activity is None else [one.id for one in (activity, *self.parts(activity))]
        rows = self._do("select * from submissions order by id")
        every = [self._read(Submission, "job", row, row["activity"] in known) for row in rows]
        own = [one for one in every if one.activity in whole]
        return [one for one in own if states is None or one.state in states]

    def mark(
        self,
        submission: Submission,
        state: State,
        *,
        job: str | None = None,
        session: str | None = None,
        billed: float | None = None,
        remark: str | None = None,
    ) -> Submission:
        self._do(
            "update submissions set state = ?, job = coalesce(?, job), session = coalesce(?, session), "
            "billed = coalesce(?, billed), remark = coalesce(?, remark), changed = ? where id = ?",
            (state, _text(job), _text(session), billed, _text(remark), time.time(), submission.id),
        )
        return self.submission(submission.id)

    def done(self, submission: Submission, outcomes: Sequence[dict[str, BitArray]], billed: float) -> Submission:
        """Keep raw results and bill, in one step."""
        with self._mutex:
            self._do("begin immediate")
            try:
                for key, outcome in zip(submission.keys, outcomes, strict=True):
                    values = (submission.activity, key, submission.id, packed(outcome))
                    self._do("insert or replace into outcomes values (?, ?, ?, ?)", values)
                found = self.mark(submission, "done", billed=billed)
            except BaseException:
                self._do("rollback")
                raise
            self._do("commit")
            return found

    def outcome(self, activity: Activity, key: str) -> dict[str, BitArray] | None:
        """Raw results of a PUB; None where there are none yet. Raises UserError: what is there is damaged."""
        rows = self._do("select data from outcomes where activity = ? and key = ?", (activity.id, key))
        try:
            return unpacked(rows[0]["data"]) if rows else None
        except Exception as error:  # whatever zip, npz and arrays make of damaged bytes
            raise UserError(f"{self.path} is damaged: results of {key[:12]} cannot be read") from error

    def asked(self, activity: Activity, position: int, key: str, again: bool = False) -> dict[str, NDArray[Any]] | None:
        """The answer to what is asked for at a position of a program; None where it is not answered yet.

        ``again`` says that what this process asked for there before has failed, so that it may ask for something else.
        Raises UserError: at that position something else was asked for.
        """
        values = (activity.id, position)
        rows = self._do("select key, data from answers where activity = ? and position = ?", values)
        if not rows:
            self._do("insert into answers (activity, position, key) values (?, ?, ?)", (*values, key))
            return None
        if again and rows[0]["data"] is None:
            self._do("update answers set key = ? where activity = ? and position = ?", (key, *values))
        elif rows[0]["key"] != key:
            what = f"{self.path}: run {position + 1} of this program differs from what was asked for there before"
            raise UserError(f"{what}; the same program with the same seed goes on, another takes another journal")
        if rows[0]["data"] is None:
            return None
        try:
            with np.load(io.BytesIO(rows[0]["data"]), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # whatever zip and npz make of damaged bytes
            raise UserError(f"{self.path} is damaged: the answer to run {position + 1} cannot be read") from error

    def answer(self, activity: Activity, position: int, arrays: dict[str, NDArray[Any]], seconds: float) -> None:
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        values = (file.getvalue(), seconds, activity.id, position)
        self._do("update answers set data = ?, seconds = ? where activity = ? and position = ?", values)

    def answered(self, activity: Activity) -> float:
        """Estimated QPU seconds of all that is answered."""
        ((total,),) = self._do("select coalesce(sum(seconds), 0) from answers where activity = ?", (activity.id,))
        return float(total)

    def billed(self, activity: Activity) -> float:
        return self.totals(activity)[0]

    def totals(self, activity: Activity) -> tuple[float, float, int]:
        """Billed and estimated QPU seconds and the number of jobs that an activity sent, by whatever process."""
        sent = [s for s in self.submissions(activity) if s.job is not None]
        return sum(s.billed or 0.0 for s in sent), sum(s.estimated for s in sent), len(sent)


def begun_terms(path: Path, kind: str) -> dict[str, Any]:
    """The terms of the unfinished activity of that kind; none where there is none, or it has none."""
    with Journal(path, write=False) as journal:
        begun = journal.unfinished(kind)
    terms = None if begun is None else begun.arguments.get("terms")
    return terms if isinstance(terms, dict) else {}


def packed(outcome: dict[str, BitArray]) -> bytes:
    """Bits of every register as compressed npz, without pickle."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {f"{name}.array": bits.array for name, bits in outcome.items()}
    sizes: dict[str, Any] = {f"{name}.bits": np.int64(bits.num_bits) for name, bits in outcome.items()}
    np.savez_compressed(file, **arrays, **sizes)
    return file.getvalue()


def unpacked(data: bytes) -> dict[str, BitArray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        names = [name.removesuffix(".array") for name in file.files if name.endswith(".array")]
        return {name: BitArray(file[f"{name}.array"], int(file[f"{name}.bits"])) for name in names}
