"""Fake backends of IBM devices with their noise, on the qubits a circuit really uses."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit.circuit import ClassicalRegister, QuantumCircuit
from qiskit.primitives import BitArray
from qiskit.quantum_info import Kraus

from qrkt_hw.ansatz import CircuitTemplate
from qrkt_hw.backends import noise as noises
from qrkt_hw.backends.aer import AerBackend, Compiled
from qrkt_hw.backends.base import Call
from qrkt_hw.backends.device.layout import MIN_FIDELITY
from qrkt_hw.backends.device.measurement import Basis, Floats, bases, flipped, sample
from qrkt_hw.backends.device.packing import Counted, Counts, DeviceBackend, Packer
from qrkt_hw.backends.device.pubs import PLAIN, PUB, Slot, Variant
from qrkt_hw.backends.device.transpile import PlacedCircuit, fake_device, twirled, with_idle
from qrkt_hw.backends.entries import Mitigation
from qrkt_hw.backends.exact import evaluate_by_weights
from qrkt_hw.errors import UserError, extras
from qrkt_hw.simulator.noisy import LARGEST, NoisyCircuit, NoisySimulator, PropagatedCache

LARGEST_DENSITY = 11  # active qubits of Aer's density matrix
LARGEST_TRAJECTORY = 20  # active qubits of Aer's statevectors, one for each shot
NARROWER = "use fewer --qubits, or a preset whose name ends in -4-qubits"
T = TypeVar("T")
TWIRLS = 8  # random choices of Pauli gates, all of which run equally often
TABLES = 2**26  # numbers that the effects of all replicas together may hold: 512 MiB


class FakeBackend(DeviceBackend, AerBackend):
    """A fake backend: circuits are transpiled to it, cut down to their active qubits, and run with its noise.

    Without shots, values are the noisy ones exactly (the limit of many shots, readout errors included), at the place
    the transpiler chooses, and layers differentiate through the noise. With shots they are sampled, and as on the
    device replicas run side by side: each is simulated with the noise of its own qubits, and executions are counted as
    the device would. Raises UserError: no such device, or one whose noise does not fit the gates of the other.
    """

    kind = "fake backend"
    spread = staticmethod(map)

    def __init__(
        self,
        name: str,
        device: str,  # its name, such as ``fake_torino``
        method: str = "auto",  # ``superoperator`` (few qubits), ``density_matrix`` (by Aer), or the first where it fits
        shots: int | None = None,
        seed: int | None = None,
        optimization_level: int = 3,
        noise: str | None = None,  # of another fake backend of the same gates, or ``none``; None for the device's own
        pack: bool = True,  # run replicas side by side where there are shots
        spacing: int = 0,  # see :func:`qrkt_hw.backends.device.layout.place_replicas`
        min_fidelity: float = MIN_FIDELITY,
        mitigation: Mitigation = "none",  # where there are shots
        misread: bool = True,  # False leaves readout errors out of the noise
        dynamical_decoupling: bool = False,  # two X gates on every idle qubit
        twirl_gates: bool = False,  # random Pauli gates around two-qubit gates
        coherent: float = 0.0,  # over-rotation of two-qubit gates, as a share of the angle
        idle: float = 0.0,  # Z rotation of idle qubits, radians per microsecond
    ) -> None:
        AerBackend.__init__(self, name, "cpu", "density_matrix", shots, seed, optimization_level)
        self.device, self.noise_name = fake_device(device), noise or device
        self.target = self.device.target
        self.wanted, self.misread, self.coherent, self.idle = method, misread, coherent, idle
        self.options = {"dynamical_decoupling": dynamical_decoupling, "twirl_gates": twirl_gates}
        self.packer = Packer(
            self.target, device=device, level=optimization_level, shots=shots or 0, pack=pack and shots is not None,
            spacing=spacing, min_fidelity=min_fidelity, mitigation=mitigation if shots is not None else "none",
        )  # fmt: skip
        self._functions: dict[tuple[CircuitTemplate, torch.dtype], NoisySimulator | None] = {}
        self._tables: OrderedDict[tuple[Any, ...], NoisySimulator] = OrderedDict()
        self._replicas: dict[tuple[Any, ...], Any] = {}
        # by ``id`` of a circuit, which is kept as long: a circuit has no hash
        self._twirled: dict[int, tuple[QuantumCircuit, list[PlacedCircuit]]] = {}
        self._kept = PropagatedCache()
        if self.noise_name not in (device, "none"):
            other = fake_device(self.noise_name)
            missing = set(self.target.operation_names) - set(other.target.operation_names)
            if missing & {"cx", "cz", "ecr", "sx", "x"} or other.num_qubits < self.num_qubits:
                unfit = f"noise of {self.noise_name!r} does not fit the qubits and gates of {device!r}"
                raise UserError(f"backend {name!r}: {unfit}")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.shots is None and self.gradient == "adjoint" and self.wanted != "density_matrix"

    @property
    def stand_in(self) -> None:  # noise is not what the torch simulator computes
        return None

    @cached_property
    def noise(self) -> noises.DeviceNoise | None:
        found = None if self.noise_name == "none" else noises.device_noise(self.noise_name)
        if found is not None and not self.misread:
            found = replace(found, readout=np.tile(np.eye(2), (len(found.readout), 1, 1)))
        if self.coherent or self.idle:
            return noises.with_errors(found, self.target, self.coherent, 1e6 * self.idle)
        return found

    def mitigate(self, how: str) -> None:
        super().mitigate(how)
        self._functions, self._tables, self._replicas, self._twirled = {}, OrderedDict(), {}, {}

    def _instances(self, placed: PlacedCircuit) -> list[PlacedCircuit]:
        """The circuits that the service runs in place of one, all equally often."""
        found = [placed]
        if self.options["twirl_gates"]:
            if id(placed.circuit) not in self._twirled:  # the replicas of a group have one circuit
                self._twirled[id(placed.circuit)] = placed.circuit, twirled(placed, self.target, TWIRLS)
            found = [one.moved(placed.physical) for one in self._twirled[id(placed.circuit)][1]]
        if self.idle or self.options["dynamical_decoupling"]:
            decouple = self.options["dynamical_decoupling"]
            found = [with_idle(one, self.target, decouple) for one in found]
        return found

    def about(self) -> dict[str, Any]:
        found = {**super().about(), "device": self.device.name, "method": self.wanted, "noise": self.noise_name}
        found |= {"qubits": self.num_qubits, "calibrated": self.calibrated()}
        more = {**self.options, "coherent": self.coherent, "idle": self.idle}
        found |= {key: value for key, value in more.items() if value}
        if self.shots is not None:
            found |= {"packed": self.packer.packs, "mitigation": self.packer.mitigation}
            found["estimated_seconds"] = round(self.estimated, 3)
        return found

    def state(self) -> dict[str, Any]:
        return {**super().state(), "estimated": self.estimated}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.estimated = float(state.get("estimated", 0.0))

    def placed(self, template: CircuitTemplate, basis: Basis) -> PlacedCircuit:
        return self.packer.group(template, basis).placed.of(template)

    def simulator(
        self, template: CircuitTemplate, dtype: torch.dtype = torch.complex64, method: str = "auto"
    ) -> NoisySimulator | None:
        if template.encoding != "angle":  # its features are no angles: layers go through run
            return None
        if (template, dtype) not in self._functions:
            circuits = []
            for basis in bases(template) if self._fits(template) else ():
                placed = self.placed(template, basis)
                effects = noises.observable_effects(basis, template.num_outputs, placed, self.noise)
                circuits += self._circuits(template, placed, effects)
            found = NoisySimulator(template, circuits, dtype, self._kept) if circuits else None
            self._functions[template, dtype] = found
        return self._functions[template, dtype]

    def _circuits(self, template: CircuitTemplate, placed: PlacedCircuit, effects: Floats) -> list[NoisyCircuit]:
        every = self._instances(placed)
        return [noises.noisy_circuit(template, one, self.noise, effects / len(every)) for one in every]

    def _fits(self, template: CircuitTemplate) -> bool:
        if self.wanted == "density_matrix":
            return False
        every = self.packer.bases(template)
        widest = max(len(self.packer.group(template, basis).placed.physical) for basis in every)
        if widest > LARGEST and self.wanted == "superoperator":
            what = f"backend {self.name!r}: method 'superoperator' takes circuits on at most {LARGEST} qubits"
            way = f"ansatz {template.name!r} touches {widest} of {self.device.name}; method: auto works"
            raise UserError(f"{what}, {way}")
        return widest <= LARGEST

    def _compile(self, template: CircuitTemplate, basis: Basis) -> Compiled:
        return self._noisy(template, basis, self.placed(template, basis))

    def _noisy(
        self, template: CircuitTemplate, basis: Basis, placed: PlacedCircuit, flips: Sequence[bool] = ()
    ) -> Compiled:
        if len(placed.physical) > LARGEST_DENSITY:
            what = f"ansatz {template.name!r} touches {len(placed.physical)} qubits of {self.device.name}"
            way = f"exact noisy simulation takes at most {LARGEST_DENSITY}: give --shots, {NARROWER}"
            raise UserError(f"backend {self.name!r}: {what}; {way}")
        noise, circuit = self.noise, self._whole_noise(placed)
        return Compiled(basis, circuit, placed.measured, noises.readout(placed, noise, flips))

    def _whole_noise(self, placed: PlacedCircuit, *kind: Any) -> QuantumCircuit:
        every = self._instances(placed)
        if len(every) > 1:
            touched = f"a circuit touches {len(placed.physical)} of {self.device.name}"
            raise UserError(f"--twirl-gates: simulated on at most {LARGEST} qubits, and {touched}")
        return noises.noisy_instructions(every[0], self.noise, *kind)

    def _evaluate(self, call: Call) -> NDArray[np.float64]:
        function = self.simulator(call.template, torch.complex128)
        if function is None:
            return super()._evaluate(call)
        return evaluate_by_weights(call, function, call.template.num_outputs)

    def run(self, calls: Sequence[Call]) -> list[NDArray[np.float64]]:
        return AerBackend.run(self, calls) if self.shots is None else super().run(calls)

    def submit(self, pubs: Sequence[PUB]) -> Counted:
        """Samples of every slot, with the noise of its own qubits; a budget is charged as the device would bill."""
        widest = max((len(slot.physical) for pub in pubs for slot in pub.slots if pub.calibration is None), default=0)
        if widest > LARGEST_TRAJECTORY:
            what = f"a circuit touches {widest} qubits of {self.device.name}; noise is simulated on at most"
            raise UserError(f"backend {self.name!r}: {what} {LARGEST_TRAJECTORY}: {NARROWER}")
        chances = self._all_chances(pubs)
        return self.one_by_one(
            pubs, lambda pub: [self._slot(pub, k, next(chances)) for k in range(len(pub.slots))] or self._whole(pub)
        )

    def _all_chances(self, pubs: Sequence[PUB]) -> Iterator[NDArray[np.float64] | None]:
        """Those of every slot of every PUB; None for a wide circuit."""

        def chances(one: tuple[PUB, int]) -> NDArray[np.float64] | None:
            pub, place = one
            narrow = pub.calibration is not None or len(pub.slots[place].physical) <= LARGEST_DENSITY
            return self._chances(pub, place) if narrow else None

        yield from self.spread(chances, [(pub, place) for pub in pubs for place in range(len(pub.slots))])

    def _slot(self, pub: PUB, place: int, chances: NDArray[np.float64] | None) -> Counts | BitArray:
        """What is counted in a slot: drawn from its chances, or of a wide circuit simulated shot by shot."""
        if chances is not None:
            return sample(chances, pub.shots, self.rng)
        slot = pub.slots[place]
        template, (placed, flips) = slot.group.template, self._run_as(pub, slot)

        def measured() -> QuantumCircuit:
            circuit = self._whole_noise(placed, Kraus)
            circuit.add_register(ClassicalRegister(template.num_qubits))
            circuit.measure(placed.measured, range(template.num_qubits))
            return circuit

        circuit = self._once(slot, pub.variant, measured)
        order = {parameter: k for k, parameter in enumerate(template.parameters)}
        busy, values = slot.samples >= 0, pub.parameters(place)[:, [order[p] for p in circuit.parameters]]
        with extras():
            from qiskit_aer import AerSimulator

        (bits,) = self._shots(AerSimulator(method="statevector"), circuit, values, pub.shots)
        read = np.zeros((pub.rows, pub.shots, template.num_qubits), dtype=bool)  # nobody reads rows of an idle slot
        read[busy] = bits.to_bool_array(order="little")
        for qubit, error in enumerate(noises.readout(placed, self.noise, flips)):
            read[..., qubit] = self.rng.random(read.shape[:2]) < error[:, 1][read[..., qubit].astype(int)]
        return BitArray.from_bool_array(read, order="little")

    def _whole(self, pub: PUB) -> list[BitArray]:
        """Shots of a circuit that is not packed: it may measure on its way."""
        return self._shots(self._device_simulator, pub.circuit, pub.values, pub.shots)

    def _shots(self, aer: Any, circuit: QuantumCircuit, values: NDArray[np.float64], shots: int) -> list[BitArray]:
        """Those of each register, ``(rows,)``."""
        from qiskit.primitives import BackendSamplerV2

        sampler = BackendSamplerV2(backend=aer, options={"seed_simulator": int(self.rng.integers(2**31))})
        pubs = [(circuit, values)] if circuit.num_parameters else [(circuit,)] * len(values)
        data = [one.data for one in sampler.run(pubs, shots=shots).result()]
        rows = len(values) if circuit.num_parameters else 1
        return [BitArray.concatenate([one[r.name].reshape(rows) for one in data]) for r in circuit.cregs]

    @cached_property
    def _device_simulator(self) -> Any:
        with extras():
            from qiskit_aer import AerSimulator
            from qiskit_aer.noise import NoiseModel

        noise = None
        if self.noise_name != "none":
            with warnings.catch_warnings(action="ignore"):
                noise = NoiseModel.from_backend(fake_device(self.noise_name), readout_error=self.misread)
        return AerSimulator(noise_model=noise)

    def _chances(self, pub: PUB, place: int) -> NDArray[np.float64]:
        """``(rows, outcomes)`` of a slot: the chance of every outcome, with the noise of its own qubits."""
        slot = pub.slots[place]
        if pub.calibration is not None:
            return self._calibration(slot, pub.calibration)
        template = slot.group.template
        placed, flips = self._run_as(pub, slot)
        chances = np.zeros((pub.rows, 2**template.num_qubits))
        chances[:, 0] = 1  # of rows in which the slot idles; nobody reads them
        busy, values = slot.samples >= 0, pub.parameters(place)
        if self._fits(template):
            table = self._table(slot, placed, pub.variant, flips)
            chances[busy] = evaluate_by_weights(Call(template, values), table, 2**template.num_qubits)
        else:
            make = partial(self._noisy, template, slot.group.basis, placed, flips)
            compiled = self._once(slot, pub.variant, make)
            chances[busy] = self._probabilities(template, compiled, values)
        return chances

    def _run_as(self, pub: PUB, slot: Slot) -> tuple[PlacedCircuit, list[bool]]:
        """The circuit that runs in a slot, and which qubits are flipped in front of their measurement."""
        placed = PlacedCircuit(slot.group.circuit(pub.variant.fold), slot.physical, slot.group.placed.measured)
        return placed, flipped(slot.group.basis, pub.variant.flip)

    def _once(self, slot: Slot, variant: Variant, make: Callable[[], T]) -> T:
        """The noisy circuit of a slot's replica; built once."""
        key = slot.group, slot.physical, variant
        if key not in self._replicas:
            self._replicas[key] = make()
        return self._replicas[key]

    def _table(
        self, slot: Slot, placed: PlacedCircuit, variant: Variant = PLAIN, flips: Sequence[bool] = ()
    ) -> NoisySimulator:
        """Chances of all outcomes at one place of the chip; built once, as long as there is room."""
        key, template = (slot.group.key, slot.physical, variant), slot.group.template
        found = self._tables.pop(key, None)
        if found is None:
            effects = noises.outcome_effects(placed, self.noise, flips)
            while len(self._tables) >= max(1, TABLES // effects.size):
                self._tables.popitem(last=False)
            circuits = self._circuits(template, placed, effects)
            found = NoisySimulator(template, circuits, torch.complex128, self._kept)
        self._tables[key] = found  # the last one used stands last
        return found

    def _calibration(self, slot: Slot, state: int) -> NDArray[np.float64]:
        chances = np.ones(1)
        for matrix in noises.confusion(slot.read, self.noise, [bool(state)] * len(slot.read)):
            chances = np.kron(matrix[0], chances)
        return chances[None]
