"""Snapshots of IBM devices with their noise, on the qubits a circuit really uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qrkt_hw.backends.aer import AerBackend, Compiled
from qrkt_hw.backends.base import Call, Gradient
from qrkt_hw.backends.grouping import evaluate_by_weights
from qrkt_hw.backends.measurement import Basis, bases, sample
from qrkt_hw.backends.noise import DeviceNoise, calibration_date, device_noise
from qrkt_hw.backends.placed import (
    PlacedCircuit,
    noisy_circuit,
    noisy_instructions,
    observable_effects,
    outcome_effects,
    place,
    readout,
)
from qrkt_hw.circuits.template import CircuitTemplate
from qrkt_hw.errors import UserError
from qrkt_hw.execution.devices import fake_device
from qrkt_hw.simulator.superoperator import LARGEST, NoisySimulator

LARGEST_DENSITY = 11  # active qubits of Aer's density matrix


class FakeBackend(AerBackend):
    """A device snapshot: circuits are transpiled to it, cut down to their active qubits, and run with its noise.

    Without shots, values are the noisy ones exactly (the limit of many shots, readout errors included), and layers
    differentiate through the noise. With shots they are sampled.

    Args:
        device: name of the snapshot, such as ``fake_torino``.
        method: ``superoperator`` (few qubits), ``density_matrix`` (by Aer), or ``auto``: the first where it fits.
        noise: whose noise: another snapshot of the same gates, ``none``, or None for the device's own.

    Raises:
        UserError: no such device, or one whose noise does not fit the gates of the other.
    """

    kind = "device snapshot"

    def __init__(
        self,
        name: str,
        device: str,
        method: str = "auto",
        shots: int | None = None,
        seed: int | None = None,
        optimization_level: int = 3,
        gradient: Gradient = "adjoint",
        perturbation: float = 0.1,
        noise: str | None = None,
    ) -> None:
        super().__init__(name, "cpu", "density_matrix", shots, seed, optimization_level, gradient, perturbation)
        self.snapshot = fake_device(device)
        self.target = self.snapshot.target
        self.noise_name = noise or device
        self.wanted = method
        self._placed: dict[tuple[CircuitTemplate, Basis], PlacedCircuit] = {}
        self._functions: dict[tuple[CircuitTemplate, torch.dtype], NoisySimulator | None] = {}
        self._tables: dict[CircuitTemplate, list[NoisySimulator]] = {}
        if self.noise_name not in (device, "none"):
            missing = set(self.snapshot.target.operation_names) - set(
                fake_device(self.noise_name).target.operation_names
            )
            if (
                missing & {"cx", "cz", "ecr", "sx", "x"}
                or fake_device(self.noise_name).num_qubits < self.snapshot.num_qubits
            ):
                raise UserError(
                    f"backend {name!r}: noise of {self.noise_name!r} does not fit the qubits and gates of {device!r}"
                )

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Exact noisy values with the adjoint gradient."""
        return self.shots is None and self.gradient == "adjoint" and self.wanted != "density_matrix"

    @property
    def noise(self) -> DeviceNoise | None:
        """The noise in use; built on first use."""
        return None if self.noise_name == "none" else device_noise(self.noise_name)

    def about(self) -> dict[str, Any]:
        found = super().about()
        found.update(device=self.snapshot.name, method=self.wanted, noise=self.noise_name)
        found.update(qubits=self.snapshot.num_qubits, calibrated=calibration_date(self.snapshot))
        return found

    def placed(self, template: CircuitTemplate, basis: Basis) -> PlacedCircuit:
        """The template on the device, measured in a basis; made once."""
        key = (template, basis)
        if key not in self._placed:
            self._placed[key] = place(basis.rotated(template.circuit), self.snapshot, self.level)
        return self._placed[key]

    def simulator(
        self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto"
    ) -> NoisySimulator | None:
        """The noisy values as a differentiable function; None where the circuit touches too many qubits."""
        key = (template, dtype)
        if key not in self._functions:
            self._functions[key] = self._function(template, dtype)
        return self._functions[key]

    def _fits(self, template: CircuitTemplate) -> bool:
        if self.wanted == "density_matrix":
            return False
        widest = max(len(self.placed(template, basis).physical) for basis in bases(template))
        if widest > LARGEST and self.wanted == "superoperator":
            raise UserError(
                f"backend {self.name!r}: method 'superoperator' takes circuits on at most {LARGEST} qubits, ansatz "
                f"{template.name!r} touches {widest} of {self.snapshot.name}; method: auto works"
            )
        return widest <= LARGEST

    def _function(self, template: CircuitTemplate, dtype: torch.dtype) -> NoisySimulator | None:
        if not self._fits(template):
            return None
        circuits = []
        for basis in bases(template):
            placed = self.placed(template, basis)
            effects = observable_effects(basis, template.num_outputs, placed, self.noise)
            circuits.append(noisy_circuit(template, placed, self.noise, effects))
        return NoisySimulator(template, circuits, dtype)

    def _compile(self, template: CircuitTemplate, basis: Basis) -> Compiled:
        placed = self.placed(template, basis)
        if len(placed.physical) > LARGEST_DENSITY:
            raise UserError(
                f"backend {self.name!r}: ansatz {template.name!r} touches {len(placed.physical)} qubits of "
                f"{self.snapshot.name}; noisy simulation takes at most {LARGEST_DENSITY}: use fewer --qubits"
            )
        return Compiled(basis, noisy_instructions(placed, self.noise), placed.measured, readout(placed, self.noise))

    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        if not self._fits(call.template):
            return super()._evaluate(call)
        if self.shots is None:
            function = self.simulator(call.template, torch.complex128)
            assert function is not None
            return evaluate_by_weights(call, function, call.template.num_outputs)
        total = np.zeros((call.samples, call.template.num_outputs))
        for basis, table in zip(bases(call.template), self._outcomes(call.template), strict=True):
            chances = evaluate_by_weights(call, table, 2**call.template.num_qubits)
            total += sample(chances, self.shots, self.rng) @ basis.signs(call.template.num_outputs).T
        return total

    def _outcomes(self, template: CircuitTemplate) -> list[NoisySimulator]:
        """Per basis, the chances of every outcome as a function."""
        if template not in self._tables:
            made = []
            for basis in bases(template):
                placed = self.placed(template, basis)
                effects = outcome_effects(placed, self.noise)
                made.append(
                    NoisySimulator(template, [noisy_circuit(template, placed, self.noise, effects)], torch.complex128)
                )
            self._tables[template] = made
        return self._tables[template]
