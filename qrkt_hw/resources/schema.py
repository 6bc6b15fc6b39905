"""The report as data. ``qrkt-hw resources --format json`` prints it, ``--schema`` its JSON schema."""

from pydantic import BaseModel, Field


class Circuit(BaseModel):
    """A distinct template of the model, as written, before transpiling."""

    fingerprint: str = Field(description="of gates, parameters and observables; the same circuit has the same one")
    template: str = Field(description="name of the ansatz")
    topology: str
    qubits: int
    inputs: int
    weights: int = Field(description="trainable angles of one circuit")
    outputs: int = Field(description="observables")
    bases: int = Field(description="circuits it takes to measure all observables once")
    depth: int
    two_qubit_depth: int = Field(description="depth counting only gates on two or more qubits")
    two_qubit_gates: int = Field(description="gates on two or more qubits")
    gates: dict[str, int]
    shifts: int = Field(
        description="circuits of one parameter-shift derivative by weights and, with angle encoding, inputs"
    )


class LayerRow(BaseModel):
    """Quantum layers of the same shape."""

    layers: list[str] = Field(description="their names in the model")
    circuit: int = Field(description="place in `circuits`")
    groups: int = Field(description="circuits a layer's features are split into")
    weights: int = Field(description="trainable angles of one layer")
    calls_per_image: int = Field(description="circuits of all these layers for one image")


class StageCall(BaseModel):
    """Calls of one circuit within a sequential stage."""

    circuit: int
    layers: int = Field(description="layers that call it")
    circuits: int = Field(description="circuits for one image")


class Logical(BaseModel):
    """Part 1: the circuits as written and how often they run."""

    circuits: list[Circuit]
    layers: list[LayerRow]
    qubits: int = Field(description="of the largest circuit; 0 for a classical model")
    qubits_summed: int = Field(description="over all layers and groups, the count published for such models")
    calls_per_image: int = Field(description="circuits one image takes")
    rounds: list[list[StageCall]] = Field(description="sequential stages: each waits for the one before")


class Output(BaseModel):
    """The light cone of one observable."""

    observable: str
    inputs: list[int]
    weights: list[int]
    exact: bool = Field(description="true: it depends on each of these; false: at most on these")
    strings: int = Field(description="most Pauli strings it has under Pauli propagation; 0 where there are too many")


class Simulability(BaseModel):
    """Part 4: the dependence report and the classical simulability of a circuit."""

    circuit: int
    outputs: list[Output]
    elementwise: int = Field(description="outputs that depend on at most one input")
    dead_weights: int = Field(description="weights on which no output depends")
    sentence: str = Field(description="the dependence report in words")
    method: str = Field(description="the simulation method this package would take")
    microseconds: float | None = Field(description="estimated, forward and backward in a large batch; null: none fits")
    hardness: str = Field(description="what it takes to compute the outputs classically")


class Parameters(BaseModel):
    """Part 5: trainable parameters, beside those of the size-matched classical baseline."""

    quantum: int
    classical: int
    total: int
    twin: int | None = Field(description="total of that baseline: linear layers for circuits; null without a model")


class Placed(BaseModel):
    """A circuit transpiled to a device, with all qubits measured."""

    circuit: int
    level: int = Field(description="optimisation level of Qiskit's preset pass manager")
    seed: int = Field(description="of the transpiler")
    physical: list[int] = Field(description="the device's qubits it uses")
    layout: list[int] = Field(description="for every qubit of the circuit the physical qubit that is measured")
    couplings: list[list[int]] = Field(description="pairs of physical qubits joined by two-qubit gates")
    depth: int
    two_qubit_gates: int
    two_qubit_depth: int
    gates: dict[str, int]
    duration: float = Field(description="seconds, measurement included")
    success: float = Field(description="estimated success probability (ESP): no gate and no readout fails")
    output_success: list[float] = Field(description="ESP of the gates in the light cone of each observable")
    predicted_error: float | None = Field(
        description="expected root mean square error of the values: (1 - ESP of the light cone) x typical value; null "
        "beyond 14 qubits"
    )
    copies: int = Field(description="disjoint replicas that fit the device, good or bad")
    good_copies: int = Field(description="replicas that are packed: those with at least half the ESP of the best")
    copy_success: list[float] = Field(description="ESP of every replica that is packed, best first")
    copy_qubits: list[list[int]] = Field(description="physical qubits of every replica that is packed")
    basis_copies: list[list[list[int]]] = Field(description="the same for each measurement basis")


class Device(BaseModel):
    """Part 2: a device and every circuit on it."""

    name: str
    qubits: int | None
    calibrated: str | None = Field(description="date of the calibration, ISO 8601")
    rep_delay: float | None = Field(description="seconds between two executions")
    simulated: bool = Field(description="true: circuits run on this machine as written; nothing is transpiled or paid")
    circuits: list[Placed]


class Cost(BaseModel):
    """Part 3: a task on a device in one way of submitting it."""

    device: str
    level: int
    task: str
    way: str = Field(description="estimator: a PUB per observable; broadcast: a PUB per layer; packed: packed circuits")
    rounds: int = Field(description="circuit batches, each submitted after the one before")
    jobs: int
    circuits: int = Field(description="circuits submitted; a packed circuit holds several replicas")
    executions: int
    seconds: float = Field(description="QPU seconds: of each job the larger of the two forms below")
    seconds_long: float = Field(description="by the long form: 2 per job + (rep_delay + duration) x executions")
    seconds_quick: float = Field(description="by the short form: 2 per job + 0.00035 x executions")
    usd: dict[str, float] = Field(description="price by plan, of `seconds`; the open plan has none")


class Description(BaseModel):
    """The parts of the report that need no device."""

    logical: Logical
    verdicts: list[Simulability]
    parameters: Parameters


class Report(Description):
    """Everything ``qrkt-hw resources`` knows of a run, preset or circuit."""

    subject: str
    shots: int
    devices: list[Device] = []
    costs: list[Cost] = []
    prices: str = Field("", description="date and source of the prices")
