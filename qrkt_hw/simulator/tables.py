"""What the methods share: constants of a program on each device, derived parameters, gradients in plain operations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from qrkt_hw.compiler import Derived, evaluate
from qrkt_hw.compiler.program import Affine


class Tables:
    """Named constant tensors, by device."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}
        self._by_device: dict[torch.device, dict[str, Tensor]] = {}

    def add(self, name: str, values: NDArray, dtype: torch.dtype) -> None:
        if not dtype.is_complex and np.iscomplexobj(values):
            values = values.real
        with ordinary_tensors():
            self._made[name] = torch.as_tensor(np.ascontiguousarray(values), device="cpu").to(dtype)

    def on(self, device: torch.device) -> dict[str, Tensor]:
        if device.type == "cpu":
            return self._made
        if device not in self._by_device:
            with ordinary_tensors():
                self._by_device[device] = {name: table.to(device) for name, table in self._made.items()}
        return self._by_device[device]


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Within, tensors are ordinary ones: what is kept must not be a fake, inference or traced one of its first user."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with torch.inference_mode(False), _disable_current_modes():
            yield
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


class Angles(Tables):
    """Rotation angles of parameters: ``inputs @ to_inputs + weights @ to_weights + offset``."""

    def __init__(self, angles: Sequence[Affine], num_inputs: int, num_weights: int, real: torch.dtype) -> None:
        super().__init__()
        matrix = np.zeros((num_inputs + num_weights, len(angles)))
        for column, angle in enumerate(angles):
            for index, coefficient in angle.terms:
                matrix[index, column] = coefficient
        self.add("to_inputs", matrix[:num_inputs], real)
        self.add("to_weights", matrix[num_inputs:], real)
        self.add("offset", np.array([angle.offset for angle in angles]), real)

    def __call__(self, inputs: Tensor | None, weights: Tensor) -> Tensor:
        """``(angles, groups, batch)``; without inputs ``(angles, groups, 1)``."""
        tables = self.on(weights.device)
        angles = weights @ tables["to_weights"] + tables["offset"]
        angles = angles.unsqueeze(0) if inputs is None else inputs @ tables["to_inputs"] + angles
        return angles.permute(2, 1, 0)


def apply_matrix(vectors: Tensor, matrix: Tensor, qubits: Sequence[int], base: int) -> Tensor:
    """A matrix on some digits of vectors ``(groups, base^n, batch)``; ``qubits[0]`` and digit 0 least significant."""
    groups, size, batch = vectors.shape
    n = round(np.log(size) / np.log(base))
    axes, front = [n - q for q in reversed(qubits)], list(range(1, len(qubits) + 1))
    cube = vectors.reshape(groups, *([base] * n), batch).movedim(axes, front)
    moved = torch.matmul(matrix, cube.reshape(groups, len(matrix), -1))
    return moved.reshape(cube.shape).movedim(front, axes).reshape(vectors.shape)


def vjp(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    *cotangents: Tensor,
) -> list[Tensor | None]:
    """The vector-Jacobian product of a function in plain operations; differentiable again where torch asks for that.

    The function is given tensors of their own: one may itself depend on another (inputs of a later Runge-Kutta stage on
    the weights of an earlier one, which are the same), and that path belongs to other nodes. ``needs`` says of which
    tensors the gradient is wanted; the others, and those that are None, get None.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [None if t is None else t.view_as(t) if again else t.detach().requires_grad_() for t in tensors]
        values = function(*own)
    wanted = [t for t, need in zip(own, needs, strict=True) if need and t is not None]
    given = (values,) if isinstance(values, Tensor) else values
    if any(value.requires_grad for value in given):
        found = iter(torch.autograd.grad(given, wanted, cotangents, create_graph=again, materialize_grads=True))
    else:  # a circuit that depends on no parameter
        found = iter([torch.zeros_like(t) for t in wanted])
    return [next(found) if need and t is not None else None for t, need in zip(own, needs, strict=True)]


def derived_values(derived: Derived, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """What ``derived.template`` takes, from what ``derived.source`` takes; differentiable any number of times.

    Inputs are ``(..., groups, inputs)``, weights ``(groups, weights)``; the same
    tensors where the angles were linear as they were.
    """
    if derived.trivial:
        return inputs, weights
    features, angles = _floating(inputs), _floating(weights)
    kind = torch.promote_types(features.dtype, angles.dtype)
    columns = [*features.to(kind).unbind(-1), *angles.to(kind).unbind(-1)]
    return (
        _stack([evaluate(f, columns, torch) for f in derived.inputs], inputs.shape[:-1], columns),
        _stack([evaluate(f, columns, torch) for f in derived.weights], weights.shape[:-1], columns),
    )


def _floating(tensor: Tensor) -> Tensor:
    # half precision has three digits, which an angle that is a square or a product does not survive
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _stack(values: Sequence[Tensor | float], shape: torch.Size, columns: Sequence[Tensor]) -> Tensor:
    full = [torch.as_tensor(v, dtype=columns[0].dtype, device=columns[0].device).expand(shape) for v in values]
    return torch.stack(full, dim=-1) if full else columns[0].new_zeros((*shape, 0))


def derived_jacobian(derived: Derived, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """``d(parameter of derived.template)/d(parameter of derived.source)``, ``(..., template's, source's)``."""
    size = parameters.shape[-1]
    if derived.trivial:
        return np.broadcast_to(np.eye(size), (*parameters.shape[:-1], size, size))
    columns = [c.requires_grad_() for c in torch.tensor(parameters, dtype=torch.float64).unbind(-1)]
    rows = []
    with torch.enable_grad():
        for formula in (*derived.inputs, *derived.weights):
            value = columns[0].detach() * 0 + evaluate(formula, columns, torch)
            found: Sequence[Tensor] = [torch.zeros_like(c) for c in columns]
            if value.requires_grad:  # or an expression in which all parameters cancel
                found = torch.autograd.grad(value.sum(), columns, allow_unused=True, materialize_grads=True)
            rows.append(torch.stack(list(found), dim=-1))
    return torch.stack(rows, dim=-2).numpy()
