"""Run folders and files that are whole or absent."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from qrkt_hw.errors import UserError
from qrkt_hw.runs import RunFolder, newest
from qrkt_hw.runs.atomic import replace_with, to_json, write_json, write_text
from qrkt_hw.runs.config import Config

DATA = {"dataset": "digits", "channels": 1, "image_size": 8, "class_names": ["a"], "mean": [0.0], "std": [1.0]}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "f", "old")

    def fail(path):
        path.write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        replace_with(tmp_path / "f", fail)
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_holds_no_constants_that_json_has_not(tmp_path):
    value = {"a": float("nan"), "b": [1.5, float("inf")], "c": (1, "NaN")}
    assert json.loads(to_json(value)) == {"a": None, "b": [1.5, None], "c": [1, "NaN"]}
    write_json(tmp_path / "f.json", value)
    assert "NaN," not in (tmp_path / "f.json").read_text()


def test_options_and_description_come_back(tmp_path):
    options = Config(hidden=8, seed=7, mlp_qubits=2)
    run = RunFolder.create(options, DATA, tmp_path / "deep" / "run")
    assert RunFolder.open(run.path).options() == options
    assert run.description() == DATA
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run"]


FLAT = Path(__file__).parents[2] / "results" / "best-mnist-4-qubits" / "seed-0"  # kept by a version before sections


@pytest.mark.parametrize("of", [None, {}, {"model": "gan"}, {"dataset": "imdb"}])
def test_a_configuration_that_was_cut_off_is_refused_wherever_it_was_cut(of, tmp_path):
    run = RunFolder.create(Config(**of or {}), DATA, tmp_path / "run")
    if of is None:
        shutil.copyfile(FLAT / "config.yaml", run.config)
    whole, options = run.config.read_bytes(), run.options()
    ends = [k + 1 for k, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {0, *ends[:-1], *range(ends[-6], len(whole))}:
        run.config.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"config\.yaml is damaged"):
            run.options()
    run.config.write_bytes(whole)
    assert run.options() == options


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        RunFolder.create(Config(), DATA, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(Config(), DATA, tmp_path / "empty").config.is_file()


def test_names_made_up_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {RunFolder.create(Config(), DATA).path for _ in range(4)}
    assert len(made) == 4 and all(p.parent.name == "runs" for p in made)


def test_the_newest_run_is_found(tmp_path):
    with pytest.raises(UserError, match="no run"):
        newest(tmp_path)
    for age, name in enumerate(["c", "a", "b"]):
        run = RunFolder.create(Config(), DATA, tmp_path / name)
        run.model.touch()
        os.utime(run.config, ns=(age, age))
    (tmp_path / "z").mkdir()
    assert newest(tmp_path).name == "b"


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_size", "8"), ("image_size", 0), ("channels", True), ("class_names", []), ("class_names", [1]),
     ("std", [0.0]), ("mean", "0")],
)  # fmt: skip
def test_a_description_of_another_kind_is_named(key, value, tmp_path):
    run = RunFolder.create(Config(), {**DATA, key: value}, tmp_path / "run")
    with pytest.raises(UserError, match=key):
        run.description()


def test_a_full_disk_is_one_sentence_and_another_error_stays_itself(tmp_path):
    run = RunFolder.create(Config(), DATA, tmp_path / "run")
    with pytest.raises(UserError, match="No space"), run.writing():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="cannot be written"), run.writing():
        (run.path / "missing" / "file").write_text("")
    with pytest.raises(FileNotFoundError), run.writing():
        (tmp_path / "elsewhere.txt").read_text()
    with run.writing():  # the lock is free again
        pass
