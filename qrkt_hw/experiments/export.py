"""Trained models for others: their bound circuits as OpenQASM 3 or QPY, and as a model of the Hugging Face Hub."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError
from pydantic import ValidationError
from qiskit import QuantumCircuit, qasm3, qpy
from qiskit.circuit import Parameter
from torch import Tensor, nn

import qrkt_hw
from qrkt_hw.backends import Backend
from qrkt_hw.circuits import names
from qrkt_hw.data import DataShape
from qrkt_hw.data.images import evaluating
from qrkt_hw.errors import UserError, sentence
from qrkt_hw.experiments.loading import Predictor, Reader, list_models, restored, shipped, trained
from qrkt_hw.models.factory import DTYPES, build_model, count_parameters, quantum_layers
from qrkt_hw.models.weights import load_weights, save_weights
from qrkt_hw.nn.quantum import QuantumLayer, QuantumProjection
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import replace_with, write_json, write_text
from qrkt_hw.runs.circuits import Circuits, Index
from qrkt_hw.runs.config import Config, of_kept
from qrkt_hw.runs.folder import check_description, read_json
from qrkt_hw.runs.sections import ANSATZ_KEYS
from qrkt_hw.simulator.analysis import cones

DRAWN = 80  # most gates of a circuit that the model card shows
FORMATS = ("qasm3", "qpy", "hf")
RULE = (
    "Input: y = input_scale * x (null is 1). Group g reads features g*n to (g+1)*n - 1 of y, n = len(inputs), as its "
    "parameters in the order of inputs. Its expectation values, one for each observable, follow those of group g-1. "
    "Output: scale * values + bias. The rightmost letter of a Pauli string is qubit 0. Where encoding is not angle, "
    "n = len(inputs) + 1, the inputs are spherical angles of the features (qrkt_hw.ansatz.unary_angles), and the "
    "values are multiplied by the norm of the features."
)
KEPT_RESULTS = (
    "test", "validation", "parameters", "qubits", "seed", "best_epoch", "train_seconds", "backend", "weights_sha256",
)  # fmt: skip


def bound(layer: QuantumLayer, group: int) -> QuantumCircuit:
    """The circuit of a group with its trained angles; its inputs are the parameters ``x_0``, ``x_1`` and so on."""
    template = layer.template
    weights = layer.weight.detach().double().reshape(layer.groups, template.num_weights)[group].tolist()
    values: dict[Any, Any] = {p: Parameter(f"x_{k}") for k, p in enumerate(template.inputs)}
    circuit = template.circuit.assign_parameters({**values, **dict(zip(template.weights, weights, strict=True))})
    circuit.name = f"{layer.network.tag.removesuffix('.layer')}.group-{group}"
    circuit.metadata = {}
    return circuit


def export_circuits(run: RunFolder, out: Path, form: str) -> int:
    """Write every bound circuit of a trained model and ``circuits.json``, which says how to use them; returns their
    number. ``qasm3``: one file for each; ``qpy``: all in ``circuits.qpy``, in the order of ``circuits.json``.

    Raises:
        UserError: a model without circuits, one that is not trained, or a gate that the format has no words for.
    """
    model = restored(run)
    layers = quantum_layers(model)
    if not layers:
        raise UserError(f"run: {run.path} has no circuits to export; --format hf takes its weights")
    projections = {id(m.layer): m for m in model.modules() if isinstance(m, QuantumProjection)}
    circuits, rows = list[QuantumCircuit](), list[dict[str, Any]]()
    for layer in layers:
        found = [bound(layer, group) for group in range(layer.groups)]
        circuits += found
        template, projection = layer.template, projections.get(id(layer))
        rows.append({
            "projection": layer.network.tag.removesuffix(".layer"),
            "features": layer.features, "groups": layer.groups, "qubits": template.num_qubits,
            "ansatz": template.name, "encoding": template.encoding,
            "inputs": [f"x_{k}" for k in range(template.num_inputs)],
            "observables": [[(word, float(c.real)) for word, c in o.to_list()] for o in template.observables],
            **{name: _list(getattr(projection, name, None)) for name in ("input_scale", "scale", "bias")},
            "circuits": [circuit.name for circuit in found],
        })  # fmt: skip
    index = {
        "format": 1, "program": f"qrkt-hw {qrkt_hw.__version__}", "circuit_format": form,
        "weights_sha256": run.weights_sha256(),
        "rule": RULE,
        "projections": rows,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    if form == "qpy":

        def write(file: Path) -> None:
            with file.open("wb") as handle:
                qpy.dump(circuits, handle)

        replace_with(out / "circuits.qpy", write)
    else:
        for circuit in circuits:
            try:
                text = qasm3.dumps(circuit)
            except qasm3.QASM3ExporterError as error:
                why = f"{circuit.name} has no form in OpenQASM 3 ({error})"
                raise UserError(f"--format: {why}; take --format qpy") from error
            write_text(out / f"{circuit.name}.qasm", text)
    write_json(out / "circuits.json", index)
    return len(circuits)


def _list(value: Tensor | None) -> list[float] | None:
    return None if value is None else value.detach().double().tolist()


class QViT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="qrkt-hw",
    tags=["quantum-machine-learning", "qiskit", "vision-transformer"],
):
    """A classifier of a run, for images or texts, as a model of the Hugging Face Hub.

    ``QViT.from_pretrained(folder or hub id)``, ``QViT.of_run(run)``, ``save_pretrained(folder)``, ``push_to_hub(id)``.
    ``forward`` takes what ``preprocess`` gives, to logits ``(batch, classes)``; ``predict`` takes raw images or texts
    to ``class_names``. A folder holds ``config.json`` (options, data, circuits as QPY, measured figures),
    ``model.safetensors`` and a model card; no Python code.

    Args:
        options: of the run, as its ``config.yaml`` holds them.
        data: what its ``data.json`` holds.
        circuits: the templates as data; None builds registered ones.
        results: measured figures of the run.
        backend: where the circuits run.
    """

    def __init__(
        self,
        options: dict[str, Any],
        data: dict[str, Any],
        circuits: dict[str, Any] | None = None,
        results: dict[str, Any] | None = None,
        backend: str | Backend = "exact",
    ) -> None:
        super().__init__()
        try:
            config = of_kept(options)
        except ValidationError as error:
            raise UserError(f"config.json is damaged: {sentence(error)}") from error
        if not isinstance(data, dict) or not isinstance(results or {}, dict):
            raise UserError("config.json is damaged: data and results must be objects")
        if config.model.kind == "gan" or data.get("backbone"):
            raise UserError("run: a GAN, or a model with a backbone of your own, is no QViT")
        check_description(data, "config.json is damaged")
        own = [ansatz for ansatz in config.circuit.ansaetze if ansatz not in names()]
        if circuits is None and config.has_circuits and own:
            raise UserError(f"config.json is damaged: it lacks the circuits of {own[0]!r}")
        kept = Circuits(config.circuit.ansaetze, begun=True) if circuits is None else _restored(config, circuits)
        self.config = config.with_circuits(lambda: kept)
        self.transformer = build_model(self.config, DataShape.of(data), backend)
        self._kept, self.data, self.results = kept, data, results or {}
        self.class_names = tuple(data["class_names"])
        self.preprocess = Reader(config, data)
        self.predict = Predictor(self.transformer, self.preprocess, self.class_names)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(batch, classes)``."""
        return self.transformer(inputs)

    @torch.no_grad()
    def predict_proba(self, raw: Any) -> Tensor:
        """Probabilities ``(batch, classes)`` of raw images or texts."""
        weight = next(self.parameters())
        with evaluating(self):
            return self(self.preprocess(raw).to(weight.device)).softmax(-1)

    @classmethod
    def of_run(cls, run: str | Path | RunFolder, backend: str | Backend = "exact") -> QViT:
        """The trained model of a run."""
        folder = run if isinstance(run, RunFolder) else RunFolder.open(Path(run))
        options, description = folder.options(), folder.description()
        if options.model.kind == "gan":
            raise UserError(f"run: {folder.path} is a GAN, which classifies nothing; export its circuits")
        found = read_json(folder.results) if folder.results.is_file() else {}
        kept = options.circuits.again()
        # the circuits that it asks for are kept
        source = trained(folder, build_model(options.with_circuits(lambda: kept), DataShape.of(description)))
        # no path or account of this machine goes out, nor the source of an ansatz
        short = kept.publish()
        dataset = options.data.dataset
        dataset = f"folder:{Path(dataset.partition(':')[2]).name}" if dataset.startswith("folder:") else dataset
        private = {"data_dir": None, "backends_file": None, "instance": None, "download": False}
        named = {key: getattr(options.circuit, key) for key in ANSATZ_KEYS}
        private |= {key: short.get(name) for key, name in named.items()}
        public = options.replace(dataset=dataset, **private)
        results = {key: found[key] for key in KEPT_RESULTS if key in found}
        about = {**description, "dataset": dataset}
        model = cls(public.model_dump(mode="json"), about, _data(kept), results, backend)
        model.transformer.load_state_dict(source.state_dict())
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> QViT:  # type: ignore[override]
        """The model of a folder, of a hub id, or of a name of ``qrkt_hw.list_models(pretrained=True)``."""
        name = str(pretrained_model_name_or_path)
        backend = kwargs.pop("backend", "exact")  # never what a config.json says: it may be billed
        if Path(name).is_dir():
            read_json(Path(name) / "config.json")
        elif name in list_models(pretrained=True):
            device = kwargs.pop("map_location", "cpu")
            if kwargs:
                raise UserError(f"{next(iter(kwargs))}: {name!r} comes with the package; leave it out")
            return cls.of_run(shipped(name), backend).to(device)
        try:
            return super().from_pretrained(name, backend=backend, **kwargs)
        except HFValidationError as error:
            raise UserError(f"no folder {name}, and it is no id of the Hugging Face Hub") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"config.json of {name} is damaged: it is not JSON") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        found, right = next(self.parameters()).dtype, DTYPES[self.config.circuit.dtype].to_real()
        if found != right:
            raise UserError(f"the weights are {found}, and this model is loaded as {right}: take model.to({right})")
        save_weights(self.state_dict(), save_directory / "model.safetensors", self.results.get("best_epoch", 0))
        content = {
            "model_type": "qrkt-hw", "architectures": [type(self).__name__],
            "options": self.config.model_dump(mode="json"), "data": self.data, "circuits": _data(self._kept),
            "results": self.results,
        }  # fmt: skip
        write_json(save_directory / "config.json", content)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **kwargs: Any
    ) -> QViT:
        asked = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        hub = {key: kwargs.pop(key) for key in asked if key in kwargs}
        for key in ("model_type", "architectures"):
            kwargs.pop(key, None)
        file = Path(model_id) / "model.safetensors"
        if not Path(model_id).is_dir():
            file = Path(hf_hub_download(repo_id=model_id, filename="model.safetensors", **hub))
        if not {"options", "data"} <= set(kwargs):
            raise UserError(f"{model_id} is no model of qrkt-hw: its config.json lacks options and data")
        model = cls(**kwargs)
        load_weights(model, file)
        return model.to(map_location).eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card with the measured figures, the circuits, and what their outputs can depend on."""
        return ModelCard(self._card())

    def _card(self) -> str:
        data, found, config = self.data, self.results, self.config
        test, count = _figures(found, "test"), count_parameters(self)
        text = config.model.kind == "text"
        head = ["---", "library_name: qrkt-hw", f"pipeline_tag: {'text' if text else 'image'}-classification",
                "tags:", "- quantum-machine-learning", "- qiskit", "- pytorch_model_hub_mixin", "---"]  # fmt: skip
        lines = [*head, "", f"# A quantum transformer for {data['dataset']}", "",
                 f"Classifies {'texts' if text else 'images'} into {len(self.class_names)} classes. "
                 f"{count['total']:,} parameters, {count['quantum']:,} of them angles of circuits."]  # fmt: skip
        if test:
            lines += ["", "## Measured", "", "| split | accuracy | macro F1 | AUROC | loss |", "|---|---|---|---|---|"]
            for split in ("test", "validation"):
                row = _figures(found, split)
                figures = [row.get(key) for key in ("accuracy", "f1", "auroc", "loss")]
                shown = [f"{value:.4f}" if isinstance(value, (int, float)) else "-" for value in figures]
                lines.append(f"| {split} | {' | '.join(shown)} |")
            trained = (
                f"Seed {found.get('seed')}, {config.training.epochs} epochs, circuits on `{found.get('backend')}`."
            )
            lines += ["", f"{trained} The epoch was chosen on validation. One seed: no spread is given."]
        lines += ["", "## Circuits", "", *self._statements(), "", "## Use", "", "```python",
                  "import qrkt_hw", "", 'model = qrkt_hw.QViT.from_pretrained("THIS FOLDER OR ITS HUB ID")',
                  "names = model.predict(raw)            # raw " + ("texts" if text else "images, arrays or files"),
                  "logits = model(model.preprocess(raw))", "```", ""]  # fmt: skip
        return "\n".join(lines)

    def _statements(self) -> list[str]:
        templates = dict.fromkeys(layer.template for layer in quantum_layers(self))
        if not templates:
            return ["None: every projection is a linear layer."]
        lines = []
        for template in sorted(templates, key=lambda one: one.num_qubits):
            found = cones(template)
            most = max(len(cone.inputs) for cone in found)
            every = (
                "each output depends on one input only, so a layer is an element-wise function"
                if most == 1
                else (f"an output depends on at most {most} of {template.num_features} inputs (light cone)")
            )
            lines.append(f"- `{template.name}` on {template.num_qubits} qubits: {every}.")
            if len(template.circuit.data) <= DRAWN:
                lines += ["", "```text", str(template.circuit.draw("text", fold=100)), "```", ""]
        simulated = "Circuits of so few qubits are simulated exactly on a laptop; no quantum advantage is claimed."
        return [*lines, "", simulated]


def _figures(results: dict[str, Any], split: str) -> dict[str, Any]:
    found = results.get(split)
    return found if isinstance(found, dict) else {}


def _data(circuits: Circuits) -> dict[str, Any] | None:
    found = list((circuits.asked or circuits.kept or {}).values())
    if not found:
        return None
    files = {k.description.file: base64.b64encode(k.data).decode("ascii") for k in found}
    return {"index": Index.of(circuits, found), "files": files}


def _restored(config: Config, circuits: dict[str, Any]) -> Circuits:
    try:
        index = Index.model_validate(circuits["index"])
        kept = index.kept(lambda one: base64.b64decode(circuits["files"][one.file], validate=True))
        for one in kept.values():
            _ = one.template
    except (ValidationError, KeyError, TypeError, ValueError, binascii.Error) as error:
        said = sentence(error) if isinstance(error, ValidationError) else error
        raise UserError(f"config.json is damaged: its circuits ({said})") from error
    ansaetze = config.circuit.ansaetze
    if index.ansatz != ansaetze[0] or not set(index.names()) <= set(ansaetze):
        named, there = (", ".join(map(repr, found)) for found in (ansaetze, index.names()))
        raise UserError(f"config.json is damaged: circuits of {there}, options of {named}")
    return Circuits(ansaetze, Path("config.json"), kept=kept, sources=index.all_sources())


def export(run: RunFolder, form: str, out: Path | None = None) -> tuple[Path, str]:
    """Export a trained model into a folder; returns it and what it holds in a few words.

    Raises:
        UserError: see :func:`export_circuits`; a GAN as ``hf``; a folder that holds something else already.
    """
    place = out or run.path / "export" / form
    if place.exists() and (not place.is_dir() or any(place.iterdir())) and not _is_export(place, form):
        raise UserError(f"--out: {place} exists already and holds something else; name another folder")
    try:
        if form != "hf":
            return place, f"{export_circuits(run, place, form)} circuits"
        model = QViT.of_run(run)
        (place / "README.md").unlink(missing_ok=True)
        model.save_pretrained(place)
        return place, "config.json, model.safetensors, README.md"
    except OSError as error:
        raise UserError(f"--out: {place} cannot be written: {error.strerror}") from error


def _is_export(place: Path, form: str) -> bool:
    """Whether a folder holds an earlier export of this form, which may be replaced."""
    mark = place / ("config.json" if form == "hf" else "circuits.json")
    try:
        found = read_json(mark) if mark.is_file() else {}
    except UserError:
        return False
    return found.get("model_type") == "qrkt-hw" if form == "hf" else found.get("circuit_format") == form
