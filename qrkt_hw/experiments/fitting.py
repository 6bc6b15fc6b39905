"""Models, placements, shots and mitigation that fit a budget of QPU seconds, by expected accuracy."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn

from qrkt_hw import backends
from qrkt_hw.backends.device.cache import digest
from qrkt_hw.backends.device.measurement import bases, flip_codes
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.entries import SHOTS
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.data import Data, load_data
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import first, loader
from qrkt_hw.errors import UserError, flag, sentence
from qrkt_hw.experiments.devices import LOOKED_AT, VALIDATED, Watched
from qrkt_hw.experiments.loading import read_splits, restored
from qrkt_hw.models.factory import build_model, quantum_layers, set_backend
from qrkt_hw.models.metrics import logits_of, wilson
from qrkt_hw.models.noise import OutputNoise, add_hooks, allocated, calibrated_damping, check_strings, sensitivities
from qrkt_hw.resources.forecast import BATCH, Forecast, forecast, largest_batch, samples_in_memory
from qrkt_hw.resources.logical import Stages, stages_of
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_text
from qrkt_hw.runs.config import KEYS, Config

PLACEMENTS = tuple(itertools.product((0, 1), (0.5, 0.9)))  # spacing and min_fidelity
WAYS = ("none", "trex")  # ways of mitigation whose effect the calibration says
FEWEST, MOST = 16, 8192  # shots of a circuit; with fewer, formulas say little, and more hardly change a class
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)  # of the shots that the budget allows
DRAWS = 2  # of the noise, for each validation sample
CHECKED = 60.0  # CPU seconds on the fake device, all proposals together
SAVED = 0.95  # of the seconds of a more accurate proposal, from which another is shown
SHORTER = 40  # attempts to find shots for a limit
SHOWN = 8  # proposals
TRIED = 6  # models of a preset that are trained
# options of train that are set here, by a flag or the device, and are no part of a model
OWN_KEYS = {"data_dir", "epochs", "warmup_steps", "shot_noise", "readout_error", "noise_device",
            *(name for name, key in KEYS.items() if key.section == "backend")}  # fmt: skip


@dataclass
class Proposal:
    """One way to run a model on a device within a budget."""

    run: RunFolder  # of the weights by which its accuracy is expected
    model: str  # what its model has other than the preset; empty for the preset's own, or a run's
    options: Config
    spacing: int
    min_fidelity: float
    mitigation: str
    shots: list[int]  # of each sequential stage
    circuits: int  # of one sample
    replicas: int  # fewest of a circuit
    seconds: float  # QPU seconds planned
    executions: int
    expected: float  # accuracy, by formula
    front: bool = False  # of the Pareto front
    checked: dict[str, Any] = field(default_factory=dict)  # ``accuracy, count, interval`` on the fake device

    @property
    def keys(self) -> dict[str, Any]:
        """What ``qrkt-hw infer`` takes for it."""
        uniform = len(set(self.shots)) == 1
        shots = {"shots": self.shots[0]} if uniform else {"shots_per_stage": ",".join(map(str, self.shots))}
        return {**shots, "spacing": self.spacing, "min_fidelity": self.min_fidelity, "mitigation": self.mitigation}

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": str(self.run.path), "model": self.model, **self.keys, "circuits": self.circuits,
            "replicas": self.replicas, "seconds": self.seconds, "executions": self.executions,
            "expected_accuracy": self.expected, "front": self.front, "checked": self.checked,
        }  # fmt: skip


@dataclass
class Request:
    """What is to fit: a device, a limit of QPU seconds, and so many samples (None: the whole test split)."""

    device: Any  # backend options
    limit: float
    samples: int | None
    data_dir: Path | None
    console: Console

    def __post_init__(self) -> None:
        """Raises UserError: a simulator."""
        if backends.from_options(self.device, 0).target is None:
            raise UserError(f"--backend: {self.device.name!r} is a simulator; name a device, such as fake_torino")

    def backend(self, name: str | None = None, **keys: Any) -> DeviceBackend:
        """The device, or another of that name, with these keys."""
        update = {"shots": SHOTS, **({"name": name} if name else {}), **keys}
        found = backends.from_options(self.device.model_copy(update=update), 0)
        assert isinstance(found, DeviceBackend)
        return found

    @property
    def fake(self) -> str | None:
        """The fake backend of the device; None where there is none."""
        name = self.device.name
        found = f"fake_{name.removeprefix('ibm_')}" if backends.bills(self.device) else name
        try:
            backends.check_name(found, self.device.backends_file)
        except UserError:
            return None
        return found


def of_run(run: RunFolder, request: Request, model: str = "") -> list[Proposal]:
    """Ways to run a trained model within the budget, and what accuracy is expected of each.

    Raises UserError: no circuits, sums of Pauli strings, or nothing fits.
    """
    net, shape = restored(run), DataShape.of(run.description())
    if not quantum_layers(net):
        raise UserError(f"run: {run.path} has no circuits to run on a device")
    check_strings(net, "fit-to")
    splits = read_splits(run, request.data_dir)
    validation, count = first(splits["validation"], VALIDATED), request.samples or len(splits["test"])
    stages, most = stages_of(net, shape), samples_in_memory(net, shape)
    names = [[call.layer for call in stage] for stage in stages]
    (inputs, _), *_ = loader(first(validation, LOOKED_AT), LOOKED_AT)
    noise = sensitivities(net, inputs, names)
    found, seen, least = list[Proposal](), set[Any](), float("inf")
    for spacing, min_fidelity in PLACEMENTS:
        backend = request.backend(spacing=spacing, min_fidelity=min_fidelity)
        for how in WAYS:
            backend.mitigate(how)
            cost = Cost.of(stages, count, most, backend)
            least = min(least, cost.seconds([cost.fewest] * len(stages)))
            damping = damping_of(net, backend, corrected=how == "trex")
            for shots in cost.shots_within(request.limit, noise):
                fitted = _fitted(stages, count, most, backend, shots, cost.fewest, request.limit)
                key = (spacing, min_fidelity, how, fitted and tuple(fitted[0]))
                if fitted is None or key in seen:
                    continue
                seen.add(key)
                own, plan = fitted
                found.append(Proposal(
                    run, model, run.options(), spacing, min_fidelity, how, own,
                    sum(c.circuits * backend.circuits_for(c.template) for stage in stages for c in stage),
                    cost.replicas, plan.seconds, plan.executions,
                    expected_accuracy(net, validation, names, damping, own),
                ))  # fmt: skip
    if not found:
        raise UserError(
            f"--max-qpu-seconds: {count:,} samples take at least {least:.1f} s on {request.device.name}, with "
            f"{FEWEST} shots a circuit; --limit takes fewer samples"
        )
    return found


def _fitted(
    stages: Stages, count: int, most: int, backend: DeviceBackend, shots: list[int], fewest: int, limit: float
) -> tuple[list[int], Forecast] | None:
    """Shots of the stages and their plan within a limit; a few less than estimated, where more jobs are needed."""
    for _ in range(SHORTER):
        plan = forecast(stages, count, largest_batch(stages, count, most, backend, shots), backend, stage_shots=shots)
        if plan.seconds <= limit:
            return shots, plan
        shots = [max(fewest, n - max(1, n // 50)) for n in shots]
    return None


@dataclass
class Cost:
    """QPU seconds of an inference as a function of the shots of its stages."""

    fixed: float  # seconds
    per_shot: list[float]  # seconds of a shot of every circuit of each stage
    fewest: int  # shots that a circuit can have
    replicas: int

    @classmethod
    def of(cls, stages: Stages, count: int, most: int, backend: DeviceBackend) -> Cost:
        templates = {call.template for stage in stages for call in stage}
        measured = [(template, basis) for template in templates for basis in bases(template)]
        bits = [code.bit_length() for _, basis in measured for code in flip_codes(basis)]
        patterns = 2 ** max(bits, default=0) if backend.packer.mitigation == "trex" else 1
        few, many = 4 * patterns, 8 * patterns

        def seconds(*shots: int) -> float:
            batch = largest_batch(stages, count, most, backend, shots)
            return forecast(stages, count, batch, backend, stage_shots=shots).seconds

        base = seconds(*[few] * len(stages))
        slopes = [
            (seconds(*[many if k == place else few for k in range(len(stages))]) - base) / (many - few)
            for place in range(len(stages))
        ]
        replicas = min(len(backend.packer.group(*one).replicas) for one in measured)
        return cls(base - few * sum(slopes), slopes, max(FEWEST, patterns), replicas)

    def most(self, limit: float) -> int:
        """Shots of every circuit that a limit allows."""
        return min(MOST, int((limit - self.fixed) / sum(self.per_shot)))

    def shots_within(self, limit: float, noise: Sequence[float]) -> Iterator[list[int]]:
        """Shots of each stage: equal ones, and as many more where noise matters, in the same time."""
        for shots in dict.fromkeys(int(self.most(limit) * share) for share in SHARES):
            if shots >= self.fewest:
                yield [shots] * len(self.per_shot)
                yield [max(self.fewest, n) for n in allocated(noise, self.per_shot, shots)]

    def seconds(self, shots: Sequence[int]) -> float:
        return self.fixed + sum(n * each for n, each in zip(shots, self.per_shot, strict=True))


Damping = dict[str, tuple[Tensor, float]]  # by layer: factor on each output, and the share of shots that is left


def damping_of(model: nn.Module, backend: DeviceBackend, corrected: bool) -> Damping:
    """What gates and readout make of each layer's values by the calibration.

    Corrected readout damps nothing, and multiplies the deviation by the inverse of its damping.
    """
    found = {}
    for layer in quantum_layers(model):
        damping, by_readout = calibrated_damping(layer.template, backend)
        if corrected:
            damping = damping / by_readout
        share = float((by_readout**2).mean()) if corrected else 1.0
        found[layer.network.tag] = torch.from_numpy(damping).repeat(layer.groups), share
    return found


def expected_accuracy(
    model: nn.Module, samples: Any, names: Sequence[Sequence[str]], damping: Damping, shots: Sequence[int]
) -> float:
    """Accuracy with the noise of shots, and the damping of readout and gates, by their formulas; of equal draws."""

    def make(layer: Any) -> Callable[..., Tensor]:
        tag = layer.network.tag
        factors, share = damping[tag]
        own = [n * share for n, stage in zip(shots, names, strict=True) if tag in stage]
        turns = itertools.cycle([OutputNoise(factors, n, always=True) for n in own])
        return lambda *call: next(turns)(*call)

    remove, right = add_hooks(model, make), list[Tensor]()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(DRAWS):
                logits, labels = logits_of(model, loader(samples, BATCH))
                right.append(logits.argmax(-1) == labels)
    finally:
        remove()
    return torch.stack(right).double().mean().item()


def variations(options: Config, searched: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Changes of a preset's options: the choices of ``searched``, else smaller widths, fewer tokens, fewer layers and
    stages, wider circuits, and a chain for the ansatz."""
    if searched:
        keys = [one.key for one in searched]
        yield from (dict(zip(keys, one, strict=True)) for one in itertools.product(*(d.choices for d in searched)))
        return
    flat = options.flat()
    ways: dict[str, list[dict[str, Any]]] = {
        "tokens": [{}, {"patch": 2 * flat["patch"]}] if options.model.kind == "vit" else [{}],
        "width": [{}, {"hidden": flat["hidden"] // 2, "heads": max(1, flat["heads"] // 2)}],
        "depth": [{}, {"rk": "rk1", "rk_blocks": 1}],
        "circuits": [{}, {"qubits": 2 * flat["qubits"]}, {"layers": 1, "ansatz": "brickwork"}],
    }
    plain = {key: value for key, value in flat.items() if isinstance(value, str | int)}
    seen = list[dict[str, Any]]()
    for parts in itertools.product(*ways.values()):
        change = {key: value for part in parts for key, value in part.items() if plain.get(key) != value}
        if change not in seen:
            seen.append(change)
            yield change


@dataclass
class Candidate:
    """A model that fits the budget, before it is trained."""

    change: dict[str, Any]
    options: Config
    circuits: int  # of one sample
    shots: int  # of each circuit, all that the budget allows


def candidates(
    options: Config, shape: DataShape, count: int, request: Request, searched: Sequence[Any]
) -> list[Candidate]:
    """Models like a preset's that fit the budget with at least :data:`FEWEST` shots a circuit: the preset's own first,
    then those with most circuits a sample. Raises UserError: none does."""
    backend, found, least, reasons = request.backend(), list[Candidate](), float("inf"), list[str]()
    for change in variations(options, searched):
        try:
            own = options.replace(**change)
            own.check_sizes()
            model = build_model(own, shape)
            check_strings(model, "fit-to")
            stages = stages_of(model, shape)
            if not stages:
                raise UserError("no circuits")
            cost = Cost.of(stages, count, samples_in_memory(model, shape), backend)
        except (UserError, ValidationError) as error:  # a width that no circuit divides, circuits too wide
            reasons.append(sentence(error) if isinstance(error, ValidationError) else str(error))
            if searched:
                request.console.print(f"{_words(change)} is left out: {reasons[-1]}", markup=False, soft_wrap=True)
            continue
        least = min(least, cost.seconds([FEWEST] * len(stages)))
        shots = cost.most(request.limit)
        if shots >= FEWEST:
            found.append(Candidate(change, own, sum(c.circuits for stage in stages for c in stage), shots))
    if not found and least == float("inf"):
        named = "--search" if searched else "fit-to"
        raise UserError(f"{named}: no such model can be built for {request.device.name}: {reasons[0]}")
    if not found:
        raise UserError(
            f"--max-qpu-seconds: no model like this one takes {count:,} samples within {request.limit:g} s; the "
            f"smallest takes at least {least:.1f} s (--limit takes fewer samples, --search other models)"
        )
    return sorted(found, key=lambda one: (bool(one.change), -one.circuits * min(1.0, one.shots / 64)))


def _words(change: dict[str, Any]) -> str:
    return " ".join(f"{flag(key)} {value}" for key, value in change.items())


def of_preset(
    name: str, options: Config, request: Request, epochs: int, searched: Sequence[Any], folder: Path
) -> list[Proposal]:
    """Ways to run models like a preset's: each is trained for some epochs, with the noise of the shots it can have.

    Args:
        name, options: of the preset.
        request: device and budget.
        epochs: of each training.
        searched: dimensions of ``tune`` with choices; none for changes of widths, tokens, layers and qubits.
        folder: of the trainings; one that is there already is not repeated.

    Raises UserError: no model fits.
    """
    from qrkt_hw.training import fit  # only here: a run is not trained

    options = options.replace(**({"data_dir": request.data_dir} if request.data_dir else {}))
    data: dict[Any, Data] = {}

    def loaded(own: Config) -> Data:
        key = own.data.model_dump_json()
        if key not in data:
            data[key] = load_data(own.data)
        return data[key]

    there = loaded(options)
    count = request.samples or len(there.splits["test"])  # type: ignore[arg-type]
    chosen = candidates(options, there.shape, count, request, searched)[:TRIED]
    found = list[Proposal]()
    for number, one in enumerate(chosen):
        words = _words(one.change)
        request.console.print(
            f"model {number + 1} of {len(chosen)}: {words or name}, {one.circuits:,} circuits a sample, {one.shots:,} "
            f"shots; {epochs} epochs", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        noisy = {"noise_device": request.fake} if request.fake else {}
        size = len(loaded(one.options).splits["train"])  # type: ignore[arg-type]
        steps = epochs * max(1, size // options.data.batch_size)
        short = {"epochs": epochs, "warmup_steps": min(options.training.warmup_steps, max(1, steps // 10))}
        trial = one.options.replace(**noisy, **short, shot_noise=one.shots)
        place = folder / f"{words.replace('--', '').replace(' ', '-') or name}-{digest(trial.flat(mode='json'))[:8]}"
        run = _known(place) or fit.start(
            trial, place, Console(quiet=True), data=loaded(one.options), preset=name, figures=False
        )
        for proposal in of_run(run, request, words or name):
            proposal.options = one.options.replace(**noisy, shot_noise=round(sum(proposal.shots) / len(proposal.shots)))
            found.append(proposal)
    return found


def _known(place: Path) -> RunFolder | None:
    """The finished run there; None where there is nothing. Raises UserError: it is not finished."""
    if not place.exists():
        return None
    run = RunFolder.open(place)
    if not run.results.is_file():
        raise UserError(f"--trials-dir: {place} is not finished; qrkt-hw train --resume {place}, or remove it")
    return run


def chosen(found: list[Proposal]) -> list[Proposal]:
    """The Pareto front of accuracy and QPU seconds, most accurate first, and below it the best with buffer qubits
    where the front has none: calibrations have no crosstalk."""
    ordered = sorted(found, key=lambda one: (-one.expected, one.seconds))
    front, least = list[Proposal](), float("inf")
    for one in ordered:
        if one.seconds < SAVED * least:
            least, one.front = one.seconds, True
            front.append(one)
    shown = front[:SHOWN]
    apart = next((one for one in ordered if one.spacing), None)
    if apart is not None and not any(one.spacing for one in shown):
        shown.append(apart)
    return shown


def check(shown: Sequence[Proposal], request: Request, count: int) -> str:
    """Evaluate proposals on the fake device with up to ``count`` validation images each; a sentence on what was."""
    fake = request.fake
    if fake is None or not count:
        return "not checked on a fake device" + ("" if fake else f": there is none of {request.device.name}")
    read: dict[Path, Any] = {}  # validation samples by run
    for one in shown:
        keys = {"spacing": one.spacing, "min_fidelity": one.min_fidelity, "mitigation": one.mitigation}
        backend = request.backend(fake, **keys, shots=max(one.shots))
        if one.run.path not in read:
            read[one.run.path] = first(read_splits(one.run, request.data_dir)["validation"], count)
        model, samples = restored(one.run), read[one.run.path]
        set_backend(model, Watched(backend, False, one.shots))
        started, right = time.process_time(), list[Tensor]()
        for inputs, labels in loader(samples, 20):
            right.append(logits_of(model, [(inputs, labels)])[0].argmax(-1) == labels)
            if time.process_time() - started > CHECKED / len(shown):
                break
        set_backend(model, ExactBackend("exact"))
        good = torch.cat(right)
        one.checked = {"accuracy": good.double().mean().item(), "count": len(good),
                       "interval": wilson(int(good.sum()), len(good))}  # fmt: skip
    counts = [one.checked["count"] for one in shown]
    numbers = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"checked on {fake} with the first {numbers} validation samples"


def write_config(one: Proposal, request: Request, file: Path, source: str, trained: bool) -> list[str]:
    """Write a proposal for ``train`` and ``infer --config``; the lines that say how to use it."""
    inference = {"backend": request.device.name, **one.keys}
    place = shlex.quote(str(file))
    infer = f"--config {place} --max-qpu-seconds {request.limit:g}" + (
        f" --limit {request.samples}" if request.samples else ""
    )
    lines = [f"qrkt-hw infer {'RUN' if trained else shlex.quote(str(one.run.path))} {infer}"]
    values: dict[str, Any] = {"inference": inference}
    if trained:
        lines.insert(0, f"qrkt-hw train --config {place} --out RUN")
        plain, own = Config().flat(mode="json"), one.options.flat(mode="json")
        changed = {key: value for key, value in own.items() if plain.get(key) != value}
        values = {**changed, **values}
    head = [f"# {source}", f"# expected accuracy {one.expected:.3f}, {one.seconds:.1f} QPU seconds"]
    text = yaml.safe_dump(values, sort_keys=False)
    write_text(file, "\n".join([*head, *(f"# {line}" for line in lines), text]))
    return lines
