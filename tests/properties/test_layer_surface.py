"""Properties of the public Python surface, over random circuits, tensors and ways to use a layer.

``QRKT_HW_EXAMPLES=20000`` runs that many examples in all instead of about 2,000, from random seeds that a failure
prints; by default the examples are the same in every run.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import threading

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.utils import parametrizations

from qrkt_hw import QuantumLayer, backends, circuits
from qrkt_hw.errors import UserError
from qrkt_hw.simulator import METHODS
from tests.random_templates import gate_by_gate, random_template, reference_values

ALL = int(os.environ.get("QRKT_HW_EXAMPLES", "0"))


def examples(share: float):
    """Settings of a test that takes this share of all examples."""
    return settings(
        max_examples=max(1, round(share * (ALL or 2000))),
        deadline=None,
        derandomize=not ALL,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def _pool():
    rng = np.random.default_rng(11)
    made = [random_template(rng, num_qubits=1 + k % 4, gates=4 + k) for k in range(12)]
    named = [("qrkt", 4, 1), ("qrkt", 3, 3), ("ry_rz_ring", 4, 2), ("brickwork", 3, 2), ("reuploading", 2, 2)]
    return [*made, *(circuits.build(*name) for name in named), circuits.build("qrkt", 9, 1)]


POOL = _pool()
FITTING = [["auto", *(n for n, m in METHODS.items() if m.supports(t))] for t in POOL]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WHOLE = [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64]
PLACES = st.integers(0, len(POOL) - 1)
GROUPS = st.integers(1, 3)
SEEDS = st.integers(0, 2**31)


def bound(dtype: torch.dtype) -> float:
    """Largest error of a value; the pool's observables are sums of at most three strings."""
    return {torch.float16: 6e-3, torch.bfloat16: 5e-2, torch.float32: 5e-5, torch.float64: 1e-10}[dtype]


@st.composite
def layers(draw, dtypes=FLOATS):
    place = draw(PLACES)
    groups, seed = draw(GROUPS), draw(SEEDS)
    torch.manual_seed(seed)
    template = POOL[place]
    made = QuantumLayer(groups * template.num_inputs, ansatz=template, method=draw(st.sampled_from(FITTING[place])))
    return made.to(draw(st.sampled_from(dtypes)))


