"""Entries of ``./backends.yaml`` are read by every command that takes ``--backend``."""

from tests.command_line import qrkt

SMALL = ["--epochs", 1, "--limit", 24, "--hidden", 4, "--mlp", 2, "--qubits", 2, "--rk", "rk1", "--rk-blocks", 1]


def test_train_takes_an_entry_of_the_working_folder(tmp_path):
    (tmp_path / "backends.yaml").write_text("mine: {provider: aer, shots: 16}\n")
    found = qrkt("train", *SMALL, "--backend", "mine", "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "mine is from backends.yaml of this folder" in found.stderr and "mine evaluates" in found.stderr
