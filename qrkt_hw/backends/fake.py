"""Snapshots of IBM devices with their noise, on the qubits a circuit really uses."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends.aer import AerBackend, Compiled
from qrkt_hw.backends.base import Backend, Call, Gradient
from qrkt_hw.backends.device.devices import fake_device
from qrkt_hw.backends.device.measurement import Basis, bases, sample
from qrkt_hw.backends.device.packing import Batch, Packer, Piece
from qrkt_hw.backends.device.placement import QUALITY
from qrkt_hw.backends.device.pricing import DEFAULT_DELAY
from qrkt_hw.backends.device.splitting import JobLimits
from qrkt_hw.backends.device.transpiling import PlacedCircuit
from qrkt_hw.backends.grouping import evaluate_by_weights
from qrkt_hw.backends.noise import DeviceNoise, calibration_date, device_noise
from qrkt_hw.backends.placed import (
    noisy_circuit,
    noisy_instructions,
    observable_effects,
    outcome_effects,
    readout,
)
from qrkt_hw.errors import UserError
from qrkt_hw.simulator.superoperator import LARGEST, NoisySimulator, PropagatedCache

LARGEST_DENSITY = 11  # active qubits of Aer's density matrix
TABLES = 2**26  # numbers that the effects of all replicas together may hold: 512 MiB
SMALL = 5  # qubits up to which waking a second thread costs more than it brings


class FakeBackend(AerBackend):
    """A device snapshot: circuits are transpiled to it, cut down to their active qubits, and run with its noise.

    Without shots, values are the noisy ones exactly (the limit of many shots, readout errors included), at the place
    the transpiler chooses, and layers differentiate through the noise. With shots they are sampled, and as on the
    device copies run side by side: each is simulated with the noise of its own qubits, and executions are counted as
    the device would.

    Args:
        device: name of the snapshot, such as ``fake_torino``.
        method: ``superoperator`` (few qubits), ``density_matrix`` (by Aer), or ``auto``: the first where it fits.
        noise: whose noise: another snapshot of the same gates, ``none``, or None for the device's own.
        pack: run copies side by side where there are shots.
        guard, quality: see :func:`qrkt_hw.backends.device.placement.place_copies`.
        mitigation: ``mthree`` corrects readout where there are shots.
        misread: False leaves readout errors out of the noise.

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
        pack: bool = True,
        guard: int = 0,
        quality: float = QUALITY,
        mitigation: Literal["none", "mthree"] = "none",
        misread: bool = True,
    ) -> None:
        super().__init__(name, "cpu", "density_matrix", shots, seed, optimization_level, gradient, perturbation)
        self.snapshot = fake_device(device)
        self.target = self.snapshot.target
        self.noise_name = noise or device
        self.estimated = 0.0  # QPU seconds the device would have taken
        self._budget: Any = None
        self.wanted, self.mitigation, self.misread = method, mitigation, misread
        self.packer = Packer(
            self.target, device=device, level=optimization_level, shots=shots or 0, pack=pack and shots is not None,
            guard=guard, quality=quality, mitigation=mitigation != "none" and shots is not None,
        )  # fmt: skip
        self._functions: dict[tuple[CircuitTemplate, torch.dtype], NoisySimulator | None] = {}
        self._tables: OrderedDict[tuple[str, tuple[int, ...]], NoisySimulator] = OrderedDict()
        self._kept = PropagatedCache()
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
        if self.noise_name == "none":
            return None
        found = device_noise(self.noise_name)
        return found if self.misread else replace(found, readout=np.tile(np.eye(2), (len(found.readout), 1, 1)))

    def about(self) -> dict[str, Any]:
        found = super().about()
        found.update(device=self.snapshot.name, method=self.wanted, noise=self.noise_name)
        found.update(qubits=self.snapshot.num_qubits, calibrated=calibration_date(self.snapshot))
        if self.shots is not None:
            found.update(
                packed=self.packer.packs, mitigation=self.mitigation, estimated_seconds=round(self.estimated, 3)
            )
        return found

    def state(self) -> dict[str, Any]:
        return {**super().state(), "estimated": self.estimated}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.estimated = float(state.get("estimated", 0.0))

    def placed(self, template: CircuitTemplate, basis: Basis) -> PlacedCircuit:
        """The template on the device, measured in a basis; made once."""
        return self.packer.kind(template, basis).placed

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
        return NoisySimulator(template, circuits, dtype, self._kept)

    def _compile(self, template: CircuitTemplate, basis: Basis) -> Compiled:
        return self._noisy(template, basis, self.placed(template, basis))

    def _noisy(self, template: CircuitTemplate, basis: Basis, placed: PlacedCircuit) -> Compiled:
        if len(placed.physical) > LARGEST_DENSITY:
            raise UserError(
                f"backend {self.name!r}: ansatz {template.name!r} touches {len(placed.physical)} qubits of "
                f"{self.snapshot.name}; noisy simulation takes at most {LARGEST_DENSITY}: use fewer --qubits"
            )
        return Compiled(basis, noisy_instructions(placed, self.noise), placed.measured, readout(placed, self.noise))

    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        """Exact noisy values, where the transpiler puts the circuit."""
        if not self._fits(call.template):
            return super()._evaluate(call)
        function = self.simulator(call.template, torch.complex128)
        assert function is not None
        return evaluate_by_weights(call, function, call.template.num_outputs)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        if self.shots is None:
            return super().run(calls)
        started = time.perf_counter()
        batches = self.packer.batches(calls)
        executions = self.counters.executions
        self.begin_round(
            sum(call.samples * self.circuits_for(call.template) for call in calls), [call.tag for call in calls]
        )
        wide = sum(batch.executions * self.packer.shots_of(batch) for batch in batches)
        seconds = sum(self.packer.jobs(batches, self.default_rep_delay, self.job_limits))
        if self._budget is not None and batches:
            self._budget.admit(seconds)
            self._budget.charge(seconds)
        self.counters.executions = executions + wide
        self.estimated += seconds if batches else 0.0
        pool = self.packer.pooled(calls)
        sets = self.packer.parameter_sets(calls, pool)
        outcomes = []
        for number, batch in enumerate(batches):
            if number:
                self._tell(f"packed circuit {number + 1} of {len(batches)} on {self.name}")
            shots = self.packer.shots_of(batch)
            outcomes.append(
                [sample(self._chances(piece, batch, calls, pool, sets), shots, self.rng) for piece in batch.pieces]
            )
        values = self.packer.combined(calls, batches, outcomes)
        self.counters.seconds += time.perf_counter() - started
        return values

    def _chances(
        self, piece: Piece, batch: Batch, calls: Sequence[Call], pool: Any, sets: dict[str, NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """``(executions, outcomes)`` of a copy: the chance of every outcome, with the noise of its own qubits."""
        if batch.calibration is not None:
            return self._calibration(piece, batch.calibration)
        place, basis, _ = pool[piece.kind][0]
        template = calls[place].template
        placed = self.placed(template, basis).moved(piece.physical)
        busy = piece.samples >= 0
        values = sets[piece.kind][piece.samples[busy]]
        chances = np.zeros((batch.executions, 2**template.num_qubits))
        chances[:, 0] = 1  # of copies that idle; nobody reads them
        if self._fits(template):
            with _one_thread(template.num_qubits <= SMALL):
                table = self._table(template, piece, placed)
                chances[busy] = evaluate_by_weights(Call(template, values), table, 2**template.num_qubits)
        else:
            chances[busy] = self._probabilities(template, self._noisy(template, basis, placed), values)
        return chances

    def _table(self, template: CircuitTemplate, piece: Piece, placed: PlacedCircuit) -> NoisySimulator:
        """Chances of all outcomes at one place of the chip; built once, as long as there is room."""
        key = (piece.kind, piece.physical)
        found = self._tables.get(key)
        if found is None:
            effects = outcome_effects(placed, self.noise)
            circuits = [noisy_circuit(template, placed, self.noise, effects)]
            most = max(1, TABLES // effects.size)
            while len(self._tables) >= most:
                self._tables.popitem(last=False)
            found = NoisySimulator(template, circuits, torch.complex128, self._kept)
        else:
            self._tables.pop(key, None)
        self._tables[key] = found  # the last one used stands last
        return found

    job_limits = JobLimits()

    @property
    def default_rep_delay(self) -> float:
        """Seconds between two executions of the device."""
        return float(getattr(self.snapshot, "default_rep_delay", None) or DEFAULT_DELAY)

    @contextmanager
    def open(
        self, journal: Any = None, budget: Any = None, progress: Callable[[str], None] | None = None
    ) -> Iterator[Backend]:
        """As on the device, a budget is charged with what the device would bill."""
        before, self._budget = self._budget, self.budget(budget)
        try:
            with super().open(journal, budget, progress) as held:
                yield held
        finally:
            self._budget = before

    def _calibration(self, piece: Piece, state: int) -> NDArray[np.float64]:
        """``(1, outcomes)`` where all measured qubits were prepared in one state."""
        chances = np.ones(1)
        for qubit in piece.read:
            populations = np.array([1.0 - state, float(state)])
            if self.noise is not None:
                error = self.noise.gates.get(("x", (qubit,)))
                if state and error is not None:
                    density = error @ np.array([0, 0, 0, 1])  # |1><1|, column by column
                    populations = np.clip(density[[0, 3]].real, 0, None)
                populations = populations @ self.noise.readout[qubit]
            chances = np.kron(populations, chances)
        return chances[None]


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """Torch on one thread: products of small matrices are done before others have woken, more so on a busy machine."""
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
