"""Stands in for the package ``qrmi``: what qrkt-hw uses of it, with tasks in a folder, so that they outlive a process.

``QRMI_STAND_IN`` names the folder. Its ``how.json`` says how to misbehave: ``die`` (a moment, and at which time it
comes by), ``fail`` and ``cancel`` (tasks that have ended so), ``garbage`` (results), ``refuse``, ``lose`` (the answer
to the start of a task), ``offline``, ``no_target``, ``slow`` (times a status is asked for until a task is done).
"""

import enum
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, SamplerPubResult
from qiskit_ibm_runtime import RuntimeDecoder, RuntimeEncoder

from tests.ibm_service import devices, engine

TYPES = {"qpu_fez": "IBMQuantumSystem", "qpu_lagos": "IBMQuantumComputeService"}
SETTINGS = ("ENDPOINT", "IAM_APIKEY")


class QrmiError(RuntimeError): ...


class EnvVarNotSetError(QrmiError): ...


class InvalidInputError(QrmiError): ...


class TaskNotFoundError(QrmiError): ...


class TaskNotReadyError(QrmiError): ...


class ResourceType(enum.Enum):
    IBMQuantumSystem = 1
    IBMQuantumComputeService = 2


class TaskStatus(enum.Enum):
    Queued = 1
    Running = 2
    Completed = 3
    Failed = 4
    Cancelled = 5


class Payload:
    class QiskitPrimitive:
        def __init__(self, *, input, program_id):
            self.input, self.program_id = input, program_id


def folder():
    return Path(os.environ["QRMI_STAND_IN"])


def how():
    path = folder() / "how.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def counted(what):
    """How often it has happened, by whatever process, this time included."""
    with (folder() / "log.txt").open("a") as log:
        log.write(what + "\n")
    return (folder() / "log.txt").read_text().split("\n").count(what)


def die(moment):
    wanted = how().get("die")
    if wanted is not None and wanted[0] == moment and counted(f"at {moment}") == wanted[1]:
        os.kill(os.getpid(), signal.SIGKILL)


class QuantumResource:
    def __init__(self, resource_id, resource_type):
        if TYPES[resource_id] != resource_type.name:
            raise InvalidInputError(f"{resource_id} is no {resource_type.name}")
        for setting in SETTINGS:
            variable = f"{resource_id}_QRMI_{setting}"
            if variable not in os.environ:
                raise EnvVarNotSetError(f"{variable} environment variable is not set")
        self.name, self.device = resource_id, f"ibm_{resource_id.removeprefix('qpu_')}"

    def status(self):
        online = not how().get("offline")
        found = {"status": "online" if online else "paused", "status_reason": None if online else "calibrating"}
        return SimpleNamespace(to_dict=lambda: found)

    def target(self):
        if how().get("no_target"):
            return SimpleNamespace(value=json.dumps({"configuration": None, "properties": None}))
        properties = devices.properties(self.device, how().get("recalibrations", 0))
        found = {"configuration": devices.configuration(self.device), "properties": properties}
        return SimpleNamespace(value=json.dumps(found))

    def acquire(self):
        return f"session-{counted('acquired')}"

    def release(self, token):
        counted("released")

    def task_start(self, payload):
        assert payload.program_id == "sampler"
        if how().get("refuse"):
            raise InvalidInputError(f"rejected with key {os.environ[f'{self.name}_QRMI_IAM_APIKEY']}")
        die("before it arrives")
        task = f"task-{counted('started')}"
        (folder() / f"{task}.json").write_text(payload.input)
        die("started, not answered")
        if how().get("lose") == task:
            raise QrmiError("error sending request")
        return task

    def _input(self, task):
        path = folder() / f"{task}.json"
        if not path.is_file():
            raise TaskNotFoundError(f"task not found: {task}")
        return path.read_text()

    def task_status(self, task):
        self._input(task)
        die("waiting")
        for key, state in (("fail", TaskStatus.Failed), ("cancel", TaskStatus.Cancelled)):
            if task in how().get(key, ()) or (folder() / f"{task}.{key}").exists():
                return state
        asked = counted(f"asked {task}")
        wait = how().get("slow", 0)
        return TaskStatus.Completed if asked > wait else TaskStatus.Running if asked > 1 else TaskStatus.Queued

    def task_stop(self, task):
        counted("stopped")
        (folder() / f"{task}.cancel").touch()

    def task_logs(self, task):
        return "starting\nthe fridge is warm, key " + os.environ[f"{self.name}_QRMI_IAM_APIKEY"] + "\n"

    def task_result(self, task):
        if self.task_status(task) is not TaskStatus.Completed:
            raise TaskNotReadyError(task)
        die("downloading")
        garbage, kept = how().get("garbage", {}).get(task), folder() / f"{task}.result"
        if garbage is None and not kept.is_file():
            kept.write_text(executed(self._input(task), self.device))
        return SimpleNamespace(value=kept.read_text() if garbage is None else garbage)


def executed(text, device):
    """What the service answers; every PUB that is executed is written down by its content."""
    asked, results = json.loads(text, cls=RuntimeDecoder), []
    assert asked["version"] == 2 and asked["support_qiskit"] is True
    for circuit, values, shots in asked["pubs"]:
        assert (values is None) == (circuit.num_parameters == 0)
        target = devices.target(device)
        for instruction in circuit.data:
            qubits = tuple(circuit.find_bit(q).index for q in instruction.qubits)
            name = instruction.operation.name
            assert name in ("barrier", "delay") or target.instruction_supported(name, qubits), name
        rows = np.zeros((1, 0)) if values is None else np.asarray(values)
        with (folder() / "executed.txt").open("a") as log:
            log.write(f"{engine.fingerprint(circuit, rows, shots, '')} {len(rows) * shots}\n")
        found = engine.run(circuit, rows, shots, None, device)
        bits = {name: BitArray.from_bool_array(one, order="little") for name, one in found.items()}
        if values is None:
            bits = {name: one.reshape(()) for name, one in bits.items()}
        shape = () if values is None else (len(rows),)
        results.append(SamplerPubResult(DataBin(**bits, shape=shape)))
    return json.dumps(PrimitiveResult(results, metadata={"version": 2}), cls=RuntimeEncoder)