def arranged(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers in memory otherwise."""
    if how == "transposed" and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced":
        return torch.stack([x, x + 1], dim=-1)[..., 0]
    if how == "offset":
        flat = torch.empty(x.numel() + 3, dtype=x.dtype)
        flat[3:] = x.flatten()
        return flat[3:].view(x.shape)
    if how == "negative" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(x, -x).conj().imag
    if how == "expanded" and x.ndim > 1 and len(x):
        return x[:1].expand(x.shape)
    return x


ARRANGED = st.sampled_from(["plain", "transposed", "sliced", "offset", "negative", "expanded"])
LEADS = st.one_of(
    st.lists(st.integers(0, 4), max_size=4).map(tuple), st.sampled_from([(7,), (8,), (9,), (15,), (17,), (33,)])
)


def numbers(lead, features, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(*lead, features, generator=generator)
    return (x > 0) if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)


def exact(made: QuantumLayer, x: torch.Tensor) -> torch.Tensor:
    """Values of contiguous inputs in double precision, gate by gate: another method than most layers use."""
    template = made.template
    simulate = gate_by_gate(template)
    count = x.numel() // x.shape[-1]
    groups = x.detach().double().clone().reshape(count, made.groups, template.num_inputs)
    weights = made.weight.detach().double().reshape(made.groups, template.num_weights)
    return simulate(groups, weights).reshape(*x.shape[:-1], made.groups * template.num_outputs)


@examples(0.35)
@given(layers(), st.sampled_from(FLOATS + WHOLE), LEADS, ARRANGED, SEEDS)
def test_values_of_any_layer_for_any_tensor(made, dtype, lead, how, seed):
    x = arranged(numbers(lead, made.features, dtype, seed), how)
    found = made(x)
    assert found.shape == (*lead, made.groups * made.template.num_outputs)
    assert found.dtype == torch.promote_types(dtype, made.weight.dtype)
    torch.testing.assert_close(found.double(), exact(made, x), atol=bound(found.dtype), rtol=0)
    if x.numel():  # one group of one sample against Qiskit
        values = torch.cat([x.double().reshape(-1, made.features)[0, : made.template.num_inputs],
                            made.weight.detach().double()[: made.template.num_weights]])  # fmt: skip
        first = found.detach().double().reshape(-1, made.groups, made.template.num_outputs)[0, 0]
        expected = torch.as_tensor(reference_values(made.template, values.numpy()))
        torch.testing.assert_close(first, expected, atol=bound(found.dtype), rtol=0)


@examples(0.15)
@given(layers([torch.float32, torch.float64]), LEADS, ARRANGED, ARRANGED, SEEDS)
def test_gradients_of_any_layer(made, lead, how, of_cotangent, seed):
    x = arranged(numbers(lead, made.features, made.weight.dtype, seed), how).detach().requires_grad_()
    values = made(x)
    cotangent = arranged(torch.randn(values.shape, dtype=values.dtype), of_cotangent)
    found = torch.autograd.grad(values, (x, made.weight), cotangent, allow_unused=True, materialize_grads=True)
    assert [g.dtype for g in found] == [x.dtype, made.weight.dtype]
    double = copy.deepcopy(made).double()
    plain = gate_by_gate(made.template)
    y = x.detach().double().clone().requires_grad_()
    w = double.weight.detach().requires_grad_()
    groups = y.reshape(y.numel() // made.features, made.groups, made.template.num_inputs)
    again = plain(groups, w.reshape(made.groups, made.template.num_weights)).reshape(values.shape)
    if not again.requires_grad:
        return
    expected = torch.autograd.grad(again, (y, w), cotangent.double(), allow_unused=True, materialize_grads=True)
    scale = 1 + max(float(e.abs().max()) if e.numel() else 0.0 for e in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=4 * bound(x.dtype) * scale, rtol=0)


@examples(0.1)
@given(layers([torch.float32, torch.float64]), st.integers(1, 6), st.sampled_from([np.nan, np.inf, -np.inf]), SEEDS)
def test_what_is_not_finite_stays_in_its_circuit(made, rows, bad, seed):
    x = numbers((rows,), made.features, made.weight.dtype, seed)
    row, column = seed % rows, seed % made.features
    group = column // made.template.num_inputs
    expected = exact(made, x).reshape(rows, made.groups, -1)
    x[row, column] = bad
    found = made(x).detach().double().reshape(rows, made.groups, -1)
    touched = torch.zeros(rows, made.groups, dtype=torch.bool)
    touched[row, group] = True
    torch.testing.assert_close(found[~touched], expected[~touched], atol=bound(made.weight.dtype), rtol=0)
    here, there = found[row, group], expected[row, group]
    x[row, column] = 0.3
    elsewhere = exact(made, x).reshape(rows, made.groups, -1)[row, group]
    # an output that reads the feature is not a number; one that does not is what it was
    same = (elsewhere - there).abs() < 1e-12
    assert (here.isnan() | ((here - there).abs() < bound(made.weight.dtype)) & same).all()


@examples(0.1)
@given(layers(), SEEDS, st.sampled_from(["assign", "call", "replace", "copy", "pickle", "empty", "norm", "data"]))
def test_the_parameter_in_place_is_the_one_that_computes(made, seed, way):
    x = numbers((3,), made.features, torch.float32, seed)
    angles = torch.randn(made.weight.shape, generator=torch.Generator().manual_seed(seed)).to(made.weight.dtype)
    made(x)  # whatever a layer remembers, it remembers now
    run = made
    if way == "assign":
        made.load_state_dict({"weight": angles}, assign=True)
    elif way == "call":
        found = functional_call(made, {"weight": angles}, (x,))
        made.weight.data = angles
    elif way == "replace":
        made.weight = nn.Parameter(angles)
    elif way == "data":
        made.weight.data = angles
    elif way == "empty":
        made.to("meta").to_empty(device="cpu").load_state_dict({"weight": angles})
    elif way == "norm" and len(angles) and made.weight.dtype in (torch.float32, torch.float64):
        made.weight.data = angles
        run = parametrizations.weight_norm(copy.deepcopy(made))
    else:
        made.weight.data = angles
        run = copy.deepcopy(made) if way == "copy" else pickle.loads(pickle.dumps(made))
    if way != "call":
        found = run(x)
    torch.testing.assert_close(found.double(), exact(made, x), atol=bound(found.dtype), rtol=0)


@examples(0.1)
@given(PLACES, GROUPS, SEEDS, st.data())
def test_what_does_not_fit_is_refused_in_a_sentence(place, groups, seed, data):
    template = POOL[place]
    made = QuantumLayer(groups * template.num_inputs, ansatz=template)
    x = numbers((4,), made.features, torch.float32, seed)
    wrong = data.draw(st.sampled_from(["features", "weight", "initial", "complex", "sparse", "device", "kind", "type"]))
    length = data.draw(st.integers(0, 200))
    try:
        if wrong == "features":
            made(torch.zeros(4, length if length != made.features else length + 1))
        elif wrong == "weight":
            made.weight.data = torch.zeros(length if length != len(made.weight) else length + 1)
            made(x)
        elif wrong == "initial":
            length += length == len(made.weight)
            QuantumLayer(made.features, ansatz=template, initial_weights=np.zeros(length))
        elif wrong == "complex":
            made(x.to(torch.complex64))
        elif wrong == "sparse":
            made(x.to_sparse())
        elif wrong == "device":
            made(x.to("meta"))
        elif wrong == "kind":
            made.weight = nn.Parameter(torch.zeros(len(made.weight), dtype=torch.long), requires_grad=False)
            made(x)
        else:
            made(data.draw(st.sampled_from([None, 3.0, "x", [1.0], np.zeros((4, made.features))])))
    except (ValueError, UserError) as error:
        assert str(error) and "\n" not in str(error)
    else:
        raise AssertionError(f"{wrong} was taken")


@examples(0.05)
@given(
    st.integers(-1, 12), st.sampled_from([*circuits.names(), "nothing", "no/file.py:f"]), st.integers(-1, 6),
    st.integers(-1, 3), st.sampled_from(["exact", "aer_cpu", "nowhere", "fake_nothing"]),
    st.sampled_from([torch.complex64, torch.complex128, torch.float32]), st.sampled_from(["auto", *METHODS, "magic"]),
)  # fmt: skip
def test_a_constructor_makes_a_working_layer_or_says_why_not(features, ansatz, qubits, depth, backend, dtype, method):
    try:
        made = QuantumLayer(features, ansatz, qubits, depth, backend, dtype, method)
    except (ValueError, UserError) as error:
        assert str(error) and "\n" not in str(error)
        return
    found = made(torch.zeros(2, features))
    assert found.shape == (2, features) and found.isfinite().all()


@examples(0.04)
@given(PLACES, st.sampled_from([0, 1, 2, 63, 64, 65, 257, 1000, 4096, 10_000, 100_000]), SEEDS)
def test_a_batch_is_its_rows(place, size, seed):
    template = POOL[place]
    made = QuantumLayer(template.num_inputs, ansatz=template)
    if template.num_qubits > 4:
        size = min(size, 4096)
    with torch.no_grad():
        x = numbers((size,), made.features, torch.float32, seed)
        found = made(x)
        assert found.shape == (size, template.num_outputs)
        rows = torch.randint(max(size, 1), (5,)) if size else torch.zeros(0, dtype=torch.long)
        torch.testing.assert_close(found[rows].double(), exact(made, x[rows]), atol=5e-5, rtol=0)


@examples(0.06)
@given(PLACES, GROUPS, st.sampled_from(["vmap", "rows", "jacrev", "per sample", "hessian", "many"]), SEEDS)
def test_transforms_of_torch_func(place, groups, which, seed):
    template = POOL[place]
    made = QuantumLayer(groups * template.num_inputs, ansatz=template, dtype=torch.complex128)
    x, w = numbers((3,), made.features, torch.float64, seed), made.weight.detach()
    close = {"atol": 1e-8, "rtol": 1e-8}

    def values(angles, features):
        return functional_call(made, {"weight": angles}, (features,))

    def total(angles):
        return values(angles, x).sum()

    if which == "vmap":
        torch.testing.assert_close(vmap(made)(x), made(x), **close)
    elif which == "rows":
        pair = torch.stack([w, w + 1])
        torch.testing.assert_close(vmap(values, (0, None))(pair, x)[1], values(w + 1, x), **close)
    elif which == "jacrev":
        expected = torch.autograd.functional.jacobian(lambda a: values(a, x), w)
        torch.testing.assert_close(jacrev(values)(w, x), expected, **close)
    elif which == "per sample":
        found = vmap(grad(lambda a, r: values(a, r).sum()), (None, 0))(w, x)
        torch.testing.assert_close(found.sum(0), grad(total)(w), **close)
    elif which == "many":
        leaf = w.clone().requires_grad_()
        y = values(leaf, x).flatten()
        at_once = torch.autograd.grad(y, leaf, torch.eye(len(y), dtype=y.dtype), is_grads_batched=True,
                                      allow_unused=True, materialize_grads=True)[0]  # fmt: skip
        expected = torch.autograd.functional.jacobian(lambda a: values(a, x).flatten(), w)
        torch.testing.assert_close(at_once, expected, **close)
    else:
        expected = torch.autograd.functional.hessian(total, w)
        torch.testing.assert_close(hessian(total)(w), expected, **close)


@examples(0.02)
@given(st.lists(PLACES, min_size=2, max_size=4), SEEDS)
def test_threads_compute_what_one_does(places, seed):
    made = [QuantumLayer(POOL[p].num_inputs, ansatz=POOL[p]) for p in places]
    inputs = [numbers((40,), layer.features, torch.float32, seed) for layer in made]
    expected = [layer(x).detach() for layer, x in zip(made, inputs, strict=True)]
    found: dict[int, torch.Tensor] = {}

    def work(k: int) -> None:
        for _ in range(3):
            leaf = inputs[k].clone().requires_grad_()
            values = made[k](leaf)
            values.sum().backward()
            found[k] = values.detach()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for k, values in enumerate(expected):
        torch.testing.assert_close(found[k], values)


def _in_child(made, x, queue) -> None:
    queue.put(made(x).detach().numpy())


@examples(0.003)
@given(PLACES, SEEDS)
def test_a_forked_process_computes_the_same(place, seed):
    made = QuantumLayer(POOL[place].num_inputs, ansatz=POOL[place])
    x = numbers((9,), made.features, torch.float32, seed)
    expected = made(x).detach()
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(made, x, queue))
    child.start()
    found = queue.get()
    child.join(60)
    assert child.exitcode == 0
    torch.testing.assert_close(torch.as_tensor(found), expected)


@examples(0.03)
@given(PLACES, st.sampled_from(FLOATS + WHOLE), LEADS, st.sampled_from([None, 200_000]), SEEDS)
def test_a_backend_that_is_asked_in_numbers_gives_the_same(place, dtype, lead, shots, seed):
    template = POOL[place]
    made = QuantumLayer(template.num_inputs, ansatz=template)
    made.backend = backends.registry.resolve("aer_cpu", shots=shots, seed=7)
    x = numbers(lead[:2], made.features, dtype, seed)
    found = made(x)
    assert found.shape == (*x.shape[:-1], template.num_outputs)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    limit = bound(found.dtype) if shots is None else 0.02 + bound(found.dtype)
    torch.testing.assert_close(found.detach().double(), exact(made, x), atol=limit, rtol=0)


def test_nothing_is_left_behind():
    """Values and gradients of many calls leave no tensors alive."""
    made = QuantumLayer(4, ansatz=POOL[12])
    x = torch.randn(64, 4, requires_grad=True)
    counts = []
    for _ in range(3):
        for _ in range(20):
            made(x).sum().backward()
        made.zero_grad()
        gc.collect()
        counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
    assert counts[-1] <= counts[0]
