"""What torch users do with a module, on five kinds of modules: layers, projections and a trained model."""

import copy
import io
import pickle
import threading
from pathlib import Path

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit_machine_learning.neural_networks import SamplerQNN
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

import qrkt_hw
from qrkt_hw import QuantumLayer, backends
from qrkt_hw.nn.quantum import QuantumProjection

pytestmark = pytest.mark.acceptance
KEPT = Path(__file__).parents[2] / "results" / "best-mnist-4-qubits" / "seed-0"


def plain():
    return QuantumLayer(8, qubits=4, layers=2), (8,)


def of_circuit():
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.rx(x[0] * x[1], 1)
    circuit.cx(0, 1)
    circuit.ry(w[0], 0)
    circuit.rz(w[1] * w[2], 1)
    circuit.cx(1, 0)
    return QuantumLayer.from_circuit(circuit, inputs=x, weights=w, observables=["ZI", "XX"]), (2,)


def of_network():
    encoding, ansatz = zz_feature_map(2), real_amplitudes(2, reps=1)
    roles = {"input_params": encoding.parameters, "weight_params": ansatz.parameters}
    qnn = SamplerQNN(circuit=encoding.compose(ansatz), **roles, interpret=lambda k: k.bit_count() % 2, output_shape=2)
    return QuantumLayer.from_qnn(qnn), (2,)


def noisy():
    return QuantumProjection(QuantumLayer(4, qubits=2, backend="fake_guadalupe"), input_scale=True, bias=True), (4,)


def sampled():
    backend = backends.resolve("fake_guadalupe", shots=64, seed=1)
    return QuantumProjection(QuantumLayer(2, backend=backend)), (2,)


def model():
    return qrkt_hw.load(KEPT), (1, 28, 28)


LAYERS = [plain, of_circuit, of_network, noisy]
ALL = [*LAYERS, model]


def of(subjects):
    return pytest.mark.parametrize("make", subjects, ids=lambda make: getattr(make, "__name__", None))


def made(make, batch=3):
    torch.manual_seed(0)
    module, shape = make()
    return module, torch.rand(batch, *shape) * 0.8 - 0.2


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@of(LAYERS)
def test_transforms_of_functions(make):
    module, x = made(make)
    angles = {name: value.detach() for name, value in module.named_parameters()}

    def values(chosen, inputs):
        return functional_call(module, chosen, (inputs,))

    close(vmap(module)(x), module(x))
    reverse, forward = jacrev(values)(angles, x), jacfwd(values)(angles, x)
    by_sample = vmap(grad(lambda a, row: values(a, row).sum()), (None, 0))(angles, x)
    for name in angles:
        close(forward[name], reverse[name], 1e-4)
        close(by_sample[name], reverse[name].sum(1), 1e-4)


@of(LAYERS)
def test_first_and_second_derivatives(make):
    module, x = made(make, batch=2)
    given = (x.double().requires_grad_(), *module.double().parameters())
    assert torch.autograd.gradcheck(lambda x, *_: module(x), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: module(x), given, fast_mode=True)


def test_a_gradient_penalty_of_a_whole_model():
    module, x = made(model, batch=2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).logsumexp(1).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())


class Between(nn.Module):
    """Layers of torch before and after, as in a user's model."""

    def __init__(self, module, features):
        super().__init__()
        self.before, self.module = nn.Linear(features, features), module

    def forward(self, x):
        return self.module(self.before(x)).sin()


@pytest.mark.parametrize(
    "make", [LAYERS[0], *(pytest.param(m, marks=pytest.mark.slow) for m in [*LAYERS[1:], sampled])]
)
def test_compiled_with_breaks_at_the_circuits_only(make):
    module, x = made(make)
    whole = Between(module, x.shape[1])
    torch._dynamo.reset()
    breaks = torch._dynamo.explain(whole)(x).break_reasons  # one, for each function that is left by it
    assert 1 <= len(breaks) <= 2 and all("circuits run on native kernels" in str(one.reason) for one in breaks)
    torch._dynamo.reset()
    compiled = torch.compile(whole, backend="aot_eager")
    if make is not sampled:
        close(compiled(x), whole(x))
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in whole.parameters())


@pytest.mark.slow
def test_a_compiled_model_has_a_break_for_each_attention():
    module, x = made(model)
    calls = sum(name.endswith("attention") for name, _ in module.named_modules())
    torch._dynamo.reset()
    assert 1 <= torch._dynamo.explain(module)(x).graph_break_count <= 8 * calls
    torch._dynamo.reset()
    close(torch.compile(module)(x), module(x), 1e-4)


def test_one_graph_without_a_break_is_refused():
    module, x = made(plain)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="circuits run on native kernels or on a backend"):
        torch.compile(module, backend="eager", fullgraph=True)(x)


