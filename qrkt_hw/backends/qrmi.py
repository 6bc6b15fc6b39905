"""A QPU that a cluster's scheduler allocates to a job, through IBM's Quantum Resource Management Interface (qrmi)."""

import importlib
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

from qiskit.primitives import BitArray

from qrkt_hw.backends.budget import Budget
from qrkt_hw.backends.device.jobs import AGAIN, BillingBackend, DeviceJobs, Pending, patiently
from qrkt_hw.backends.device.journal import Activity, Journal, Submission
from qrkt_hw.backends.device.pubs import PUB
from qrkt_hw.backends.entries import QRMIEntry
from qrkt_hw.backends.ibm.account import redacted
from qrkt_hw.errors import UserError

# type of a resource in the environment of the job -> name of its kind in the package; all take circuits of Qiskit
TYPES = {
    "ibm-quantum-system": "IBMQuantumSystem", "ibm-quantum-compute-service": "IBMQuantumComputeService",
    "qiskit-runtime-service": "IBMQiskitRuntimeService", "direct-access": "IBMDirectAccess",
}  # fmt: skip
PREFIXES = ("QRMI", "SLURM")  # of the variables with the job's resources; SLURM in versions before
# set where whoever started the job has acquired the resource, and releases it
ACQUIRED = ("QRMI_JOB_ACQUISITION_TOKEN", "QRMI_IBM_QCS_SESSION_ID", "QRMI_IBM_QRS_SESSION_ID")
# errors after which nothing runs; after any other the task may have arrived
REFUSED = (
    "AuthenticationFailedError", "ConfigError", "EnvVarNotSetError", "InvalidInputError", "ResourceNotFoundError",
    "UnsupportedFunctionError", "UnsupportedPayloadError", "UnsupportedResourceTypeError",
)  # fmt: skip
STATES = {"Completed": "DONE", "Failed": "ERROR", "Cancelled": "CANCELLED", "Queued": "queued", "Running": "running"}
T = TypeVar("T")


def resources() -> dict[str, str]:
    """Name to type of the QPUs of this job, by its environment. Raises UserError: there are not as many types."""
    for prefix in PREFIXES:
        variables = f"{prefix}_JOB_QPU_RESOURCES", f"{prefix}_JOB_QPU_TYPES"
        given = [os.environ.get(variable) for variable in variables]
        if given[0] is None:
            continue
        separator = os.environ.get("QRMI_LIST_DELIMITER") or ","
        names, types = ([one.strip() for one in (text or "").split(separator) if one.strip()] for text in given)
        if names and len(names) != len(types):
            found = f"{variables[0]} names {len(names)} QPUs and {variables[1]} {len(types)} types"
            raise UserError(f"{found}; the scheduler's plug-in sets both")
        return dict(zip(names, types, strict=False))
    return {}


def unavailable(name: str | None) -> str | None:
    """Why a resource, or without a name the only one, cannot be used; None where it may be. Uses no network."""
    if "qrmi" not in sys.modules and importlib.util.find_spec("qrmi") is None:
        return "the package qrmi is not installed; pip install qrmi"
    try:
        given = resources()
    except UserError as error:
        return str(error)
    if not given:
        what = "the environment names no QPU of a cluster (QRMI_JOB_QPU_RESOURCES is not set or empty)"
        return f"{what}; run it in a job that asks for one, such as sbatch --qpu=NAME"
    listed = ", ".join(given)
    if name is None and len(given) > 1:
        return f"this job has {len(given)} QPUs ({listed}); take --backend qrmi_{next(iter(given))}, or another"
    name = next(iter(given)) if name is None else name
    if name not in given:
        return f"this job has no QPU {name!r}, it has {listed}; a job asks for it by sbatch --qpu={name}"
    if given[name] not in TYPES:
        return f"{name} is of type {given[name]!r}, which does not run Qiskit's Sampler; there are {', '.join(TYPES)}"
    return None


