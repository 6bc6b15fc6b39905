"""Classifiers of images and texts as scikit-learn's estimators, over :func:`qrkt_hw.train`."""

from __future__ import annotations

import math
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from pathlib import Path
from types import NoneType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import Dataset

from qrkt_hw import backends
from qrkt_hw.data.base import Indices, stratified
from qrkt_hw.errors import UserError
from qrkt_hw.experiments.python import QUIET, Run, checked, train
from qrkt_hw.runs.config import Config
from qrkt_hw.runs.sections import OWN

LARGEST_PATCH = 7  # pixels along a side, where none is given
WARMUP = 100  # most steps of warm-up, of a tenth of all
BATCH = 256  # samples of a forward pass
_ARGUMENTS = ("validation_fraction", "image_shape", "options", "folder", "random_state", "verbose")  # no options
_DECIDED = ("model", "dataset", "data_dir", "download", "image_size", "seed", "name")  # options that are decided here
_FILES = ("*.json", "*.yaml", "*.csv", "model.safetensors", "circuits/*")  # of a run, which an estimator keeps
_LARGE = "X holds values too large to be normalised in float32; scale it"
_TRAINING = threading.Lock()  # a training draws from torch's one generator, which all threads share


class _Samples(Dataset[Any]):
    """Some inputs with their labels, map-style."""

    def __init__(self, inputs: Any, labels: Indices, index: Indices) -> None:
        self.inputs, self.index, self.targets = inputs, index, labels[index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, k: int) -> tuple[Any, int]:
        return self.inputs[self.index[k]], int(self.targets[k])