@of(LAYERS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_autocast_leaves_circuits_in_float32(make, device):
    module, x = made(make)
    expected, module = module(x), module.to(device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x.to(device))
    assert found.dtype == torch.float32
    if device == "cpu":
        close(found, expected, 1e-6)


def test_autocast_of_a_model_keeps_its_classes():
    module, x = made(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(module(x).float(), module(x).float(), 0.2)


@of(ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions(make, dtype):
    module, x = made(make)
    expected = module(x)
    assert module(x.to(dtype)).dtype == (
        torch.float64 if dtype == torch.float64 and make is not model else expected.dtype
    )
    module.to(dtype)
    found = module(x.to(dtype))
    assert found.dtype == dtype
    close(
        found.float(), expected, {torch.float16: 0.02, torch.bfloat16: 0.3 if make is model else 0.05}.get(dtype, 1e-4)
    )


@of(ALL)
def test_meta_tensors_and_fake_ones_have_shapes(make):
    from torch._subclasses.fake_tensor import FakeTensorMode

    module, x = made(make)
    shape = module(x).shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert module(mode.from_tensor(x)).shape == shape
    assert copy.deepcopy(module).to("meta")(x.to("meta")).shape == shape
    if make is not model:
        with torch.device("meta"):
            assert make()[0](x.to("meta")).shape == shape


@of([plain, of_circuit, *(pytest.param(make, marks=pytest.mark.slow) for make in (of_network, noisy))])
def test_an_exported_program_computes_the_same_for_any_batch(make):
    module, x = made(make)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    more = torch.cat([x, x + 0.1, -x])
    close(program.module()(more), module(more))


def test_strict_export():
    module, x = made(plain)
    close(torch.export.export(module, (x,), strict=True).module()(x + 1), module(x + 1))


@pytest.mark.slow
def test_a_model_is_exported():
    module, x = made(model)
    close(torch.export.export(module, (x,), strict=False).module()(x / 2), module(x / 2), 1e-4)


def test_what_asks_a_sampling_backend_is_not_followed():
    module, x = made(sampled)
    empty, y = copy.deepcopy(module).to("meta"), x.to("meta")
    for use in (lambda: vmap(module)(x), lambda: empty(y), lambda: torch.export.export(module, (x,), strict=False)):
        with pytest.raises(Exception, match="take the exact backend"):
            use()


@of(ALL)
def test_copies_pickles_and_state(make):
    module, x = made(make)
    expected = module(x)
    for again in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        close(again(x), expected, 0)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    fresh = copy.deepcopy(module)
    for p in fresh.parameters():
        p.data.zero_()
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    close(fresh(x), expected, 0)


@of(ALL)
def test_frozen_weights_inference_mode_and_hooks(make):
    module, x = made(make)
    with torch.inference_mode():
        found, seen = module(x), []
    close(found, module(x), 1e-6)
    handles = [
        part.register_forward_hook(lambda part, *_: seen.append(type(part).__name__)) for part in module.modules()
    ]
    x.requires_grad_()
    module.requires_grad_(False)(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is None for p in module.parameters())
    assert "QuantumLayer" in seen
    for handle in handles:
        handle.remove()


def test_two_layers_share_their_weights():
    one, x = made(plain)
    other = QuantumLayer(8, qubits=4, layers=2)
    other.weight = one.weight
    (one(x) + other(2 * x)).sum().backward()
    expected = sum(torch.autograd.grad(one(y).sum(), one.weight)[0] for y in (x, 2 * x))
    close(one.weight.grad, expected)
    assert len(list(nn.ModuleList([one, other]).parameters())) == 1


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


@of([plain, of_circuit, of_network])
def test_parametrized_weights(make):
    module, x = made(make)
    other = copy.deepcopy(module)
    other.weight.data *= 2
    parametrize.register_parametrization(module, "weight", Twice())
    close(module(x), other(x))


class Evaluated(Dataset):
    """Samples that a worker computes by a layer."""

    def __init__(self, module, x):
        self.module, self.x = module, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, k):
        return self.module(self.x[k]).detach()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_call_a_layer(start):
    module, x = made(of_circuit, batch=8)
    loader = DataLoader(Evaluated(module, x), batch_size=4, num_workers=2, multiprocessing_context=start)
    close(torch.cat(list(loader)), module(x))


@of(ALL)
def test_threads_compute_what_one_does(make):
    module, x = made(make, batch=8)
    expected, found = module(x).detach(), {}

    def work(k):
        found[k] = module(x[k : k + 2]).detach()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(0, 8, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    close(torch.cat([found[k] for k in range(0, 8, 2)]), expected, 1e-4)


def _rank(rank, folder, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    module, x = made(of_circuit, batch=4)
    parallel = nn.parallel.DistributedDataParallel(module)
    parallel(x[2 * rank : 2 * rank + 2]).square().mean().backward()
    queue.put(module.weight.grad.tolist())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path), queue)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = [torch.tensor(queue.get()) for _ in ranks]
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    module, x = made(of_circuit, batch=4)
    module(x).square().mean().backward()
    close(found[0], found[1], 0)
    close(found[0], module.weight.grad)


@of(LAYERS)
def test_data_parallel_without_a_gpu_is_the_module(make):
    module, x = made(make)
    close(nn.DataParallel(module)(x), module(x), 0)
