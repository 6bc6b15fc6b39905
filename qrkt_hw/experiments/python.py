"""Training and runs from Python: ``qrkt_hw.train(...)`` and :class:`Run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from qrkt_hw import backends
from qrkt_hw.backends import Backend, Budget
from qrkt_hw.backends.device.packing import DeviceBackend
from qrkt_hw.backends.exact import ExactBackend
from qrkt_hw.backends.several import Devices
from qrkt_hw.data import Data
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.images import labels_of, own
from qrkt_hw.data.text import own as own_texts
from qrkt_hw.errors import UserError, flag
from qrkt_hw.experiments import presets
from qrkt_hw.experiments.comparison import read_history
from qrkt_hw.experiments.devices import compare_mitigations, fine_tuned, plan_mitigations, shots_of_stages
from qrkt_hw.experiments.inference import classify, infer_split
from qrkt_hw.experiments.loading import Inputs, list_models, load, read_paths, read_split, read_splits, shipped
from qrkt_hw.models.ablation import REPLACEMENTS
from qrkt_hw.models.noise import check_strings
from qrkt_hw.runs import RunFolder, newest
from qrkt_hw.runs.config import Config, flattened, problem, unused
from qrkt_hw.runs.folder import named, read_json
from qrkt_hw.runs.sections import OWN, RANKS
from qrkt_hw.training import fit

AfterEpoch = Callable[[int, dict[str, float]], None]


class Run:
    """A run folder in Python.

    Args:
        run: its folder or name; None takes the newest under ``runs/``.
        trust: import the Python file that an old run without kept circuits names as its ansatz.
        backbone: the module that the run was trained with, where there was one.
    """

    def __init__(
        self, run: str | Path | RunFolder | None = None, *, trust: bool = False, backbone: nn.Module | None = None
    ) -> None:
        found = run if isinstance(run, RunFolder) else RunFolder.open(Path(run) if run else newest(), trust)
        self.folder, self.path, self.backbone = found, found.path, backbone

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """All options."""
        return self.folder.options()

    @property
    def state(self) -> str:
        """``finished``, or how many of its epochs are trained."""
        return str(self.folder.summary()["state"])

    @property
    def results(self) -> dict[str, Any]:
        """One flat row of figures, ``test.accuracy`` and so on, with ``run`` and the options that were not defaults:
        ``pandas.DataFrame([run.results for run in runs])`` is a table of runs."""
        if not self.folder.results.is_file():
            raise UserError(f"run: {self.path} is not finished; resume with: qrkt-hw train --resume {self.path}")
        options, plain = self.config.flat(mode="json"), Config().flat(mode="json")
        chosen = {f"config.{key}": value for key, value in options.items() if plain.get(key) != value}
        return {"run": str(self.path), **_flat(read_json(self.folder.results)), **chosen}

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, one for each epoch."""
        return read_history(self.folder)

    @cached_property
    def model(self) -> nn.Module:
        """The trained model on the exact simulator, as :func:`qrkt_hw.load` gives it."""
        return self.load()

    def load(self, backend: str | Backend = "exact") -> nn.Module:
        """The trained model on a backend."""
        return load(self.folder, backend, backbone=self.backbone)

    def infer(
        self,
        inputs: Any = None,
        *,
        split: str = "test",
        limit: int | None = None,
        data_dir: Path | None = None,
        backend: str | Backend = "exact",
        shots_per_stage: Sequence[int] | Literal["auto"] | None = None,
        fine_tune: int | None = None,
        repeat_uncertain: int | None = None,
        compare_mitigation: bool = False,
        value_errors: bool = False,
        ablate: Sequence[str] = (),
        **device: Any,
    ) -> dict[str, Any]:
        """Metrics on a split or a dataset, or classes and probabilities of inputs; the record is kept in the run.

        Args:
            inputs: a torch dataset of ``(raw input, label)`` gives metrics; image files, folders, raw images or texts
                (one or a list) give classes; None takes ``split``.
            split: ``test`` or ``validation``, of the data set that the run was trained on.
            limit: only the first samples of the split.
            data_dir: folder of the data set; default: the run's.
            backend: where the circuits run, by name or as an object.
            shots_per_stage: of each sequential stage; ``"auto"`` takes the time of the backend's shots, and gives more
                to stages where noise matters.
            fine_tune: fit all but the circuits' angles to what the backend returns for so many training images.
            repeat_uncertain: of a split or dataset: evaluate so many samples, the most uncertain ones, twice.
            compare_mitigation: of a split: value error, accuracy and QPU seconds of every way of mitigation instead.
            value_errors: of a split or dataset: also the errors of every layer's values.
            ablate: of a split or dataset: also the accuracy with circuits replaced by ``batch-mean`` or ``sine``.
            device: keys of the backend, such as ``shots`` or ``mitigation``; readout is corrected only by these.

        Raises:
            UserError: what cannot be read, an argument that would have no effect, or a device that bills: ``qrkt-hw
                infer`` plans, limits and journals.
        """
        value_errors = bool(device.pop("report", value_errors))  # the name of earlier versions
        if limit is not None and limit < 1:
            raise UserError(f"limit: {limit}; give the number of samples from 1 on, or leave it out for all")
        of_split = {"limit": limit is not None, "data_dir": data_dir is not None, "split": split != "test"}
        idle = next((key for key, given in of_split.items() if given and inputs is not None), None)
        if idle is not None:
            raise UserError(f"{idle}: it goes with a split, and inputs are all taken; leave it out")
        asked = {"shots_per_stage": shots_per_stage, "fine_tune": fine_tune, "repeat_uncertain": repeat_uncertain,
                 "compare_mitigation": compare_mitigation, "value_errors": value_errors,
                 "ablate": list(ablate)}  # fmt: skip
        if compare_mitigation:
            self._alone("compare_mitigation", "compares all ways on a split", asked, inputs, "mitigation" in device)
        elif inputs is not None and not isinstance(inputs, Dataset) and (value_errors or ablate):
            raise UserError(
                f"{'value_errors' if value_errors else 'ablate'}: inputs without labels have no accuracy; leave it out"
            )
        elif inputs is not None and not isinstance(inputs, Dataset) and repeat_uncertain is not None:
            raise UserError("repeat_uncertain: it goes with a split or a dataset; leave it out")
        numbers = None
        if shots_per_stage is not None and shots_per_stage != "auto":
            listed = isinstance(shots_per_stage, Sequence) and not isinstance(shots_per_stage, str)
            numbers = [n for n in shots_per_stage if isinstance(n, int) and n >= 1] if listed else []
            if not numbers or len(numbers) != len(shots_per_stage):
                raise UserError(f"shots_per_stage: {shots_per_stage!r}; give 'auto', or a number from 1 on for each")
            if "shots" in device:
                raise UserError("shots: shots_per_stage has the shots of every stage; leave one of them out")
            device = {"shots": sum(numbers) // len(numbers), **device} if isinstance(backend, str) else device
        place = self._backend(backend, device)
        of_one = ("shots_per_stage", "repeat_uncertain", "fine_tune", "compare_mitigation")
        one = next((key for key in of_one if asked[key]), None)
        sampled = one == "fine_tune" or (place.shots and place.target is not None)
        if one is not None and (isinstance(place, Devices) or not sampled):
            raise UserError(f"{one}: it is for one device that samples, and backend is {place.name!r}; name one")
        of_other = next((key for key in ("fine_tune", "value_errors") if asked[key]), None)
        if of_other is not None and isinstance(place, ExactBackend):
            raise UserError(f"{of_other}: {place.name!r} gives exact values, with which others are compared; name one")
        odd = next((name for name in ablate if name not in REPLACEMENTS), None)
        if odd is not None:
            raise UserError(f"ablate: no replacement {odd!r}; there are {', '.join(REPLACEMENTS)}")
        stage_shots = list[int]()
        if shots_per_stage is not None:
            stage_shots, _ = shots_of_stages(self.folder, place, numbers, data_dir)
        model = load(self.folder, place, backbone=self.backbone)
        if compare_mitigation:
            samples = read_split(self.folder, split, limit, data_dir)
            shape = DataShape.of(self.folder.description())
            ways = plan_mitigations(model, shape, len(samples), cast(DeviceBackend, place), None)
            return compare_mitigations(self.folder, model, split, samples, cast(DeviceBackend, place), ways, QUIET)
        tuned = None
        if fine_tune is not None:
            check_strings(model, "fine_tune")
            splits = read_splits(self.folder, data_dir)
            if not 0 < fine_tune <= len(splits["train"]):
                raise UserError(f"fine_tune: {fine_tune:,}, and the training split has {len(splits['train']):,} images")
            tuned = fine_tuned(self.folder, model, place, fine_tune, splits, QUIET, stage_shots)
        if inputs is not None and not isinstance(inputs, Dataset):
            return classify(self.folder, model, self._inputs(model, inputs), place, stage_shots, tuned)
        if inputs is None:
            name, part = split, read_split(self.folder, split, limit, data_dir)
        else:
            name, part = "dataset", _Raw(inputs, labels_of(inputs, "inputs"), model)
        if repeat_uncertain is not None and not 0 < repeat_uncertain <= len(part):
            raise UserError(f"repeat_uncertain: {repeat_uncertain:,}, and there are {len(part):,} samples")
        more: Any = (ablate, None, value_errors, stage_shots, tuned, repeat_uncertain or 0)
        return infer_split(self.folder, model, name, part, place, *more)

    def _alone(self, name: str, what: str, asked: dict[str, Any], inputs: Any, mitigation: bool) -> None:
        """Refuse what would change nothing beside the argument ``name``."""
        others = {**asked, "inputs": inputs is not None, "mitigation": mitigation}
        idle = next((key for key, value in others.items() if value and key != name), None)
        if idle is not None:
            raise UserError(f"{idle}: {name} {what}; leave it out")

    def _inputs(self, model: Any, inputs: Any) -> Inputs:
        texts = self.config.model.kind == "text"
        several = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if several and all(isinstance(one, Path) or (isinstance(one, str) and not texts) for one in several):
            return read_paths(self.folder, [Path(one) for one in several])
        samples = model.preprocess(inputs)
        names = several if texts else [str(k) for k in range(len(samples))]
        return Inputs("texts" if texts else "images", samples, names, [[] for _ in names])

    def _backend(self, backend: str | Backend, device: dict[str, Any]) -> Backend:
        if isinstance(backend, Backend):
            if device:
                raise UserError(f"{next(iter(device))}: backend is an object, which has its own; leave it out")
            return backend
        if backend == "exact" and not device:
            return ExactBackend("exact")
        found = backends.make(checked({"backend": backend}, device).backend, self.config.training.seed, QUIET, True)
        if found.bills:
            how = f"qrkt-hw infer {self.path} --backend {backend}"
            raise UserError(f"backend: {backend!r} bills its time; plan, limit and journal it by {how}")
        return found


class _Raw(Dataset[Any]):
    """Batches of a user's dataset of raw inputs, as a model reads them."""

    def __init__(self, dataset: Any, labels: Any, model: Any) -> None:
        self.dataset, self.labels, self.read = dataset, labels, model.preprocess
        highest = int(labels.max())
        if highest >= len(model.class_names):
            raise UserError(f"inputs: label {highest} found; the model has {len(model.class_names)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, places: list[int]) -> tuple[Tensor, Tensor]:
        return self.read([self.dataset[k][0] for k in places]), torch.from_numpy(self.labels[places])


QUIET = Console(quiet=True)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def checked(base: Mapping[str, Any], keys: Mapping[str, Any]) -> Config:
    try:
        config = Config(**{**flattened(dict(base)), **flattened(dict(keys))})
    except ValidationError as error:
        key, text = problem(error)
        raise UserError(text if text.startswith("--") else f"{flag(key)}: {text}" if key else text) from error
    except ValueError as error:
        raise UserError(f"config: {error}") from error
    reason = unused(config, flattened(dict(keys)))
    if reason is not None:
        raise UserError(reason)
    return config


def train(
    config: Config | Mapping[str, Any] | str | None = None,
    *,
    train: Dataset[Any] | None = None,
    validation: Dataset[Any] | None = None,
    test: Dataset[Any] | None = None,
    class_names: Sequence[str] | None = None,
    backbone: nn.Module | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    start_from: str | Path | Run | None = None,
    resume: str | Path | Run | None = None,
    budget: Budget | None = None,
    progress: bool = False,
    after_epoch: AfterEpoch | None = None,
    figures: bool = True,
    **keys: Any,
) -> Run:
    """Train a model and return its run, as ``qrkt-hw train`` does. No file is read but what the arguments name.

    Args:
        config: options: a :class:`~qrkt_hw.runs.config.Config`, a dict (flat or nested), or the name of a preset.
        train, validation, test: map-style torch datasets of ``(input, label)`` instead of a data set by its name: float
            tensors as they are, uint8 ones normalised by the training part; str for ``model="text"``. Without ``test``
            a tenth of ``train`` becomes it, without ``validation`` a tenth of the rest.
        class_names: of their labels; default: ``train.classes``, or numbers.
        backbone: a module between inputs and transformer, trained with it (set ``requires_grad`` to False to freeze
            it): its features are ``(batch, channels, side, side)``, ``(batch, tokens, channels)`` with a square number
            of tokens, or ``(batch, channels)``. A copy is trained. ``patch`` is 1 unless given.
        out, name: the run's folder, or its name under ``runs/``.
        start_from: a run, or the name of a trained model of :func:`list_models`, whose options and weights this one
            starts from (fine-tuning).
        resume: a run to resume; only ``epochs``, ``devices``, ``num_nodes`` and ``strategy`` may be given beside
            it, and what was given in Python before.
        budget: limits of QPU time and money on a device.
        progress: show progress on standard error.
        after_epoch: is called with number and metrics of every epoch that is kept.
        figures: draw charts into the run's folder.
        keys: options by their names, over ``config``: ``train(dataset="mnist", epochs=3)``.

    Raises:
        UserError: one sentence on the argument that is wrong.
    """
    console = Console(stderr=True, quiet=not progress)
    if resume is not None:
        others = {"config": config, "out": out, "name": name, "start_from": start_from}
        more = next((key for key, value in others.items() if value is not None), None) or next(
            (key for key in keys if key not in ("epochs", "backend", *RANKS)), None
        )
        if more is not None:
            raise UserError(f"resume uses the run's own options; leave out {more}")
        return _resume(
            resume, keys, console, budget, after_epoch, figures, train, validation, test, class_names, backbone
        )
    source = None
    if start_from is not None:
        if start_from in list_models(pretrained=True) and not Path(str(start_from)).is_dir():
            start_from = shipped(str(start_from))
        source = start_from.folder if isinstance(start_from, Run) else RunFolder.open(Path(start_from))
    base: Mapping[str, Any] = {} if source is None else source.options().flat()
    if isinstance(config, str):
        base = {**base, **flattened(presets.load(config))}
    elif isinstance(config, Config):
        base = config.flat()
    elif config is not None:
        if not isinstance(config, Mapping):
            raise UserError(f"config is a {type(config).__name__}, not a Config, a dict, or the name of a preset")
        keys = {**flattened(dict(config)), **keys}
    if name is not None and out is not None:
        raise UserError("name: out names the folder already; leave one of them out")
    data = None
    if train is not None:
        both = {**base, **keys}
        given = (
            {"patch": 1} if backbone is not None and "patch" not in both and both.get("model", "vit") == "vit" else {}
        )
        base, keys = {**base, **given}, {key: value for key, value in keys.items() if key != "dataset"}
        options = checked({**base, "dataset": OWN}, keys)
        data = _own(options, source, train, validation, test, class_names, backbone)
    else:
        for what, value in {"validation": validation, "test": test, "backbone": backbone}.items():
            if value is not None:
                raise UserError(f"{what}: it goes with train, a torch dataset")
        options = checked(base, keys)
    if source is not None:
        theirs = source.options()
        options = options.with_circuits(lambda: theirs.circuits)
    elif isinstance(config, Config):
        options = options.with_circuits(config._circuits)
    place = named(name) if name is not None else Path(out) if out is not None else None
    preset = config if isinstance(config, str) else None
    run = fit.start(options, place, console, after_epoch, data, budget, source, preset, figures)
    return Run(run, backbone=backbone)


def _own(
    options: Config, source: RunFolder | None, train: Any, validation: Any, test: Any, names: Sequence[str] | None,
    backbone: nn.Module | None,
) -> Data:  # fmt: skip
    kind = options.model.kind
    if kind == "text" and backbone is None:
        vocabulary = source.description().get("vocabulary", ()) if source is not None else ()
        return own_texts(options.data, vocabulary, train, validation, test, names)
    if kind != "vit":
        what = "torch datasets train a vit or a text model" if backbone is None else "a backbone goes before a vit"
        raise UserError(f"--model: {what}, not {kind}")
    return own(options.data, train, validation, test, names, backbone)


def _resume(
    resume: str | Path | Run,
    keys: dict[str, Any],
    console: Console,
    budget: Budget | None,
    after_epoch: Any,
    figures: bool,
    *parts: Any,
) -> Run:
    folder = resume.folder if isinstance(resume, Run) else RunFolder.open(Path(resume))
    options = folder.options()
    if options.data.dataset == OWN and parts[0] is None:
        raise UserError(f"train: {folder.path} was trained on a torch dataset; give it again")
    if parts[0] is None and any(part is not None for part in parts):
        raise UserError(f"train: {folder.path} takes no other datasets or backbone; leave them out")
    data = _own(options, folder, *parts) if parts[0] is not None else None
    fit.resume(
        folder, console, budget=budget, agreed=keys.get("backend"), epochs=keys.get("epochs"), data=data,
        after_epoch=after_epoch, ranks_of={key: keys[key] for key in RANKS if key in keys}, figures=figures,
    )  # fmt: skip
    return Run(folder, backbone=parts[-1])
