"""``qrkt-hw bench``: one command for a user's circuit, resumed after a kill; and structured baselines."""

import itertools
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qrkt_hw import circuits, train
from qrkt_hw.commands import main
from qrkt_hw.experiments import bench
from qrkt_hw.models.ablation import BLOCKS, ELEMENTWISE, SAME, StructuredLayer, structure
from qrkt_hw.nn.quantum import QuantumLayer
from qrkt_hw.training import loop
from tests.acceptance.killing import after
from tests.acceptance.test_wrong_use import qrkt
from tests.command_line import refused

pytestmark = pytest.mark.acceptance
PAGE = (Path(__file__).parents[2] / "docs" / "laboratory.md").read_text()
MINE = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def waves" in block)
TINY = {"epochs": 2, "limit": 32, "batch_size": 16, "hidden": 4, "heads": 1, "mlp": 4, "rk_blocks": 1}
LINE = ("bench", "--quick", "--tasks", "parity-2,mnist", "--seeds", 2, "--ansatz", "mine.py:waves", "--out", "out")


def small(patch) -> None:
    """A suite of one tiny task and one circuit of ours."""
    patch.setitem(bench.TASKS, "parity-2", replace(bench.TASKS["parity-2"], quick=TINY))
    patch.setattr(bench, "OURS", {"orthogonal_brick": bench.OURS["orthogonal_brick"]})


def killed(folder: Path) -> None:
    """Run the bench, and die when the first epoch of the second training is kept."""
    os.chdir(folder)
    small(pytest.MonkeyPatch())
    after(loop, "_keep", 3)
    main([str(word) for word in LINE])