class Resource:
    """A QPU of the job. Raises UserError: there is none of that name, or it does not answer."""

    def __init__(self, name: str | None, patience: float = 120.0) -> None:
        problem = unavailable(name)
        if problem is not None:
            raise UserError(f"--backend: {problem}")
        given, self.patience = resources(), patience
        self.name = next(iter(given)) if name is None else name
        self.module, self.type = importlib.import_module("qrmi"), given[self.name]
        kind = getattr(self.module.ResourceType, TYPES[self.type], None)
        if kind is None:
            raise UserError(f"--backend: this version of qrmi knows no {self.type}; pip install --upgrade qrmi")
        kinds = (getattr(self.module, one, None) for one in REFUSED)
        self.refused = tuple(one for one in kinds if one is not None)
        self.trouble = getattr(self.module, "QrmiError", RuntimeError)  # and of all others
        self.not_found: Any = getattr(self.module, "TaskNotFoundError", ())
        self.handle = self.ask(lambda: self.module.QuantumResource(self.name, kind), f"opening {self.name}")
        self.token: str | None = None  # of what was acquired here
        self.under_way: set[str] = set()  # tasks that were started in what was acquired here

    def ask(self, question: Callable[[], T], doing: str) -> T:
        """The answer, with back-off. Raises UserError: refused, or none within ``patience``; passes on not_found."""

        def refused(error: Exception, late: bool) -> str | None:
            if isinstance(error, self.not_found):
                raise error
            passing = isinstance(error, self.trouble) and not isinstance(error, self.refused)
            return None if passing and not late else f"{doing}: {reason(error)}"

        return patiently(question, self.patience, refused)

    @cached_property
    def device(self) -> Any:
        """Qiskit's target and calibration. Raises UserError: the resource gives none."""
        doing = f"asking {self.name} for its target"
        text = self.ask(lambda: self.handle.target().value, doing)
        try:
            found = json.loads(text)
            return Device(self.name, found["configuration"], found["properties"])
        except Exception as error:  # whatever the client makes of what is not a configuration
            what = f"{doing}: what it gave is no configuration and calibration of a device ({type(error).__name__})"
            raise UserError(f"{what}; try again later") from error

    def check(self) -> None:
        """Raises UserError: the resource takes no tasks now."""

        def look() -> tuple[bool, str]:
            if not hasattr(self.handle, "status"):  # versions before
                return bool(self.handle.is_accessible()), "not accessible"
            found = self.handle.status().to_dict()
            return found.get("status") == "online", str(found.get("status_reason") or found.get("status"))

        online, why = self.ask(look, f"asking for the status of {self.name}")
        if not online:
            raise UserError(f"--backend: {self.name} takes no tasks now ({why}); resume later with --resume")

    def acquire(self) -> None:
        if self.token is not None or any(os.environ.get(f"{self.name}_{variable}") for variable in ACQUIRED):
            return
        self.token = str(self.ask(lambda: self.handle.acquire(), f"acquiring {self.name}"))

    def close(self) -> None:
        """Release what was acquired here; where tasks are under way it is left, as a release would cancel them."""
        if self.token is not None and not self.under_way:
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                self.handle.release(self.token)
        self.token = None
        self.under_way.clear()

    def status(self, task: str) -> str:
        found = self.ask(lambda: self.handle.task_status(task), f"asking for task {task}")
        kinds = self.module.TaskStatus
        state = next((state for name, state in STATES.items() if found == getattr(kinds, name, None)), None)
        if state is None:
            raise UserError(f"asking for task {task}: {found} is none of {', '.join(STATES)}")
        return state

    def knows(self, task: str) -> bool:
        try:
            self.status(task)
        except self.not_found:
            return False
        return True

    def about(self) -> dict[str, Any]:
        return {"resource": self.type, "billing": "estimates, as QRMI reports no bill"}

    def find(self, tag: str) -> str | None:
        return None  # QRMI has no tags

    def look(self, task: str) -> None:
        if not self.knows(task):
            raise UserError(f"--job: {self.name} knows no task {task}")

    def cancel(self, task: str) -> str:
        """Stop a task; what became of it, ``done`` where its result waits to be taken."""
        if not self.knows(task):
            return "is not known any more"
        state = self.status(task)
        if state == "DONE":  # stopping a task deletes its result on some resources
            return "done"
        if state in ("ERROR", "CANCELLED"):
            return f"had ended already ({state})"
        self.ask(lambda: self.handle.task_stop(task), f"stopping task {task}")
        return "is cancelled"


