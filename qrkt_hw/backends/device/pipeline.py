"""The way of every circuit to a device that samples: pack, submit, decode."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.base import Backend, Call
from qrkt_hw.backends.device.budget import DEFAULT_DELAY
from qrkt_hw.backends.device.measurement import bases
from qrkt_hw.backends.device.packing import Counts, Packer
from qrkt_hw.backends.device.pubs import PUB, JobLimits
from qrkt_hw.backends.device.transpile import calibration_date
from qrkt_hw.errors import UserError


class DeviceBackend(Backend):
    """A backend that transpiles, packs, samples and bills; a provider writes :meth:`submit` alone."""

    device: Any  # Qiskit's backend: target, calibration, repetition delay
    packer: Packer  # plans and packs circuits for it
    job_limits = JobLimits()  # what one job may hold
    estimated: float = 0.0  # QPU seconds that everything submitted is estimated to take

    @property
    def num_qubits(self) -> int:
        return int(self.device.target.num_qubits)

    @property
    def default_rep_delay(self) -> float:
        """Seconds between two executions."""
        return float(getattr(self.device, "default_rep_delay", None) or DEFAULT_DELAY)

    def calibrated(self) -> str | None:
        return calibration_date(self.device)

    def circuits_for(self, template: CircuitTemplate) -> int:
        return len(bases(template))

    def pack(self, calls: Sequence[Call]) -> list[PUB]:
        """PUBs of packed circuits. Raises UserError: a circuit is too large for the device."""
        for call in calls:
            if call.template.num_qubits > self.num_qubits:
                way = f"ansatz {call.template.name!r} takes {call.template.num_qubits}"
                raise UserError(f"--backend: {self.device.name} has {self.num_qubits} qubits; {way}")
        return self.packer.pack(calls)

    @abstractmethod
    def submit(self, pubs: Sequence[PUB]) -> list[list[Counts]]:
        """What is counted in every slot of every PUB."""

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        """See :meth:`Backend.run`. Raises UserError: a circuit is too large for the device, or what submit meets."""
        started = time.perf_counter()
        asked = [call for call in calls if call.samples]
        pubs = self.pack(asked)
        executions = self.counters.executions
        self.begin_round(sum(c.samples * self.circuits_for(c.template) for c in asked), [call.tag for call in asked])
        self.counters.executions = executions + sum(pub.executions for pub in pubs)  # of the chip
        found = iter(self.packer.decode(asked, pubs, self.submit(pubs)) if asked else [])
        self.counters.seconds += time.perf_counter() - started
        shapes = [(*call.values.shape[:-1], call.template.num_outputs) for call in calls]
        return [next(found) if call.samples else np.zeros(shape) for call, shape in zip(calls, shapes, strict=True)]