@pytest.mark.timeout(120)
def test_a_killed_bench_resumes_and_ranks_a_users_circuit(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    child = multiprocessing.get_context("forkserver").Process(target=killed, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    first = tmp_path / "out" / "parity-2" / "waves" / "lr-0.02"
    assert (first / "seed-0" / "results.json").is_file() and (first / "seed-1" / "last.ckpt").is_file()
    assert not (first / "seed-1" / "results.json").exists()
    before = (first / "seed-0" / "results.json").read_bytes()

    small(monkeypatch)
    done = qrkt(*LINE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (first / "seed-0" / "results.json").read_bytes() == before
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    rows = {row["model"]: row for row in record["rows"]}
    assert list(rows) == ["waves", "orthogonal_brick", "linear", "linear, matched", "element-wise"]
    for row in rows.values():
        values = row["accuracies"]
        assert len(values) == 2 and row["accuracy"] == pytest.approx(np.mean(values))
        assert row["standard_error"] == pytest.approx(np.std(values, ddof=1) / 2**0.5)
        assert row["cpu_seconds"] > 0 and (row["angles"] > 0) == (row["model"] in record["circuits"])
    assert rows["linear"]["angles"] == 0 and "waves" in done.stdout and "identical by construction" in done.stdout
    assert "mnist" in record["skipped"] and "huggingface.co" in record["skipped"]["mnist"]
    assert abs(rows["linear, matched"]["parameters"] - rows["waves"]["parameters"]) < 10
    assert "| parity-2 | waves |" in (tmp_path / "out" / "bench.md").read_text()
    assert (tmp_path / "out" / "bench.png").stat().st_size > 1000

    again = qrkt(*LINE, "--json", cwd=tmp_path)  # trains nothing
    assert json.loads(again.stdout)["rows"] == record["rows"]
    (tmp_path / "mine.py").write_text(MINE.replace("circuit.rz", "circuit.rx"))
    circuits.build.cache_clear()
    refused(qrkt(*LINE, cwd=tmp_path), "--ansatz", "has changed", "--out")


def test_a_wrong_line_is_one_sentence(tmp_path):
    refused(qrkt("bench", "--tasks", "digits,nope", cwd=tmp_path), "--tasks", "nope", "parity-6")
    refused(qrkt("bench", "--quick", "--layers", 3, cwd=tmp_path), "--layers", "--ansatz")
    refused(qrkt("bench", "--quick", "--data-dir", "here", cwd=tmp_path), "--data-dir", "reads files")
    refused(qrkt("bench", "--tasks", "parity,digits", "--download", cwd=tmp_path), "--download", "reads files")
    refused(qrkt("bench", "--quick", "--ansatz", "no_such", cwd=tmp_path), "--ansatz", "no_such", "brickwork")
    refused(qrkt("bench", "--ansatz", "a.py:f", "--ansatz", "b.py:f", cwd=tmp_path), "--ansatz", "called f")
    refused(qrkt("bench", "--ansatz", "a.py:linear", cwd=tmp_path), "--ansatz", "called linear")
    refused(qrkt("bench", "--ansatz", "a.py:qrkt", cwd=tmp_path), "--ansatz", "called qrkt")
    refused(qrkt("bench", "--quick", "--ansatz", "orthogonal_brick", "--qubits", 1, cwd=tmp_path), "2 features")
    assert not list(tmp_path.glob("bench/*"))


@pytest.mark.parametrize("order", range(2, 7))
def test_parity_is_of_hidden_bits_and_no_string_is_in_two_parts(order):
    parts = bench.parity(order)
    texts = [text for part in parts for text, _ in part]
    assert len(set(texts)) == len(texts) == sum(map(len, parts))
    bits = np.array([[int(word[1]) for word in text.split()] for text in texts])
    labels = np.array([label for part in parts for _, label in part])
    fitting = [
        hidden
        for size in range(1, 7)
        for hidden in itertools.combinations(range(bench.BITS), size)
        if (bits[:, hidden].sum(axis=1) % 2 == labels).all()
    ]
    assert len(fitting) == 1 and len(fitting[0]) == order
    assert [word[0] for word in texts[0].split()] == list("abcdefghijkl")


def test_the_words_of_a_sequence_do_not_tell_which_comes_first():
    parts = bench.first_of_two()
    assert len({text for part in parts for text, _ in part}) == sum(map(len, parts))
    for text, label in itertools.chain(*parts):
        words = text.split()
        assert label == (words.index("y") < words.index("x")) and len(words) == bench.BITS
    labels = [label for _, label in parts[2]]
    assert 0.45 < np.mean(labels) < 0.55


def test_the_structured_layer_is_what_it_says():
    x = torch.randn(5, 3, 8)
    for name, layers in (("orthogonal_brick", 4), ("orthogonal_butterfly", 2), ("orthogonal_pyramid", 1)):
        template = circuits.build(name, 4, layers)
        quantum, classical = QuantumLayer(8, template), StructuredLayer(8, template)
        assert classical.structure.kind == SAME and "identical" in classical.structure.difference
        classical.load_state_dict({"weight": quantum.weight.detach().reshape(classical.weight.shape)})
        torch.testing.assert_close(classical(x), quantum(x), atol=1e-6, rtol=1e-5)
        found = [torch.autograd.grad(layer(x).square().sum() + layer(x).sum(), layer.weight)[0].flatten()
                 for layer in (quantum, classical)]  # fmt: skip
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    for name in ("brickwork", "qrkt", "ry_rz_ring"):
        template = circuits.build(name, 4, 2)
        layer = StructuredLayer(8, template)
        assert layer.structure.kind == BLOCKS and layer.weight.shape == (2, 4, 4)
        jacobian = torch.autograd.functional.jacobian(layer, x[0, 0])
        assert (jacobian[:4, 4:] == 0).all() and (jacobian[:4, :4] != 0).all()


def test_element_wise_circuits_are_found(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    template = circuits.build(f"{tmp_path / 'mine.py'}:waves", 4, 3)
    assert structure(template).kind == ELEMENTWISE and structure(template).parameters == 24
    layer = StructuredLayer(8, template)
    x = torch.randn(8)
    torch.testing.assert_close(layer(x), x.sin())
    layer.weight.data.normal_()
    jacobian = torch.autograd.functional.jacobian(layer, x)
    assert (jacobian * (1 - torch.eye(8)) == 0).all() and (jacobian.diag() != 0).all()


def test_a_baseline_of_the_same_structure(tmp_path):
    small = {"hidden": 4, "heads": 1, "mlp": 4, "rk": "rk1", "rk_blocks": 1, "epochs": 1, "limit": 64}
    train(small, ansatz="orthogonal_brick", out=tmp_path / "run", figures=False)
    done = qrkt("baseline", "run", "--trials", 1, cwd=tmp_path)
    record = json.loads((tmp_path / "run-baseline" / "baselines.json").read_text())
    assert done.returncode == 0 and "identical by construction" in done.stdout and "structured" not in record["sides"]
    run = train(small, ansatz="brickwork", structured=True, out=tmp_path / "structured", figures=False)
    assert run.results["parameters.quantum"] == run.results["qubits"] == 0
    refused(qrkt("train", "--structured", "--shots", 5, cwd=tmp_path), "--shots", "--structured")
    refused(qrkt("train", "--structured", "--projection", "classical", cwd=tmp_path), "--structured")