class Device:
    """What the pipeline asks of a device, by the configuration and the calibration that a resource sends."""

    def __init__(self, name: str, configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
        from qiskit_ibm_runtime.utils.backend_decoder import (
            configuration_from_server_data,
            properties_from_server_data,
        )

        self.name, self._properties = name, properties_from_server_data(properties)
        found: Any = configuration_from_server_data(configuration)
        self.target = convert_to_target(configuration=found, properties=self._properties)
        self.num_qubits = self.target.num_qubits
        self.default_rep_delay = getattr(found, "default_rep_delay", None)

    def properties(self) -> Any:
        return self._properties


class QRMIBackend(BillingBackend):
    """A QPU of the cluster. Raises UserError: no package, no such resource, or none that answers."""

    kind = "QPU of the cluster (QRMI)"

    def __init__(self, name: str, entry: QRMIEntry, shots: int | None) -> None:
        super().__init__(name, entry, shots)
        self.place = Resource(entry.name, entry.patience)
        self._use_device()

    def _jobs(self, journal: Journal, activity: Activity, budget: Budget | None, resubmit: bool) -> DeviceJobs:
        return Tasks(self, journal, activity, budget, resubmit)

    @property
    def terms(self) -> dict[str, Any]:
        return {"shots": self.shots, "provider": "qrmi"}


class Tasks(DeviceJobs):
    """Tasks of a resource. An id that was not written down is lost: QRMI has nothing to look for a task by."""

    what = "task"

    def __init__(self, backend: QRMIBackend, *arguments: Any) -> None:
        super().__init__(backend, *arguments)
        self.options = sampler_options(backend.options)

    def _lost(self, submission: Submission) -> str:
        sends = "--resume --resubmit sends it anew"
        if submission.job is not None:
            return f"was started as {submission.job}, which the resource does not know any more: it is held; {sends}"
        return (
            "was started and its id did not come back, and QRMI has nothing to look for it by: it is held, and not "
            f"sent again by itself; qrkt-hw jobs adopt RUN --number {submission.id} --job ID takes it where the "
            f"service's own list shows it, else {sends}"
        )

    def _search(self, submission: Submission, grace: float | None = None) -> str | None:
        job = submission.job
        return job if job is not None and self.place.knows(job) else None

    def _send(self, one: Pending) -> None:
        text = payload(one.pubs, self.options)
        self.place.check()
        self.place.acquire()
        submission = self.journal.mark(one.submission, "submitting", session=self.place.token)
        try:
            task = self._run(text)
        except Exception as error:
            if not isinstance(error, self.place.refused):
                self.place.under_way.add(submission.tag)  # it may be
                raise self._hold(submission, f"no answer: {reason(error)}") from None
            self.journal.mark(submission, "failed", remark=reason(error))
            raise UserError(f"starting a task on {self.place.name}: {reason(error)}") from None
        one.submission = self.journal.mark(submission, "submitted", job=task)
        self.place.under_way.add(task)

    def _run(self, text: str) -> str:
        with warnings.catch_warnings(action="ignore"):
            request = self.place.module.Payload.QiskitPrimitive(input=text, program_id="sampler")
            return str(self.place.handle.task_start(request))

    def _state(self, one: Pending) -> tuple[str, str, int | None]:
        job = str(one.submission.job)
        try:
            state = self.place.status(job)
        except self.place.not_found:
            self.place.under_way.discard(job)
            raise self._hold(one.submission, "the resource does not know it") from None
        if state in ("queued", "running"):
            self.tell(f"{self.place.name}: task {job} {state}, {time.time() - one.submission.created:.0f} s")
            return state, "", None
        self.place.under_way.discard(job)
        why = ""
        if state == "ERROR":
            with suppress(Exception):
                lines = self.place.handle.task_logs(job).split("\n")
                why = next(line for line in reversed(lines) if line.strip())
        return state, redacted(" ".join(why.split()))[:200], None

    def _result(self, one: Pending) -> Sequence[dict[str, BitArray]]:
        job = str(one.submission.job)
        text = self.place.ask(lambda: self.place.handle.task_result(job).value, f"asking for the result of task {job}")
        try:
            return decoded(text)
        except Exception as error:  # whatever the client makes of what is no result
            what = (
                f"task {job} on {self.place.name}: its result cannot be read ({type(error).__name__}) and is not used"
            )
            raise UserError(f"{what}; --resume asks for it again, --restart runs and pays anew") from error

    def _bill(self, one: Pending) -> float:
        return one.submission.estimated

    def _ended_badly(self, one: Pending, state: str, why: str, code: int | None) -> Pending:
        billed = self._bill(one)  # it may have run until then
        self.budget.charge(billed)
        self.journal.mark(one.submission, "failed", billed=billed, remark=why or state.lower())
        if state == "CANCELLED" and one.adopted and one.again < AGAIN:
            job = one.submission.job
            return self._again(one, f"task {job} was cancelled after its process ended; its circuits were sent again")
        raise self._failed(one, state, why)


def payload(pubs: Sequence[PUB], options: dict[str, Any]) -> str:
    """The input of IBM's Sampler. Circuits go as QPY: in OpenQASM the order of their parameters would get lost."""
    from qiskit_ibm_runtime import RuntimeEncoder

    listed = [(pub.circuit, pub.values if pub.circuit.num_parameters else None, pub.shots) for pub in pubs]
    content = {"pubs": listed, "shots": pubs[0].shots, "options": options, "version": 2, "support_qiskit": True}
    return json.dumps(content, cls=RuntimeEncoder)


def sampler_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of an entry as the Sampler has them; those that are off are left out."""
    found: dict[str, Any] = {}
    sequence = options["dynamical_decoupling"]
    if sequence:
        found["dynamical_decoupling"] = {"enable": True, "sequence_type": "XpXm" if sequence is True else sequence}
    if options["twirl_gates"] or options["twirl_measure"]:
        found["twirling"] = {"enable_gates": options["twirl_gates"], "enable_measure": options["twirl_measure"]}
    if options["rep_delay"] is not None:
        found["execution"] = {"rep_delay": options["rep_delay"]}
    return found


def decoded(text: str) -> list[dict[str, BitArray]]:
    """Bits by register of every PUB. Raises whatever the client makes of what is no result of its Sampler."""
    from qiskit_ibm_runtime import RuntimeDecoder

    found = []
    for pub in json.loads(text, cls=RuntimeDecoder):
        bits = {name: one for name, one in pub.data.items()}
        # a circuit without parameters has no rows
        found.append({name: one.reshape(1) if one.shape == () else one for name, one in bits.items()})
    return found


def reason(error: BaseException) -> str:
    return redacted(" ".join(str(error).split()))[:300].rstrip(".") or type(error).__name__
