"""The thesis' rows: parameter counts, presets, compare, baselines, tune, text."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from rich.console import Console

from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments import baselines, presets
from qrkt_hw.experiments.comparison import grouped, table
from qrkt_hw.models.factory import build_model, count_parameters, summed_qubits
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import Config
from qrkt_hw.training import fit
from tests.acceptance.killing_jobs import finish, start
from tests.acceptance.test_wrong_use import qrkt
from tests.data import writing

pytestmark = pytest.mark.acceptance
THESIS = [name for name in presets.names() if name.startswith("thesis-")]
SHAPES = {"mnist": DataShape(1, 28, 10), "cifar10": DataShape(3, 32, 10), "imdb": DataShape(0, 0, 2, 500, 64)}
PUBLISHED = {
    "thesis-mnist-qrk1": (2872, 114), "thesis-mnist-qrk2": (3088, 195), "thesis-mnist-qrk3": (3304, 276),
    "thesis-mnist-qrk4": (3520, 357), "thesis-mnist-qrk4-enhanced": (3520, 357), "thesis-mnist-rk1": (3472, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_of_the_thesis(name):
    model = build_model(Config(**presets.load(name)), SHAPES["mnist"])
    assert (count_parameters(model)["total"], summed_qubits(model)) == PUBLISHED[name]


def test_a_block_of_96_is_two_norms_and_a_field_of_72():
    block = build_model(Config(**presets.load("thesis-mnist-qrk1")), SHAPES["mnist"]).blocks[0]
    field = block.fields[0]
    norms = sum(p.numel() for m in (field.norm, field.feed_forward_norm) for p in m.parameters())
    assert (norms, sum(p.numel() for p in block.parameters())) == (24, 96)


def small_data(root: Path, dataset: str) -> Path:
    if dataset.startswith("folder:"):
        writing.image_folder(root / dataset.removeprefix("folder:"), {"train": 60, "val": 10})
        return root
    write = {"mnist": writing.mnist, "imdb": writing.imdb, "imagenet": writing.imagenet_parquet}
    return write[dataset](root) if dataset in write else writing.cifar_pickles(root, dataset)


WIDE = [name for name in presets.names() if "gan" in name and "digits" not in name]  # GANs of hundreds of features


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in WIDE else name for name in presets.names()]
)
def test_every_preset_starts_trains_and_infers(name, tmp_path):
    dataset = Config(**presets.load(name)).data.dataset
    more = [] if dataset == "digits" else ["--data-dir", str(small_data(tmp_path, dataset))]
    trained = qrkt(
        "train", "--preset", name, *more, "--epochs", 1, "--limit", 30, "--batch-size", 10, "--out", "run", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    (row,) = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    norms = [float(value) for key, value in row.items() if key.startswith("gradient_norm_")]
    assert norms and all(np.isfinite(norms)) and max(norms) > 0
    if Config(**presets.load(name)).model.kind == "gan":
        drawn = qrkt("generate", "run", "--count", 4, "--grid", "grid.png", cwd=tmp_path)
        assert drawn.returncode == 0 and (tmp_path / "grid.png").is_file(), drawn.stderr
        return
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert int(row["field_evaluations"]) == 30 * results["field_evaluations_per_forward"]
    assert float(row["peak_memory_mb"]) > 50
    inferred = qrkt("infer", "run", "--limit", 5, "--json", cwd=tmp_path)
    assert json.loads(inferred.stdout)["count"] == 5


def test_a_run_is_read_where_the_data_have_moved_to(tmp_path):
    (tmp_path / "here").mkdir()
    data = small_data(tmp_path / "here", "mnist")
    sizes = ["--preset", "thesis-mnist-qrk1", "--epochs", 1, "--limit", 20, "--out", "run"]
    assert qrkt("train", *sizes, "--data-dir", data, cwd=tmp_path).returncode == 0
    before = json.loads(qrkt("infer", "run", "--json", cwd=tmp_path).stdout)
    data.rename(tmp_path / "elsewhere")
    lost = qrkt("infer", "run", cwd=tmp_path)
    assert lost.returncode == 2 and "--data-dir" in lost.stderr.strip().splitlines()[-1]
    after = json.loads(qrkt("infer", "run", "--json", "--data-dir", "elsewhere", cwd=tmp_path).stdout)
    assert after["accuracy"] == before["accuracy"] and after["loss"] == before["loss"]


TEXT = [
    "--hidden",
    8,
    "--heads",
    2,
    "--mlp",
    4,
    "--qubits",
    4,
    "--rk-blocks",
    1,
    "--vocabulary",
    100,
    "--text-length",
    16,
]
FAST = ["--epochs", 8, "--batch-size", 8, "--learning-rate", 0.02, "--warmup-steps", 2]


@pytest.mark.parametrize("projection", ["quantum", "classical"])
def test_text_is_learnt_and_inferred(projection, tmp_path):
    data = ["--dataset", "imdb", "--data-dir", writing.imdb(tmp_path)]
    trained = qrkt("train", *data, *TEXT, *FAST, "--projection", projection, "--out", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    texts = ["--text", "wonderful warm funny", "--text", "dull slow empty", "--text", ""]
    record = json.loads(qrkt("infer", "run", *texts, "--json", cwd=tmp_path).stdout)
    assert [item["class"] for item in record["texts"][:2]] == ["pos", "neg"]
    assert all(np.isfinite(list(item["probabilities"].values())).all() for item in record["texts"])
    refused = qrkt("infer", "run", "--image", "x.png", cwd=tmp_path)
    assert refused.returncode == 2 and "--text" in refused.stderr
    # other reviews to train on, the same to test: the run's own words are what its ids mean
    first = json.loads(qrkt("infer", "run", "--json", cwd=tmp_path).stdout)
    file = tmp_path / "imdb" / "train-00000-of-00001.parquet"
    frame = pandas.read_parquet(file)
    frame["text"] += " slow funny slow funny"
    frame.to_parquet(file)
    again = json.loads(qrkt("infer", "run", "--json", cwd=tmp_path).stdout)
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-6)


@pytest.mark.parametrize("pool", ["mean", "class"])
@pytest.mark.parametrize("projection", ["quantum", "classical"])
def test_padding_changes_nothing(projection, pool):
    torch.manual_seed(0)
    more = {"hidden": 8, "heads": 2, "qubits": 4, "rk_blocks": 1, "encoder_blocks": 1, "decoder_blocks": 1}
    options = Config(model="text", projection=projection, pool=pool, dtype="complex128", **more)
    model = build_model(options, SHAPES["imdb"]).eval()
    ids = torch.randint(1, 500, (3, 7))
    padded = torch.cat([ids, torch.zeros(3, 9, dtype=torch.int64)], dim=1)
    ragged = torch.cat([padded, torch.randint(1, 500, (1, 16))])
    assert torch.allclose(model(ids), model(padded), atol=1e-10)
    assert torch.allclose(model(ids), model(ragged)[:3], atol=1e-10)


TINY = {"epochs": 2, "limit": 100, "rk": "rk1", "rk_blocks": 1, "hidden": 8, "heads": 2, "warmup_steps": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"a": {"seed": 1}, "b": {"seed": 2}, "c": {"projection": "classical"}}
    for name, more in kinds.items():
        fit.start(Config(**{**TINY, **more}), folder / name, Console(quiet=True))
    return folder


def test_compare_averages_seeds_and_draws(runs, tmp_path):
    result = qrkt("compare", *(runs / n for n in "abc"), "--out", tmp_path / "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(row["run"], row["seeds"]) for row in rows] == [("projection=quantum", "2"), ("projection=classical", "1")]
    own = [json.loads((runs / n / "results.json").read_text())["test"]["auroc"] for n in "ab"]
    assert float(rows[0]["auroc"]) == pytest.approx(np.mean(own))
    assert float(rows[0]["auroc_std"]) == pytest.approx(np.std(own, ddof=1))
    assert rows[1]["auroc_std"] == ""
    for name in ("loss.png", "auroc.png", "table.md"):
        assert (tmp_path / "out" / name).stat().st_size > 100


def test_compare_refuses_what_is_not_finished_or_named_twice(runs, tmp_path):
    twice = qrkt("compare", runs / "a", runs / "a", cwd=tmp_path)
    assert twice.returncode == 2 and "twice" in twice.stderr
    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.yaml", "data.json", "metrics.csv"):
        (half / name).write_bytes((runs / "a" / name).read_bytes())
    unfinished = qrkt("compare", runs / "b", half, cwd=tmp_path)
    assert unfinished.returncode == 2 and "--resume" in unfinished.stderr


def test_the_baseline_is_fused_and_of_the_right_size():
    options, shape = Config(), DataShape(1, 8, 10)
    target = count_parameters(build_model(options, shape))["total"]
    matched = count_parameters(build_model(baselines.parameter_matched(options, shape), shape))["total"]
    assert abs(matched - target) <= 0.02 * target
    baseline = build_model(options.without_circuits(), shape)
    for block in baseline.blocks:
        attention = block.fields[0].attention
        assert isinstance(attention.fused, torch.nn.Linear) and attention.fused.out_features == 3 * options.model.hidden
        assert not hasattr(attention, "query")


def test_every_side_is_given_the_same(runs, tmp_path):
    result = qrkt("baseline", runs / "a", "--trials", 2, "--out", "sides", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "sides" / "baselines.json").read_text())
    sides = record["sides"]
    assert list(sides) == list(baselines.SIDES)
    tried = [set(side["validation_auroc_by_rate"]) for side in sides.values()]
    assert tried[0] == tried[1] == tried[2] and len(tried[0]) == 2
    for side in sides.values():
        scores = side["validation_auroc_by_rate"]
        assert scores[str(side["learning_rate"])] == max(scores.values())
        assert RunFolder.open(tmp_path / side["chosen"]).options().training.epochs == 2
    # names of an earlier version are taken, and nothing is trained again
    (tmp_path / "sides" / "size-matched").rename(tmp_path / "sides" / "same-shape")
    again = qrkt("twin", runs / "a", "--trials", 2, "--out", "sides", cwd=tmp_path)
    assert again.returncode == 0 and not (tmp_path / "sides" / "size-matched").exists()
    text = (tmp_path / "sides" / "baselines.json").read_text().replace("same-shape", "size-matched")
    assert json.loads(text) == record
    assert qrkt("twin", runs / "c", cwd=tmp_path).returncode == 2


def tune_line(*more, epochs=2):
    fixed = ["--epochs", epochs, "--limit", 80, "--rk", "rk1", "--rk-blocks", 1, "--heads", 2, "--hidden", 8]
    return [str(a) for a in ("tune", "--search", "learning_rate=log:0.001:0.1", "--search", "mlp=4,8", *fixed, *more)]


@pytest.mark.timeout(120)
def test_tune_ends_where_no_auroc_is_defined(tmp_path):
    images = writing.image_folder(tmp_path / "images", {"train": 8, "test": 4}, size=8)  # of validation one image
    line = tune_line("--trials", 2, "--dataset", f"folder:{images}", "--image-size", 8)
    found = qrkt(*line, cwd=tmp_path)
    assert found.returncode == 2 and "one class" in found.stderr.splitlines()[-1]


def test_tune_goes_on_and_counts_pruned_trials(tmp_path):
    first = qrkt(*tune_line("--trials", 2, "--sampler", "random"), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = qrkt(*tune_line("--trials", 5, "--sampler", "tpe"), cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    rows = list(csv.DictReader((tmp_path / "tuning" / "trials.csv").open()))
    assert sorted(int(row["trial"]) for row in rows) == [0, 1, 2, 3, 4]
    assert (tmp_path / "tuning" / "study.png").stat().st_size > 100
    best = max(float(row["val_auroc"]) for row in rows if row["state"] == "complete")
    recorded = json.loads(
        (Path(rows[0]["run"]) if Path(rows[0]["run"]).is_absolute() else tmp_path / rows[0]["run"])
        .joinpath("results.json")
        .read_text()
    )
    assert recorded["validation"]["auroc"] == pytest.approx(best)
    other = qrkt("tune", "--search", "mlp=4,8", cwd=tmp_path)
    assert other.returncode == 2 and "--study" in other.stderr


def test_a_grid_is_used_up(tmp_path):
    fixed = ["--epochs", "1", "--limit", "40", "--rk", "rk1", "--rk-blocks", "1", "--hidden", "8"]
    search = ["--search", "heads=2,3", "--search", "mlp=4,8"]
    result = qrkt("tune", *search, *fixed, "--sampler", "grid", "--trials", 50, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "tuning" / "trials.csv").open()))
    assert {(r["heads"], r["mlp"], r["state"]) for r in rows} == {
        ("2", "4", "complete"), ("2", "8", "complete"), ("3", "4", "refused"), ("3", "8", "refused")
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_complete_one_study(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    line = tune_line("--trials", 4, "--sampler", "random", "--no-prune", "--storage", url, epochs=1)
    for process, log in [start([*line, "--out", tmp_path / name], tmp_path) for name in ("one", "two")]:
        status, text = finish(process, log)
        assert status == 0, text
    import optuna

    study = optuna.load_study(study_name="qrkt-hw", storage=url)
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    # each may be inside a trial when the other finishes the last
    assert 4 <= len(done) <= 5
    places = {Path(t.user_attrs["run"]).parent.name for t in done}
    assert places == {"one", "two"}


@pytest.mark.parametrize("search", ["nope=1,2", "mlp", "mlp=8:4", "learning_rate=log:0:1", "mlp=4,4", "rk=rk9,rk1"])
def test_a_wrong_search_is_one_sentence(search, tmp_path):
    result = qrkt("tune", "--search", search, cwd=tmp_path)
    assert result.returncode == 2 and "--search" in result.stderr and "Traceback" not in result.stderr


def test_groups_of_one_configuration_have_one_row(runs):
    groups = grouped([RunFolder.open(runs / name) for name in "ab"])
    header, rows = table(groups)
    assert len(rows) == 1 and "±" in rows[0][header.index("accuracy")]
