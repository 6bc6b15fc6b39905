"""What was asked of a device and what came back, on disk, so that nothing is paid for twice.

An activity is one inference or training on one device. Its submissions go through the states

``planned -> submitting -> submitted -> done``, or ``failed`` (the service refused it, or it failed there), or ``held``:
sent, and neither an answer came nor could the job be found by its tag. A held submission is adopted or sent again only
on the user's word. Every change is on disk before the next step is taken (SQLite, synchronous).
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from qiskit.primitives import BitArray

from qrkt_hw.errors import UserError

State = Literal["planned", "submitting", "submitted", "done", "failed", "held"]
OPEN: tuple[State, ...] = ("planned", "submitting", "submitted", "held")
FORMAT = 1
STATES = frozenset({*OPEN, "done", "failed"})
LATEST = 253_402_300_799  # seconds since 1970 at the end of the year 9999
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
"""


@dataclass(frozen=True)
class Activity:
    """One inference or training on a device.

    Attributes:
        id: in the journal.
        name: unique in the world; makes tags.
        kind: ``infer`` or ``train``.
        device: where.
        arguments: what it was started with.
        finished: whether it came to its end.
        created: seconds since 1970.
    """

    id: int
    name: str
    kind: str
    device: str
    arguments: dict[str, Any]
    finished: bool
    created: float


@dataclass(frozen=True)
class Submission:
    """One job, or the intention of one.

    Attributes:
        id: in the journal.
        activity: it belongs to.
        tag: under which the job is found.
        state: see the module.
        job: the service's id, once known.
        session: of the service, where there is one.
        device: where.
        keys: content hashes of the works in it, in order.
        executions: circuits x shots.
        estimated, billed: QPU seconds; None before the bill.
        remark: what went wrong.
        created, changed: seconds since 1970.
    """

    id: int
    activity: int
    tag: str
    state: State
    job: str | None
    session: str | None
    device: str
    keys: tuple[str, ...]
    executions: int
    estimated: float
    billed: float | None
    remark: str
    created: float
    changed: float


_DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # what reading a damaged file ends in
_COLUMNS = (
    "id, activity, tag, state, job, session, device, keys, executions, estimated, billed, remark, created, changed"
)


