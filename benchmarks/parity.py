"""Hidden parity of k bits: a higher-order circuit beside a family of transformers and a classical product.

python benchmarks/parity.py --json results/parity.json [--orders 2 3 4 5 6] [--resume]

A sample is one of the 1,024 strings of 10 bits; its class is the parity of k hidden ones. Each model is trained on 640
strings, chosen by another 128 and tested on the last 256. Each size has 20 trials: seed, learning rate and weight
decay of AdamW are drawn from the same lists for all. A trial ends after EPOCHS or with every string of validation
right. A size solves k when the trial that validation chooses has at least 99 % of the test strings.

- circuit: one Runge-Kutta block of order 1 with higher-order attention (``circuits/higher_order.py``) and without
  norms, as a norm of one or two features leaves no more than signs; widths and heads of CIRCUITS.
- product: the same block, where a head multiplies one complex number a token, by classical arithmetic.
- transformer: softmax attention plus an MLP of twice the width, learned positions, mean pooling; 1 or 2 blocks,
  widths of WIDTHS.

The sizes of each kind are tried from the smallest on; the first that solves k ends its list.

The trials of a size are trained side by side (``torch.func.vmap``).
"""

import argparse
import json
import time
from pathlib import Path

import torch
from timing import save
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from qrkt_hw.data.base import DataShape
from qrkt_hw.models.factory import build_model, count_parameters
from qrkt_hw.nn.attention import HigherOrderAttention
from qrkt_hw.runs.config import Config

BITS, TRIALS, EPOCHS, BATCH, TRAINING, VALIDATION = 10, 20, 200, 64, 640, 128
WIDTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
RATES, DECAYS = (0.03, 0.01, 0.003, 0.001), (0.0, 0.01, 0.1)
SOLVED = 0.99
COMMON = {"model": "text", "projection": "classical", "dropout": 0.0}
CIRCUITS = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4))


class Product(nn.Module):
    """What circuits of ``higher_order`` with one layer give, by complex numbers: a product over the tokens of a head.

    Stands in the place of ``circuits`` and begins with their angles: (..., heads * tokens) -> (..., heads).
    """

    def __init__(self, circuits: nn.Module) -> None:
        super().__init__()
        self.template, self.groups = circuits.template, circuits.groups
        self.weight = nn.Parameter(circuits.weight.detach().clone().reshape(self.groups, -1))

    def forward(self, angles: Tensor) -> Tensor:
        angles = angles.unflatten(-1, (self.groups, -1))
        turns, last = self.weight[:, :-1], self.weight[:, -1]
        real, imaginary = turns.cos().expand_as(angles), -turns.sin() * angles.sin()
        value = real[..., 0], imaginary[..., 0]
        for token in range(1, angles.shape[-1]):
            a, b = real[..., token], imaginary[..., token]
            value = value[0] * a - value[1] * b, value[0] * b + value[1] * a
        return last.cos() * value[0] - last.sin() * value[1]


class Words(nn.Module):
    """An embedding as a product with one-hot rows, whose gradient is vectorised too."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, ids: Tensor) -> Tensor:
        return (ids[..., None] == torch.arange(len(self.weight))).to(self.weight.dtype) @ self.weight


def higher_order(width: int, heads: int) -> dict:
    return {**COMMON, "attention": "higher-order", "ansatz": "higher_order", "encoder_blocks": 0, "rk_blocks": 1,
            "rk": "rk1", "field_norms": 0, "final_norm": False, "hidden": width, "heads": heads, "mlp": 1,
            "positions": "none"}  # fmt: skip


def transformer(width: int, blocks: int) -> dict:
    return {**COMMON, "encoder_blocks": blocks, "rk_blocks": 0, "hidden": width, "heads": 2, "mlp": 2 * width,
            "positions": "learned"}  # fmt: skip


def make(options: dict, product: bool = False) -> nn.Module:
    model = build_model(Config(**options), DataShape(0, 0, 2, 4, BITS))
    for module in list(model.modules()) if product else ():
        if isinstance(module, HigherOrderAttention):
            module.circuits = Product(module.circuits)
    model.tokens.embedding = Words(model.tokens.embedding.weight.detach())
    model.tokens.mask = lambda ids: None  # no string has padding; the check cannot be vectorised
    return model


def strings(order: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens and classes of the strings for training, validation and test."""
    generator = torch.Generator().manual_seed(order)
    bits = torch.arange(2**BITS)[:, None] >> torch.arange(BITS) & 1
    labels = bits[:, torch.randperm(BITS, generator=generator)[:order]].sum(1) % 2
    parts = torch.randperm(len(bits), generator=generator).split(
        (TRAINING, VALIDATION, 2**BITS - TRAINING - VALIDATION)
    )
    return [bits[part] + 2 for part in parts], [labels[part] for part in parts]  # 0 is padding, 1 an unknown word


