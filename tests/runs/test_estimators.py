"""The estimators keep scikit-learn's contracts, and what they train is a run like any other."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import qrkt_hw
from qrkt_hw import QuantumTextClassifier, QViTClassifier, UserError

SMALL = {"epochs": 1, "hidden": 8, "heads": 2, "mlp": 4, "qubits": 2, "rk_blocks": 1, "rk": "rk1", "dropout": 0.0}
CHECKED = {**SMALL, "epochs": 8, "batch_size": 32, "learning_rate": 0.05, "weight_decay": 0.0}
# takes many fits, or hundreds of samples; the slow test has them all
LONG = (
    "check_classifiers_train", "check_classifiers_classes", "check_classifier_data_not_an_array",
    "check_fit_idempotent",
    "check_estimators_dtypes", "check_pipeline_consistency", "check_estimators_nan_inf", "check_supervised_y_2d",
    "check_methods_subset_invariance", "check_methods_sample_order_invariance", "check_estimators_pickle",
    "check_positive_only_tag_during_fit", "check_fit_score_takes_y", "check_estimators_overwrite_params",
    "check_dont_overwrite_parameters", "check_estimators_fit_returns_self", "check_readonly_memmap_input",
    "check_f_contiguous_array_estimator", "check_fit_check_is_fitted", "check_n_features_in", "check_dtype_object",
    "check_n_features_in_after_fitting",
)  # fmt: skip
TEXTS = ["a good film", "a bad film", "good good acting", "bad script and bad acting"] * 6
TONES = np.array(["pos", "neg", "pos", "neg"] * 6)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    kept = labels < 3
    return images[kept][:40], np.array(["zero", "one", "two"])[labels[kept][:40]]


@pytest.fixture(scope="module")
def fitted(digits):
    return QViTClassifier(random_state=3, **SMALL).fit(*digits)


@pytest.fixture(scope="module")
def reader():
    return QuantumTextClassifier(random_state=0, text_length=8, **{**SMALL, "epochs": 8}, batch_size=4).fit(
        TEXTS, TONES
    )


def test_the_short_checks_of_scikit_learn():
    for estimator, check in estimator_checks_generator(QViTClassifier(**{**CHECKED, "epochs": 1})):
        if getattr(check, "func", check).__name__ not in (*LONG, "check_array_api_input"):
            check(estimator)


@pytest.mark.slow
def test_all_checks_of_scikit_learn_pass():
    found = check_estimator(QViTClassifier(**CHECKED), on_fail=None, on_skip=None)
    assert [one["check_name"] for one in found if one["status"] == "failed"] == []
    # it needs an environment variable of SciPy
    assert [one["check_name"] for one in found if one["status"] == "skipped"] == ["check_array_api_input"]
    assert len(found) > 50


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_scikit_learn_has_one_check_for_texts():
    assert [one["status"] for one in check_estimator(QuantumTextClassifier())] == ["passed"]


@pytest.mark.parametrize("kind", [QViTClassifier, QuantumTextClassifier])
def test_arguments_are_options_with_their_defaults(kind):
    model = "text" if kind is QuantumTextClassifier else "vit"
    defaults, given = qrkt_hw.Config(model=model).flat(), kind().get_params()
    shared = {key for key in given if key in defaults} - {"patch"}
    assert len(shared) >= 15
    assert {key: given[key] for key in shared} == {key: defaults[key] for key in shared}
    assert clone(kind(epochs=3)).epochs == 3 and kind().set_params(rk="rk4").rk == "rk4"


def test_a_seed_gives_the_same_bits_in_any_form_of_images(digits, fitted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    X, y = digits
    torch.manual_seed(5)
    expected, drawn = fitted.predict_proba(X), torch.rand(3)
    torch.manual_seed(5)
    again = clone(fitted).fit(X.reshape(-1, 8, 8), y)
    assert torch.equal(torch.rand(3), drawn)  # torch's own random numbers stay as they are
    np.testing.assert_array_equal(again.predict_proba(X.reshape(-1, 8, 8)), expected)
    colour = clone(fitted).fit(X.reshape(-1, 1, 8, 8), y)
    np.testing.assert_array_equal(colour.predict_proba(X.reshape(-1, 1, 8, 8)), expected)
    assert list(tmp_path.iterdir()) == []
    other = clone(fitted).set_params(random_state=np.random.RandomState(4)).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), expected)


def test_labels_of_any_type_come_back(digits, fitted):
    X, y = digits
    assert list(fitted.classes_) == ["one", "two", "zero"] and set(fitted.predict(X)) <= set(y)
    assert fitted.score(X, y) == (fitted.predict(X) == y).mean()
    np.testing.assert_allclose(fitted.predict_proba(X).sum(1), 1)
    for labels in (y == "one", np.where(y == "one", -3, 7)):
        found = clone(fitted).fit(X, labels)
        assert found.predict(X).dtype == labels.dtype and set(found.classes_) == set(labels)


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy], ids=["pickle", "copy"])
def test_a_fitted_estimator_travels(copied, digits, fitted, reader):
    np.testing.assert_array_equal(copied(fitted).predict_proba(digits[0]), fitted.predict_proba(digits[0]))
    np.testing.assert_array_equal(copied(reader).predict_proba(TEXTS), reader.predict_proba(TEXTS))
    copied(QViTClassifier())


def test_joblib_keeps_it(fitted, digits, tmp_path):
    joblib.dump(fitted, tmp_path / "it")
    np.testing.assert_array_equal(joblib.load(tmp_path / "it").predict(digits[0]), fitted.predict(digits[0]))


def test_threads_give_what_one_after_another_gives(digits):
    X, y = digits
    machine = make_pipeline(StandardScaler(), QViTClassifier(random_state=0, **SMALL))
    alone = cross_val_predict(machine, X, y, cv=2, method="predict_proba")
    with joblib.parallel_backend("threading"):
        together = cross_val_predict(machine, X, y, cv=2, method="predict_proba", n_jobs=2)
    np.testing.assert_array_equal(alone, together)


def test_a_grid_search_over_a_pipeline(digits):
    machine = make_pipeline(StandardScaler(), QViTClassifier(random_state=0, **SMALL))
    grid = {"qvitclassifier__projection": ["quantum", "classical"]}
    found = GridSearchCV(machine, grid, cv=2, error_score="raise").fit(*digits)
    assert found.best_estimator_.predict(digits[0]).shape == (40,)


@pytest.mark.slow
def test_processes_give_what_one_after_another_gives(digits):
    machine = QViTClassifier(random_state=0, **SMALL)
    scores = [cross_val_score(machine, *digits, cv=3, n_jobs=jobs) for jobs in (1, 2)]
    np.testing.assert_array_equal(*scores)


def test_it_learns():
    images, labels = load_digits(return_X_y=True)
    machine = QViTClassifier(random_state=0, rk_blocks=1, rk="rk1", epochs=4).fit(images[:500], labels[:500])
    assert machine.score(images[1200:], labels[1200:]) > 0.7
    assert machine.model_.config.model.patch == 4


def test_from_an_estimator_to_a_device(charts, digits, fitted, tmp_path):
    X, y = digits
    run = fitted.save(tmp_path / "run")
    assert run.config.training.seed == 3 and run.model.class_names == ("one", "two", "zero")
    inputs = fitted.inputs(X)
    with torch.no_grad():
        expected = run.model(inputs).double().softmax(-1)
    np.testing.assert_array_equal(expected, fitted.predict_proba(X))
    classes = [one["class"] for one in run.infer(inputs)["images"]]
    assert classes == list(fitted.predict(X))
    with pytest.raises(AttributeError, match="save"):
        _ = fitted.run_
    with pytest.raises(UserError, match="exists already"):
        fitted.save(tmp_path / "run")
    kept = clone(fitted).set_params(folder=tmp_path / "kept").fit(X, y)
    assert kept.run_.state == "finished" and (tmp_path / "kept" / "plots").is_dir()
    with pytest.raises(ValueError, match="folder: "):
        kept.fit(X, y)


@pytest.mark.slow
def test_it_runs_on_another_backend(digits, tmp_path):
    X, y = digits
    machine = QViTClassifier(random_state=0, backend="fake_torino", **{**SMALL, "hidden": 4}, options={"shots": 0})
    assert machine.fit(X[:12], y[:12]).model_.blocks[0].fields[0].attention.query.layer.backend.name == "fake_torino"
    assert machine.predict(X[:3]).shape == (3,)
    run = machine.save(tmp_path / "run")
    assert len(run.infer(machine.inputs(X[:2]), backend="fake_torino", shots=100)["images"]) == 2


def test_texts(reader, tmp_path):
    assert list(reader.classes_) == ["neg", "pos"] and reader.score(TEXTS, TONES) > 0.9
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS})
    for same in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object)[:, None], frame, frame["text"], iter(TEXTS)):
        np.testing.assert_array_equal(reader.predict_proba(same), reader.predict_proba(TEXTS))
    assert cross_val_score(QuantumTextClassifier(**SMALL), TEXTS, TONES, cv=2).shape == (2,)
    run = reader.save(tmp_path / "run")
    assert [one["class"] for one in run.infer(TEXTS[:2])["texts"]] == list(reader.predict(TEXTS[:2]))


@pytest.mark.parametrize(
    "X", [["a", None], [], "a film", {"a": 1}, {"a"}, [["a", "b"]], 3, np.array([["a", "b"]]), [1.0]]
)
def test_what_is_no_list_of_texts_is_refused(reader, X):
    with pytest.raises(ValueError, match="X"):
        reader.predict(X)
    with pytest.raises(ValueError):
        QuantumTextClassifier().fit(X, ["a", "b"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"rk": "rk9"}, "rk is 'rk9'"),
        ({"qubits": 3}, "qubits"),
        ({"ansatz": "nothing"}, "nothing"),
        ({"batch_size": "many"}, "batch_size"),
        ({"patch": 3}, "patch"),
        ({"validation_fraction": 1}, "validation_fraction"),
        ({"image_shape": (1, 4, 4)}, "image_shape"),
        ({"image_shape": 64}, "image_shape"),
        ({"options": "augment"}, "no dict of options"),
        ({"options": {"epochs": 3}}, "an argument of its own"),
        ({"options": {"dataset": "mnist"}}, "decided by the estimator"),
        ({"options": {"hiden": 3}}, "hiden"),
        ({"options": {"text_length": 3}}, "text_length"),
        ({"backend": "nothing"}, "no backend"),
        ({"random_state": -1}, "seed"),
    ],
)
def test_wrong_arguments_are_one_sentence(digits, changed, words):
    with pytest.raises(ValueError, match=words) as found:
        QViTClassifier(**{**SMALL, **changed}).fit(*digits)
    assert "\n" not in str(found.value) and "--" not in str(found.value)


def test_wrong_images_are_refused(digits, fitted):
    X, y = digits
    machine = clone(fitted)
    with pytest.raises(NotFittedError):
        machine.predict(X)
    with pytest.raises(NotFittedError):
        machine.save("nowhere")
    for wrong, words in (
        (np.zeros((40, 4, 6)), "samples of shape"),
        (np.zeros((40, 8, 8, 3)), "samples of shape"),
        (np.where(X.max() == X, np.nan, X), "NaN"),
        (X[:0], "0 sample"),
        (np.zeros((40, 0, 0)), "samples of shape"),
        (X * 1e300, "too large"),
        (scipy.sparse.csr_array(X), "[Ss]parse"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            machine.fit(wrong, y[: wrong.shape[0]])
    with pytest.raises(ValueError, match="one class"):
        machine.fit(X, np.zeros(40))
    with pytest.raises((ValueError, TypeError)):
        machine.fit(X, [1, "a"] * 20)
    with pytest.raises(ValueError, match="64 features"):
        fitted.predict(X[:, :49])
    with pytest.raises(ValueError, match="fit saw"):
        fitted.predict(np.zeros((2, 64, 64)))
    with pytest.raises(ValueError, match="too large"):
        fitted.predict(np.full((2, 64), 1e300))


def test_a_frame_has_names_and_rows_become_colour_images(digits):
    pandas = pytest.importorskip("pandas")
    X, y = digits
    frame = pandas.DataFrame(X, columns=[f"p{k}" for k in range(64)])
    machine = QViTClassifier(random_state=0, **SMALL).fit(frame, pandas.Series(y))
    assert machine.feature_names_in_[0] == "p0" and machine.predict(frame).shape == (40,)
    rows = np.random.default_rng(0).random((20, 48))
    both = [QViTClassifier(random_state=0, **SMALL, image_shape=shape) for shape in ((3, 4, 4), None)]
    images = both[0].fit(rows, np.arange(20) % 2), both[1].fit(rows.reshape(20, 3, 4, 4), np.arange(20) % 2)
    np.testing.assert_array_equal(images[0].predict_proba(rows), images[1].predict_proba(rows.reshape(20, 3, 4, 4)))
    assert images[0].inputs(rows).shape == (20, 3, 4, 4) and both[0].model_.config.model.patch == 2


def test_validation_of_all_samples_and_few_of_a_class():
    rows, labels = np.random.default_rng(0).random((7, 4)), [0, 0, 0, 0, 0, 1, 2]
    for fraction in (0.0, 0.4):
        machine = QViTClassifier(random_state=0, validation_fraction=fraction, **SMALL)
        assert machine.fit(rows, labels).predict_proba(rows).shape == (7, 3)