class Journal:
    """The journal of a run.

    Args:
        path: its file; None keeps it in memory.
        write: be the only process that writes; others may read.

    Raises:
        UserError: another process is writing, or the file is damaged or cannot be written.
    """

    def __init__(self, path: Path | None, write: bool = True) -> None:
        self.path = path
        self._handle: Any = None
        self._base: Any = None
        if path is not None and write:
            try:
                # neither emptied nor followed: the folder may be somebody else's, and the lock a link
                lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
                self._handle = os.fdopen(lock, "r+")
            except OSError as error:
                raise UserError(f"run: {path.parent} cannot be written: {error.strerror}") from error
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._handle.close()
                raise UserError(
                    f"run: another process is at work on {path.parent} with a device; wait for it, or stop it"
                ) from error
        try:
            # not mode=ro: what a killed process left half-written must be rolled back before anything is read
            self._base = sqlite3.connect(":memory:" if path is None else path, isolation_level=None, timeout=20)
            if write:
                self._base.execute("pragma synchronous = full")
                if self._base.execute("pragma user_version").fetchone()[0] not in (0, FORMAT):
                    raise UserError(f"{path} was written by another version of qrkt-hw")
                self._base.executescript(_TABLES + f"pragma user_version = {FORMAT};")
            self._base.execute("select count(*) from submissions").fetchone()
            if not write:
                self._base.execute("pragma query_only = on")
        except _DAMAGE as error:
            self.close()
            if write and "readonly" in str(error):
                raise UserError(f"run: {path} cannot be written") from error
            raise UserError(f"{path} is damaged: it is not a journal ({error})") from error
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """Let others write."""
        if self._base is not None:
            self._base.close()
        if self._handle is not None:
            self._handle.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, statement: str, values: Sequence[Any] = ()) -> Any:
        try:
            return self._base.execute(statement, values)
        except sqlite3.OperationalError as error:  # a full disk, a folder that may not be written
            raise UserError(f"{self.path} cannot be read or written: {error}") from error
        except _DAMAGE as error:
            raise UserError(f"{self.path} is damaged: it is not a journal ({error})") from error

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows; a page of the file may turn out to be damaged only when it is read."""
        try:
            return self._do(statement, values).fetchall()
        except _DAMAGE as error:
            raise UserError(f"{self.path} is damaged: it is not a journal ({error})") from error

    def _sound(self, holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"{self.path} is damaged: {what}")

    # activities ----------------------------------------------------------------------------------------------------
    def start(self, kind: str, device: str, arguments: dict[str, Any]) -> Activity:
        """A new activity."""
        name = uuid.uuid4().hex[:12]
        self._do(
            "insert into activities (name, kind, device, arguments, created) values (?, ?, ?, ?, ?)",
            (name, kind, device, json.dumps(arguments, sort_keys=True, default=str), time.time()),
        )
        return self.activities()[-1]

    def activities(self) -> list[Activity]:
        """All, oldest first."""
        rows = self._rows("select id, name, kind, device, arguments, finished, created from activities order by id")
        return [self._activity(row) for row in rows]

    def _activity(self, row: Any) -> Activity:
        identity, name, kind, device, text, finished, created = row
        arguments = _json(text)
        sound = all(isinstance(v, str) and v.isprintable() for v in (name, kind, device)) and isinstance(
            arguments, dict
        )
        self._sound(sound and _number(created, LATEST), f"activity {identity} is not what qrkt-hw writes")
        return Activity(identity, name, kind, device, arguments, bool(finished), created)  # type: ignore[arg-type]

    def unfinished(self, kind: str) -> Activity | None:
        """The newest activity of that kind, where it did not come to its end."""
        own = [a for a in self.activities() if a.kind == kind]
        return own[-1] if own and not own[-1].finished else None

    def finish(self, activity: Activity) -> None:
        """It came to its end."""
        self._do("update activities set finished = 1 where id = ?", (activity.id,))

    def abandon(self, activity: Activity) -> None:
        """Nothing of it will be asked for again; what it submitted stays listed."""
        self.finish(activity)

    def keep_plan(self, activity: Activity, plan: bytes | None, calibrated: str | None) -> None:
        """Pin layouts and circuits; None lets them go."""
        self._do("update activities set plan = ?, calibrated = ? where id = ?", (plan, calibrated, activity.id))

    def plan(self, activity: Activity) -> tuple[bytes | None, str | None]:
        """What :meth:`keep_plan` pinned, and the calibration it was made with."""
        ((plan, calibrated),) = self._rows("select plan, calibrated from activities where id = ?", (activity.id,))
        sound = (plan is None or isinstance(plan, bytes)) and (calibrated is None or isinstance(calibrated, str))
        self._sound(sound, f"the plan of activity {activity.id} is not what qrkt-hw writes")
        return plan, calibrated

    # submissions ---------------------------------------------------------------------------------------------------
    def intend(
        self, activity: Activity, device: str, keys: Sequence[str], executions: int, estimated: float
    ) -> Submission:
        """Write down a submission before anything is sent."""
        now = time.time()
        tag = f"qrkt-job-{activity.name}-{uuid.uuid4().hex[:16]}"
        cursor = self._do(
            "insert into submissions (activity, tag, state, device, keys, executions, estimated, created, changed) "
            "values (?, ?, 'planned', ?, ?, ?, ?, ?, ?)",
            (activity.id, tag, device, json.dumps(list(keys)), executions, estimated, now, now),
        )
        return self.submission(int(cursor.lastrowid or 0))

    def submission(self, identity: int) -> Submission:
        """By its id."""
        (row,) = self._rows(f"select {_COLUMNS} from submissions where id = ?", (identity,))
        return self._submission(row, [row[1]])

    def submissions(self, activity: Activity | None = None, states: Sequence[str] | None = None) -> list[Submission]:
        """Of one activity or all, in the order they were intended."""
        known = [i for (i,) in self._rows("select id from activities")]
        rows = self._rows(f"select {_COLUMNS} from submissions order by id")
        return [
            s for s in (self._submission(row, known) for row in rows)
            if (activity is None or s.activity == activity.id) and (states is None or s.state in states)
        ]  # fmt: skip

    def _submission(self, row: Any, activities: Sequence[int]) -> Submission:
        keys = _json(row[7])
        values = [*row[:7], tuple(keys) if isinstance(keys, list) else (), *row[8:]]
        one = Submission(*values)
        texts = (one.tag, one.device, *(t for t in (one.job, one.session) if t is not None))
        sound = (
            one.activity in activities
            and one.state in STATES
            and isinstance(keys, list)
            and all(isinstance(key, str) for key in keys)
            and all(isinstance(text, str) and text.isprintable() for text in texts)
            and isinstance(one.remark, str)
            and isinstance(one.executions, int)
            and all(_number(v) for v in (one.executions, one.estimated, 0 if one.billed is None else one.billed))
            and all(_number(v, LATEST) for v in (one.created, one.changed))
        )
        self._sound(sound, f"job {one.id} is not what qrkt-hw writes")
        return replace(one, remark=_text(one.remark) or "")

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
        """Go to another state; what is not named stays."""
        self._do(
            "update submissions set state = ?, job = coalesce(?, job), session = coalesce(?, session), "
            "billed = coalesce(?, billed), remark = coalesce(?, remark), changed = ? where id = ?",
            (state, _text(job), _text(session), billed, _text(remark), time.time(), submission.id),
        )
        return self.submission(submission.id)

    def done(self, submission: Submission, outcomes: Sequence[dict[str, BitArray]], billed: float) -> Submission:
        """Keep raw results and bill, in one step."""
        self._do("begin immediate")
        try:
            for key, outcome in zip(submission.keys, outcomes, strict=True):
                self._do(
                    "insert or replace into outcomes values (?, ?, ?, ?)",
                    (submission.activity, key, submission.id, packed(outcome)),
                )
            self._do(
                "update submissions set state = 'done', billed = ?, changed = ? where id = ?",
                (billed, time.time(), submission.id),
            )
        except BaseException:
            self._do("rollback")
            raise
        self._do("commit")
        return self.submission(submission.id)

    def outcome(self, activity: Activity, key: str) -> dict[str, BitArray] | None:
        """Raw results of a work; None where there are none yet.

        Raises:
            UserError: what is there is damaged.
        """
        rows = self._rows("select data from outcomes where activity = ? and key = ?", (activity.id, key))
        if not rows:
            return None
        try:
            return unpacked(rows[0][0])
        except Exception as error:  # whatever zip, npz and arrays make of damaged bytes
            raise UserError(f"{self.path} is damaged: results of {key[:12]} cannot be read") from error

    def billed(self, activity: Activity) -> float:
        """QPU seconds of an activity so far."""
        return self.totals(activity)[0]

    def totals(self, activity: Activity) -> tuple[float, float, int]:
        """Billed and estimated QPU seconds and the number of jobs that an activity sent, by whatever process."""
        sent = [s for s in self.submissions(activity) if s.job is not None]
        return sum(s.billed or 0.0 for s in sent), sum(s.estimated for s in sent), len(sent)


def packed(outcome: dict[str, BitArray]) -> bytes:
    """Bits of every register as compressed npz, without pickle."""
    file = io.BytesIO()
    arrays = {}
    for name, bits in outcome.items():
        arrays[f"{name}.array"], arrays[f"{name}.bits"] = bits.array, np.int64(bits.num_bits)
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def unpacked(data: bytes) -> dict[str, BitArray]:
    """What :func:`packed` packed."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        names = [name.removesuffix(".array") for name in file.files if name.endswith(".array")]
        return {name: BitArray(file[f"{name}.array"], int(file[f"{name}.bits"])) for name in names}


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _number(value: Any, most: float = math.inf) -> bool:
    """A finite number from 0 to ``most``."""
    return isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= most


def _text(value: str | None) -> str | None:
    """Text of the service without what would steer a terminal."""
    return None if value is None else "".join(c if c.isprintable() else " " for c in str(value))
