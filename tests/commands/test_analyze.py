"""``qrkt-hw circuits analyze``."""

import json

import pytest
from click.testing import CliRunner

from qrkt_hw.commands import group
from qrkt_hw.commands.resources import numbers
from qrkt_hw.errors import UserError


def test_analyze_prints_every_size_and_draws(tmp_path):
    plot = tmp_path / "a.png"
    arguments = [
        "circuits",
        "analyze",
        "qrkt",
        "--qubits",
        "2,3",
        "--layers",
        "1-2",
        "--pairs",
        "200",
        "--samples",
        "20",
    ]
    result = CliRunner().invoke(group, [*arguments, "--plot", str(plot), "--json"], catch_exceptions=False)
    rows = json.loads(result.stdout)["rows"]
    assert [(r["qubits"], r["layers"]) for r in rows] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert all(0 <= r["entangling"] <= 1 and r["expressibility"] > 0 and r["gradient_variance"] > 0 for r in rows)
    assert all(0 <= r["signal"] <= r["signal_conditioned"] + 1e-3 < 1 for r in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_default_ansatz_at_one_layer_passes_no_small_signal():
    found = {}
    for name in ("ry_rz_ring", "brickwork"):
        arguments = ["circuits", "analyze", name, "--pairs", "50", "--samples", "5", "--json"]
        (row,) = json.loads(CliRunner().invoke(group, arguments, catch_exceptions=False).stdout)["rows"]
        found[name] = row["signal"], row["signal_conditioned"]
    assert max(found["ry_rz_ring"]) < 0.001
    assert 0.05 < found["brickwork"][0] < 0.3 and found["brickwork"][1] > 0.55


def test_lists_of_numbers():
    assert numbers("--qubits", "2,4-6") == [2, 4, 5, 6]
    for wrong in ("", "0", "a", "4-2", "2,,3"):
        with pytest.raises(UserError, match="qubits"):
            numbers("--qubits", wrong)