class _Classifier(ClassifierMixin, BaseEstimator, ABC):
    """What both classifiers share."""

    model_: nn.Module

    def _train(self, inputs: Any, y: Any, **decided: Any) -> Self:
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]}; a classifier needs at least two")
        given = {key: value for key, value in self.get_params(deep=False).items() if key not in _ARGUMENTS}
        held, rest = stratified(labels, self._held_out(len(labels)))
        parts = _Samples(inputs, labels, rest), _Samples(inputs, labels, held if len(held) else rest)
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        with _TRAINING, torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
            try:
                config = self._options({**given, "dataset": OWN, "seed": int(seed), **decided}, len(rest))
                place = Path(scratch) / "run" if self.folder is None else Path(self.folder)
                run = train(
                    config, train=parts[0], validation=parts[1], test=parts[1], out=place,
                    class_names=list(map(str, self.classes_)), figures=self.folder is not None, progress=self.verbose,
                )  # fmt: skip
            except UserError as error:  # scikit-learn's kind
                text = str(error)
                if text.startswith("out: "):
                    text = f"folder{text[3:].partition(', or resume')[0]}"
                raise ValueError(text) from error
            kept = [file for pattern in _FILES for file in run.path.glob(pattern)]
            self._files = {str(file.relative_to(run.path)): file.read_bytes() for file in kept}
            self._path = None if self.folder is None else run.path
            self.history_ = run.history
            self.model_ = _loaded(run)
        return self

    def _held_out(self, samples: int) -> int:
        fraction = self.validation_fraction
        if not (isinstance(fraction, (int, float, np.floating)) and 0 <= fraction < 1):
            raise ValueError(f"validation_fraction is {fraction!r}; it must be at least 0 and less than 1")
        return min(round(samples * float(fraction)), samples - 1)

    def _options(self, given: dict[str, Any], samples: int) -> Config:
        if not isinstance(self.options, (Mapping, NoneType)):
            raise UserError(f"options: {self.options!r} is no dict of options by name")
        more = dict(self.options or {})
        twice = next((key for key in more if key in given or key in _DECIDED), None)
        if twice is not None:
            own = twice in self.get_params(deep=False)
            raise UserError(f"options: {twice} is {'an argument of its own' if own else 'decided by the estimator'}")
        try:  # without a size that is no number, which the configuration refuses below
            steps = given["epochs"] * math.ceil(samples / given["batch_size"])
        except (TypeError, ZeroDivisionError):
            steps = 0
        config = checked({**given, "warmup_steps": min(WARMUP, steps // 10)}, more)
        place = backends.make(config.backend, config.training.seed, QUIET)
        if place.bills:
            raise UserError(f"backend: {place.name!r} bills its time; fit on a simulator, and take save(folder) there")
        return config

    def _probabilities(self, inputs: Any) -> NDArray[np.float64]:
        weight, found = next(self.model_.parameters()), []
        with torch.no_grad():
            for k in range(0, len(inputs), BATCH):
                batch: Tensor = inputs[k : k + BATCH]
                batch = batch.to(weight.dtype) if batch.is_floating_point() else batch
                found.append(self.model_(batch).double().softmax(-1))
        return torch.cat(found).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sample."""
        found = self.predict_proba(X).argmax(1)
        return self.classes_[found]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities ``(samples, classes)``, in the order of ``classes_``."""
        return self._probabilities(self.inputs(X))

    @abstractmethod
    def inputs(self, X: Any) -> Tensor:
        """What ``model_`` reads of these samples. Raises ValueError: samples that ``fit`` would not take."""

    @property
    def run_(self) -> Run:
        """The run that ``folder`` holds."""
        check_is_fitted(self)
        if self._path is None:
            raise AttributeError("run_: fit kept no folder; save(folder) writes one and returns its run")
        return Run(self._path)

    def save(self, folder: str | Path) -> Run:
        """Write the trained model as a run, for ``qrkt_hw.Run`` and for the commands.

        Raises:
            UserError: the folder holds something already, or cannot be written.
        """
        check_is_fitted(self)
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise UserError(f"folder: {place} exists already; name another")
        try:
            self._write(place)
        except OSError as error:
            raise UserError(f"folder: {place} cannot be written: {error.strerror}") from error
        return Run(place)

    def _write(self, place: Path) -> None:
        for name, data in self._files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "model_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
                self._write(Path(scratch))
                self.model_ = _loaded(Run(scratch))


def _loaded(run: Run) -> nn.Module:
    options = run.config
    return run.load(backends.make(options.backend, options.training.seed, QUIET))


class QViTClassifier(_Classifier):
    """A quantum vision transformer as a scikit-learn classifier.

    ``X`` is ``(samples, height, width)``, ``(samples, channels, height, width)`` with square images, or ``(samples,
    features)``. Features are read row by row as a square image of one channel, padded with zeros to the next square
    number. Pixels are normalised by the mean and deviation of each channel in ``fit``.

    Arguments not listed are options of :class:`qrkt_hw.Config`, with its defaults.

    Args:
        patch: pixels along a side of a patch; None takes the largest divisor of the side below it, up to 7.
        image_shape: ``(channels, side, side)`` of the rows of a two-dimensional ``X``.
        validation_fraction: of the samples, which choose the best epoch; with 0, all of them train and choose it.
        options: other options by name. ``warmup_steps`` is a tenth of all steps unless given, and at most 100.
        folder: keep the run there; None keeps none.
        random_state: seed; None draws one.
        verbose: show progress on standard error.

    Attributes:
        classes_, n_features_in_: as scikit-learn has them.
        model_: the trained model, as :func:`qrkt_hw.load` gives it; it reads ``inputs(X)``.
        history_: a row of metrics for each epoch.
        run_: the run in ``folder``; ``save(folder)`` writes one later.
    """

    def __init__(
        self,
        *,
        ansatz: str = "ry_rz_ring",
        qubits: int = 4,
        layers: int = 1,
        projection: str = "quantum",
        hidden: int = 32,
        heads: int = 4,
        mlp: int = 16,
        patch: int | None = None,
        encoder_blocks: int = 0,
        rk_blocks: int = 3,
        rk: str = "rk2",
        dropout: float = 0.1,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 0.02,
        weight_decay: float = 0.1,
        backend: str = "exact",
        image_shape: tuple[int, int, int] | None = None,
        validation_fraction: float = 0.1,
        options: dict[str, Any] | None = None,
        folder: str | Path | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.ansatz, self.qubits, self.layers, self.projection = ansatz, qubits, layers, projection
        self.hidden, self.heads, self.mlp, self.patch = hidden, heads, mlp, patch
        self.encoder_blocks, self.rk_blocks, self.rk, self.dropout = encoder_blocks, rk_blocks, rk, dropout
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.weight_decay, self.backend, self.image_shape = weight_decay, backend, image_shape
        self.validation_fraction, self.options, self.folder = validation_fraction, options, folder
        self.random_state, self.verbose = random_state, verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on images and their labels."""
        _check_labels(y)
        X, y = validate_data(self, X, y, allow_nd=True, ensure_min_samples=2)
        images = self._images(X)
        axes = (0, 2, 3)
        with np.errstate(over="ignore", invalid="ignore"):
            self.shape_, self.mean_, self.scale_ = X.shape[1:], images.mean(axes), images.std(axes)
        if not np.isfinite(self.scale_).all():
            raise ValueError(_LARGE)
        self.scale_[self.scale_ == 0] = 1.0
        inputs = self._normalised(images, X.shape[1:])
        side = inputs.shape[-1]
        divisors = [k for k in range(1, min(LARGEST_PATCH, side - 1) + 1) if side % k == 0]
        return self._train(inputs, y, model="vit", patch=self.patch or max(divisors, default=1))

    def inputs(self, X: Any) -> Tensor:
        """What ``model_`` reads of these images: normalised, ``(samples, channels, side, side)``."""
        check_is_fitted(self)
        X = validate_data(self, X, allow_nd=True, reset=False)
        if X.shape[1:] != self.shape_:
            raise ValueError(f"X has samples of shape {X.shape[1:]}; fit saw {self.shape_}")
        return self._normalised(self._images(X), self.shape_)

    def _images(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Pixels ``(samples, channels, height, width)``; features are one row."""
        X = X.astype(np.float64)
        if self.image_shape is not None and X.ndim == 2:
            whole = isinstance(self.image_shape, (tuple, list)) and len(self.image_shape) == 3
            if not whole or math.prod(self.image_shape) != X.shape[1]:
                raise ValueError(
                    f"image_shape is {self.image_shape}, not (channels, side, side) of {X.shape[1]} features"
                )
            X = X.reshape(len(X), *self.image_shape)
        found = X[:, None, None, :] if X.ndim == 2 else X[:, None] if X.ndim == 3 else X
        if found.ndim != 4 or (X.ndim > 2 and found.shape[2] != found.shape[3]) or not found.size:
            raise ValueError(
                f"X has samples of shape {X.shape[1:]}; give (side, side), (channels, side, side) or features"
            )
        return found

    def _normalised(self, images: NDArray[np.float64], shape: tuple[int, ...]) -> Tensor:
        found = (images - self.mean_[:, None, None]) / self.scale_[:, None, None]
        if len(shape) == 1 and self.image_shape is None:
            side = math.isqrt(shape[0] - 1) + 1
            found = np.pad(found, ((0, 0), (0, 0), (0, 0), (0, side**2 - shape[0]))).reshape(-1, 1, side, side)
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)
        if not np.isfinite(found).all():
            raise ValueError(_LARGE)
        return torch.from_numpy(found)


class QuantumTextClassifier(_Classifier):
    """A quantum transformer for texts as a scikit-learn classifier. ``X`` is an iterable of str.

    Arguments not listed are options of :class:`qrkt_hw.Config`, with its defaults.

    Args:
        validation_fraction, options, folder, random_state, verbose: as of :class:`QViTClassifier`.

    Attributes:
        classes_, model_, history_, run_: as of :class:`QViTClassifier`.
    """

    def __init__(
        self,
        *,
        ansatz: str = "ry_rz_ring",
        qubits: int = 4,
        layers: int = 1,
        projection: str = "quantum",
        hidden: int = 32,
        heads: int = 4,
        mlp: int = 16,
        encoder_blocks: int = 0,
        rk_blocks: int = 3,
        rk: str = "rk2",
        dropout: float = 0.1,
        text_length: int = 512,
        vocabulary: int = 20_000,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 0.02,
        weight_decay: float = 0.1,
        backend: str = "exact",
        validation_fraction: float = 0.1,
        options: dict[str, Any] | None = None,
        folder: str | Path | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.ansatz, self.qubits, self.layers, self.projection = ansatz, qubits, layers, projection
        self.hidden, self.heads, self.mlp = hidden, heads, mlp
        self.encoder_blocks, self.rk_blocks, self.rk, self.dropout = encoder_blocks, rk_blocks, rk, dropout
        self.text_length, self.vocabulary = text_length, vocabulary
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.weight_decay, self.backend = weight_decay, backend
        self.validation_fraction, self.options, self.folder = validation_fraction, options, folder
        self.random_state, self.verbose = random_state, verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on texts and their labels."""
        if y is None:
            raise ValueError("QuantumTextClassifier requires y to be passed, but the target y is None")
        texts = _texts(X)
        _check_labels(y)
        y = column_or_1d(check_array(y, ensure_2d=False, dtype=None, ensure_min_samples=2, input_name="y"), warn=True)
        check_consistent_length(texts, y)
        return self._train(texts, y, model="text")

    def inputs(self, X: Any) -> Tensor:
        """What ``model_`` reads of these texts: token ids ``(samples, longest)``."""
        check_is_fitted(self)
        return self.model_.preprocess(_texts(X))  # type: ignore[operator]


def _check_labels(y: Any) -> None:
    """Refuse strings beside numbers, which NumPy would make strings of."""
    plain = isinstance(y, (list, tuple)) or getattr(y, "dtype", None) == "object"
    if plain and len({isinstance(label, str) for label in y}) > 1:
        raise ValueError("y holds str and other labels; give labels of one type")


def _texts(X: Any) -> list[str]:
    if isinstance(X, (str, bytes, Mapping, Set)):
        raise ValueError(f"X is {type(X).__name__}; give a list of texts")
    if getattr(X, "ndim", 1) == 2:  # one column of a frame
        if X.shape[1] != 1:
            raise ValueError(f"X has {X.shape[1]} columns; give one of texts")
        X = np.asarray(X)[:, 0]
    try:
        texts = list(X)
    except TypeError as error:
        raise ValueError(f"X is {type(X).__name__}; give a list of texts") from error
    if not texts:
        raise ValueError("X holds no texts")
    odd = next((k for k, text in enumerate(texts) if not isinstance(text, str)), None)
    if odd is not None:
        raise ValueError(f"X: sample {odd} is {type(texts[odd]).__name__}, not a text (str)")
    return [str(text) for text in texts]
