"""A program that trains by a sampler and an estimator with one journal, killed at one moment after another."""

import json
import os
import signal

import numpy as np
from qiskit.circuit.library import real_amplitudes, zz_feature_map

from qrkt_hw import estimate
from qrkt_hw.backends.device.journal import Journal
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.fake import FakeBackend
from qrkt_hw.primitives import PackedEstimator, PackedSampler
from tests.acceptance.killing import after, before

MOMENTS = [
    lambda: before(DeviceBackend, "execute", 1),
    lambda: after(DeviceBackend, "execute", 2),
    lambda: before(Journal, "answer", 2),
    lambda: after(Journal, "answer", 2),
    lambda: before(Journal, "asked", 8),
]
DEVICE = FakeBackend("fake_guadalupe", "fake_guadalupe", shots=1)  # every start has its own copy
CIRCUIT = zz_feature_map(2, reps=1).compose(real_amplitudes(2, reps=1))
MEASURED = CIRCUIT.measure_all(inplace=False)


def train(path):
    """Values that depend on all that was measured before, and the executions of this process."""
    rng = np.random.default_rng(5)
    angles, found, inputs = np.zeros(4), [], rng.uniform(-1, 1, (6, 2))
    with Journal(path) as journal:
        keys = {"seed": 2, "journal": journal}
        sampler, estimator = PackedSampler(DEVICE, **keys), PackedEstimator(DEVICE, **keys)
        for _ in range(4):
            step = rng.choice([-0.2, 0.2], 4)
            rows = [np.hstack([inputs, np.tile(angles + sign * step, (6, 1))]) for sign in (-1, 1)]
            low, high = estimator.run([(CIRCUIT, "ZZ", values) for values in rows]).result()
            angles -= step * float((high.data.evs - low.data.evs).mean())
            ones = sampler.run([(MEASURED, rows[0], 256)]).result()[0].data.meas.bitcount()
            angles += 0.01 * float(ones.mean())
            found.append(angles.tolist())
    return {"found": found, "executed": DEVICE.counters.executions}


def start(path, moment):
    """Run in a process of its own; what it says, or None where it was killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        moment()
        os.write(writes, json.dumps(train(path)).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert said or os.WTERMSIG(status) == signal.SIGKILL
    return json.loads(said) if said else None


def started(path, moments, said):
    """Write to the file ``said``, for every start, what it came to and what was executed; ``moments`` by number."""
    values = np.zeros(CIRCUIT.num_parameters)  # planned once, for all starts
    estimate([(MEASURED, values)], DEVICE, shots=1), estimate([(CIRCUIT, "ZZ", values)], DEVICE)
    whole = start(path.with_name("whole.sqlite"), lambda: None)
    starts = [start(path, moment) for moment in [*(MOMENTS[k] for k in moments), lambda: None]]
    said.write_text(json.dumps({"whole": whole, "starts": starts, "again": start(path, lambda: None)}))