def trained(options: dict, order: int, product: bool = False) -> dict:
    """Accuracies of all trials of one size, and what validation chooses."""
    drawn = torch.Generator().manual_seed(0)
    rates = torch.tensor(RATES)[torch.randint(len(RATES), (TRIALS,), generator=drawn)]
    decays = torch.tensor(DECAYS)[torch.randint(len(DECAYS), (TRIALS,), generator=drawn)]
    models = []
    for trial in range(TRIALS):
        torch.manual_seed(trial)
        models.append(make(options, product))
    count = count_parameters(models[0])["total"]
    shell = models[0]
    weights, buffers = stack_module_state(models)
    weights = {name: value.detach().requires_grad_(False) for name, value in weights.items()}

    def loss(weight: dict, buffer: dict, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(shell, (weight, buffer), (x,)), y)

    def right(weight: dict, buffer: dict, x: Tensor, y: Tensor) -> Tensor:
        return (functional_call(shell, (weight, buffer), (x,)).argmax(-1) == y).float().mean()

    slopes = vmap(grad_and_value(loss), in_dims=(0, 0, 0, 0))
    accuracy = vmap(right, in_dims=(0, 0, None, None))
    tokens, classes = strings(order)
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    orders = [torch.Generator().manual_seed(trial) for trial in range(TRIALS)]
    best, tested, ended = torch.zeros(TRIALS), torch.zeros(TRIALS), torch.zeros(TRIALS)
    step = 0
    for epoch in range(EPOCHS):
        shuffled = torch.stack([torch.randperm(TRAINING, generator=generator) for generator in orders])
        for batch in shuffled.split(BATCH, 1):
            step += 1
            gradients, _ = slopes(weights, buffers, tokens[0][batch], classes[0][batch])
            for name, gradient in gradients.items():  # AdamW, with a rate and a decay for each trial
                shape = (TRIALS, *[1] * (gradient.dim() - 1))
                first[name].lerp_(gradient, 0.1)
                second[name].lerp_(gradient.square(), 0.001)
                rate = rates.view(shape)
                weights[name] *= 1 - rate * decays.view(shape)
                estimate = (second[name] / (1 - 0.999**step)).sqrt_() + 1e-8
                weights[name] -= rate * first[name] / (1 - 0.9**step) / estimate
        with torch.no_grad():
            validation, test = (accuracy(weights, buffers, tokens[k], classes[k]) for k in (1, 2))
        better = (validation > best) & (ended == 0)
        best, tested = torch.where(better, validation, best), torch.where(better, test, tested)
        ended = torch.where((validation == 1) & (ended == 0), epoch + 1.0, ended)
        if bool((ended > 0).any() and tested[best.argmax()] >= SOLVED) or bool((ended > 0).all()):
            break
    chosen = int(best.argmax())
    return {
        "order": order, "parameters": count, "validation": float(best[chosen]), "test": float(tested[chosen]),
        "solved": bool(tested[chosen] >= SOLVED), "epochs": epoch + 1, "trials": TRIALS,
        "best test of any trial": float(tested.max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, nargs="*", default=[2, 3, 4, 5, 6])
    parser.add_argument("--largest", type=int, default=256, help="width of a transformer")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep what the file of --json holds already")
    asked = parser.parse_args()
    rows: list[dict] = json.loads(asked.json.read_text())["rows"] if asked.resume and asked.json.exists() else []
    done = {(row["model"], row["order"]): row for row in rows}

    def note(name: str, order: int, options: dict, product: bool = False) -> dict:
        if (name, order) not in done:
            started = time.process_time()
            found = trained(options, order, product)
            rows.append({"model": name, **found, "CPU s": time.process_time() - started})
            done[name, order] = rows[-1]
            save(asked.json, rows)
        return done[name, order]

    wide = [(w, b) for w in WIDTHS for b in (1, 2) if w <= asked.largest]
    kinds = [("product", True, [(f"{w} wide, {h} heads", higher_order(w, h)) for w, h in CIRCUITS]),
             ("circuit", False, [(f"{w} wide, {h} heads", higher_order(w, h)) for w, h in CIRCUITS]),
             ("transformer", False, [(f"{w} wide, {b} blocks", transformer(w, b)) for w, b in wide])]  # fmt: skip
    for kind, product, sizes in kinds:
        sizes.sort(key=lambda size: count_parameters(make(size[1]))["total"])
        for order in asked.orders:
            for size, options in sizes:
                if note(f"{kind}, {size}", order, options, product)["solved"]:
                    break


if __name__ == "__main__":
    main()
