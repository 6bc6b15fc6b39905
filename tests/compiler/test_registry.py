"""Finding templates by name, and refusing what is none."""

import pytest
from qiskit.circuit import Parameter

from qrkt_hw.circuits import CircuitTemplate, _factories, build, names, register
from qrkt_hw.errors import UserError
from tests.random_templates import circuit_and_vectors


@pytest.fixture
def known():
    before = dict(_factories)
    yield
    _factories.clear()
    _factories.update(before)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("qubits", [1, 2, 3, 6])
@pytest.mark.parametrize("name", names())
def test_every_template_keeps_its_promises(name, qubits, layers):
    least = 2 if name.startswith("orthogonal") or name == "compound" else 1
    if qubits < least:
        with pytest.raises(UserError, match="at least 2 features"):
            build(name, qubits, layers)
        return
    template = build(name, qubits, layers)
    unary = template.encoding != "angle"  # one qubit more, the reference, and one angle less than features
    assert template.name == name and template.num_features == qubits
    more = unary or name in ("higher_order", "compound")  # a qubit for the read-out or the second excitation
    assert template.num_qubits == qubits + more and template.num_inputs == qubits - unary
    assert template.num_outputs == (1 if name == "higher_order" else qubits) and template.num_weights > 0
    assert template.reference and template.topology in ("chain", "ring", "star", "all", "none", "hypercube")
    allowed = {frozenset((j, j + 1)) for j in range(template.num_qubits - 1)}
    if template.topology == "ring":
        allowed |= {frozenset((0, qubits - 1))}
    if template.topology == "star":
        allowed = {frozenset((j, qubits)) for j in range(qubits)}
    pairs = {frozenset(template.circuit.find_bit(q).index for q in i.qubits) for i in template.circuit.data}
    assert template.topology in ("all", "hypercube") or {p for p in pairs if len(p) == 2} <= allowed
    assert all(len(p) <= 2 for p in pairs)


def test_the_same_arguments_give_the_same_object():
    assert build("qrkt", 4, 2) is build("qrkt", 4, 2)


def test_a_registered_factory_is_found_and_replaces_an_earlier_one(known):
    register("mine", lambda n, layers: build("rx_ring", n, layers))
    assert build("mine", 3, 1) is build("rx_ring", 3, 1)
    register("mine", lambda n, layers: build("qrkt", n, layers))
    assert build("mine", 3, 1) is build("qrkt", 3, 1)


@pytest.mark.parametrize("name", ["", "a:b", "a/b"])
def test_names_that_look_like_files_are_refused(name):
    with pytest.raises(ValueError):
        register(name, build)


@pytest.mark.parametrize(("qubits", "layers"), [(0, 1), (1, 0), (-1, 1)])
def test_impossible_sizes_are_refused(qubits, layers):
    with pytest.raises(UserError, match="at least"):
        build("qrkt", qubits, layers)


def test_a_file_may_hold_dataclasses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from qrkt_hw.circuits import build\n"
        "@dataclasses.dataclass\n"
        "class Settings:\n"
        "    layers: int = 2\n"
        "def make(n, layers): return build('qrkt', n, Settings().layers)\n"
    )
    assert build(f"{tmp_path}/mine.py:make", 3, 1).num_weights == 6


def test_templates_that_do_not_fit_their_circuit_are_refused():
    circuit, x, w = circuit_and_vectors()
    with pytest.raises(ValueError, match="twice"):
        CircuitTemplate("t", circuit, x, [*w, x[0]])
    with pytest.raises(ValueError, match="declared"):
        CircuitTemplate("t", circuit, x, ())
    with pytest.raises(ValueError, match="declared"):
        CircuitTemplate("t", circuit, x, [*w, Parameter("more")])
    with pytest.raises(ValueError, match="qubits"):
        CircuitTemplate("t", circuit, x, w, ("ZZZ",))
    measured = circuit.copy()
    measured.measure_all()
    with pytest.raises(ValueError, match="measure"):
        CircuitTemplate("t", measured, x, w)
    measured = circuit.copy()
    measured.reset(0)
    with pytest.raises(ValueError, match="reset"):
        CircuitTemplate("t", measured, x, w)


def test_without_observables_every_qubit_is_read():
    circuit, x, w = circuit_and_vectors()
    labels = [o.paulis.to_labels() for o in CircuitTemplate("t", circuit, x, w).observables]
    assert labels == [["IZ"], ["ZI"]]  # Qiskit writes qubit 0 last
