"""Presets: YAML files of options that ship with the package; and the tasks of ``qrkt-hw bench`` with their recipes."""

import itertools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from qrkt_hw.errors import UserError, unknown

BITS = 12  # words of a generated text


def names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def text(name: str) -> str:
    """The file of a preset. Raises UserError: no such preset."""
    if name not in names():
        raise UserError(f"--preset: {unknown('preset', name, names(), see='qrkt-hw presets list')}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def about(name: str) -> str:
    """One sentence on a preset: the first comment of its file."""
    return text(name).splitlines()[0].lstrip("# ")


def load(name: str) -> dict[str, Any]:
    """The options a preset sets."""
    return yaml.safe_load(text(name)) or {}


@dataclass(frozen=True)
class Task:
    """A data set of ``qrkt-hw bench`` with a recipe.

    Attributes:
        about: what it is, in a few words.
        chance: accuracy of guessing.
        options: of the training, by flat keys; ``preset`` stands for those of a preset, without its circuits. Without
            either ``preset`` or ``dataset``, the data are generated.
        quick: options over these of the quick suite; None leaves the task out there.
        source: where its files are found, where the error of the data set does not say it.
    """

    about: str
    chance: float
    options: dict[str, Any]
    quick: dict[str, Any] | None = None
    source: str = ""


_TOKENS = {
    "model": "text", "text_length": BITS, "vocabulary": 32, "hidden": 16, "heads": 4, "mlp": 32, "rk": "rk1",
    "rk_blocks": 2, "dropout": 0.0, "batch_size": 128, "epochs": 100, "learning_rate": 0.02, "weight_decay": 0.01,
    "warmup_steps": 100, "ema": 0.98,
}  # fmt: skip
_DIGITS = {
    "dataset": "digits", "patch": 4, "hidden": 16, "heads": 4, "mlp": 16, "rk": "rk1", "rk_blocks": 2, "dropout": 0.0,
    "epochs": 60, "weight_decay": 0.01,
}  # fmt: skip
TASKS: dict[str, Task] = {
    "digits": Task("scikit-learn's digits, 8x8 pixels", 0.1, _DIGITS, {"epochs": 10}),
    "mnist": Task("handwritten digits, 28x28 pixels", 0.1, {"preset": "best-mnist", "epochs": 12}),
    "cifar10": Task("photographs of ten classes, 32x32 pixels", 0.1, {"preset": "best-cifar10", "epochs": 8}),
    "cifar100": Task(
        "photographs of a hundred classes", 0.01, {"preset": "best-cifar10", "dataset": "cifar100", "epochs": 8}
    ),
    "imagenet10": Task(
        "ten classes of ImageNet, 64x64 pixels", 0.1,
        {"preset": "best-cifar10", "dataset": "folder:imagenette", "image_size": 64, "patch": 8, "epochs": 40},
        source="; unpack https://github.com/fastai/imagenette as DIR/imagenette and give --data-dir DIR",
    ),
    "imdb": Task("reviews of films, positive or negative", 0.5, {"preset": "best-imdb"}),
    **{
        f"parity-{order}": Task(
            f"parity of {order} hidden ones of 12 bits", 0.5, {**_TOKENS, "positions": "none"},
            {"epochs": 10 * (order - 1), "rk_blocks": 1} if order <= 3 else None,
        )
        for order in range(2, 7)
    },
    "order": Task("which of two words comes first", 0.5, _TOKENS, {"epochs": 8, "rk_blocks": 1}),
}  # fmt: skip


def chosen_tasks(text: str | None, quick: bool) -> list[str]:
    """Names of tasks of a list with commas; ``parity`` stands for its five orders, None for the whole suite.

    Raises UserError: an unknown task.
    """
    known = {**{name: [name] for name in TASKS}, "parity": [name for name in TASKS if name.startswith("parity")]}
    if text is None:
        return [name for name, task in TASKS.items() if not quick or task.quick is not None]
    words = [word.strip() for word in text.split(",") if word.strip()]
    odd = next((word for word in words if word not in known), None)
    if odd is not None or not words:
        raise UserError(f"--tasks: {unknown('task', odd or text, TASKS, 'and parity for all orders')}")
    return list(dict.fromkeys(itertools.chain.from_iterable(known[word] for word in words)))
