"""Shots where they matter, on a fake device: planned, run and kept."""

import json

import pytest

from tests.command_line import qrkt, refused, trained

TINY = ["--epochs", 1, "--limit", 64, "--hidden", 8, "--mlp", 4, "--heads", 2, "--rk", "rk1", "--rk-blocks", 1]
DEVICE = ["--backend", "fake_lima", "--shots", 32]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("shots"), *TINY, "--ansatz", "brickwork")


def infer(run, *flags):
    found = qrkt("infer", run, "--limit", 6, *flags, "--json", cwd=run.parent)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout), found.stderr


def test_shots_go_where_the_logits_need_them_in_the_same_time(run):
    even, _ = infer(run, *DEVICE, "--dry-run")
    planned, said = infer(run, *DEVICE, "--shots-per-stage", "auto", "--dry-run")
    first, second = planned["stage_shots"]
    assert first != second and f"shots of the stages: {first}, {second}" in said
    assert 0.9 * even["seconds"] < planned["seconds"] <= even["seconds"]
    record, _ = infer(run, *DEVICE, "--shots-per-stage", "auto")
    assert record["stage_shots"] == [first, second] and record["executions"] == planned["executions"]
    again, _ = infer(run, "--backend", "fake_lima", "--shots-per-stage", f"{first},{second}")
    assert again["executions"] == planned["executions"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend", "exact", "--shots-per-stage", "auto"], ["applies only to devices that sample", "'exact'"]),
        ([*DEVICE, "--shots-per-stage", "8,8,8"], ["3 numbers", "2 sequential stages"]),
        ([*DEVICE, "--shots-per-stage", "8,x"], ["'8,x'", "auto, or numbers"]),
        ([*DEVICE, "--shots-per-stage", "8,0"], ["'8,0'", "from 1 to"]),
        ([*DEVICE, "--shots-per-stage", "9,9", "--max-qpu-seconds", 2.1], ["--max-qpu-seconds", "too many"]),
    ],
)
def test_other_shots_are_refused(run, flags, words):
    refused(qrkt("infer", run, *flags, cwd=run.parent), *words)
