"""backends.yaml: layers by name, and one sentence for everything that can be wrong with it."""

import pytest

from qrkt_hw.backends import from_options, resolve
from qrkt_hw.backends.entries import layers, read_entries, working_folder
from qrkt_hw.commands import main
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import BackendConfig

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [*{chr(97 + k)}, *{chr(97 + k)}]\n" for k in range(20)
)
BROKEN = {
    "wrong type": ("mine: {provider: aer, shots: many}", ["mine.shots", "'many'"]),
    "a number as text": ("mine: {provider: aer, shots: '1024'}", ["mine.shots", "1024"]),
    "unknown key": ("mine: {provider: aer, shotz: 5}", ["mine.shotz", "unknown key", "shots"]),
    "unknown provider": ("mine: {provider: ionq}", ["mine.provider", "'ionq'", "exact, aer, fake, ibm"]),
    "no provider": ("mine: {shots: 5}", ["mine.provider", "missing"]),
    "negative shots": ("mine: {provider: aer, shots: -5}", ["mine.shots", "-5"]),
    "no shots on IBM": ("mine: {provider: ibm, name: ibm_fez, shots: null}", ["mine.shots"]),
    "a fallback that loops": (
        "one: {provider: aer, fallback: two}\ntwo: {provider: aer, fallback: one}",
        ["fallback", "loops", "one -> two -> one"],
    ),
    "a fallback that names nothing": ("mine: {provider: aer, fallback: nowhere}", ["mine.fallback", "'nowhere'"]),
    "an IBM fallback": ("mine: {provider: ibm, name: ibm_fez, fallback: exact}", ["mine.fallback", "not allowed"]),
    "unknown gradient": ("mine: {provider: exact, gradient: magic}", ["mine.gradient", "'magic'", "adjoint"]),
    "an entry that is no mapping": ("mine: 7", ["mine", "7"]),
    "a list": ("- mine", ["by name"]),
    "a bomb": (BOMB, ["line 2", "aliases"]),
    "a key twice": ("mine: {provider: aer}\nmine: {provider: exact}", ["'mine' stands twice"]),
    "deep nesting": ("[" * 5000, ["YAML"]),
    "not YAML": ("mine: {provider: aer", ["line", "YAML"]),
    "an object of Python": ("mine: !!python/object/apply:os.system ['true']", ["YAML"]),
    "control characters": ("mine: \x00\x01", ["YAML"]),
    "too large": ("# " + "x" * 300_000, ["too many"]),
}


@pytest.mark.acceptance
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_sentence_with_file_and_key(case, tmp_path, capsys):
    text, wanted = BROKEN[case]
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["backends", "list", "--backends-file", str(file)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1 and "Traceback" not in error and str(file) in error
    for part in wanted:
        assert part in error
    assert len(error) < 700


@pytest.mark.acceptance
def test_bytes_that_are_not_text(tmp_path, capsys):
    file = tmp_path / "broken.yaml"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--backends-file", str(file)])
    assert stopped.value.code == 2
    assert str(file) in capsys.readouterr().err


def test_layers_are_laid_over_each_other_by_name(tmp_path, monkeypatch):
    config = tmp_path / "config" / "qrkt-hw"
    config.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (config / "backends.yaml").write_text(
        "a: {provider: aer, shots: 1}\nb: {provider: aer, shots: 1}\nc: {provider: aer, shots: 1}"
    )
    (tmp_path / "backends.yaml").write_text("b: {provider: aer, shots: 2}\nc: {provider: aer, shots: 2}")
    named = tmp_path / "named.yaml"
    named.write_text("c: {provider: aer, shots: 3}")
    with working_folder():
        found = {name: entry for name, (entry, _) in layers(named).items()}
    assert [found[name].shots for name in "abc"] == [1, 2, 3]
    assert found["exact"].provider == "exact"


def test_the_shipped_file_holds_what_is_promised():
    names = set(layers())
    assert names >= {"exact", "aer_cpu", "aer_gpu", "fake_torino", "fake_fez", "fake_marrakesh", "fake_miami",
                     "ibm_torino", "ibm_least_busy"}  # fmt: skip
    assert layers()["aer_gpu"][0].fallback == "aer_cpu"


def test_flags_win_over_the_entry(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine: {provider: aer, shots: 64, gradient: spsa}")
    options = BackendConfig(name="mine", backends_file=file)
    assert (from_options(options).shots, from_options(options).gradient) == (64, "spsa")
    options = options.model_copy(update={"shots": 0, "gradient": "parameter_shift"})
    assert (from_options(options).shots, from_options(options).gradient) == (None, "parameter_shift")


def test_a_fake_backend_needs_no_entry_and_a_wrong_one_is_refused():
    assert resolve("fake_lima").target.num_qubits == 5
    with pytest.raises(UserError, match="fake_nowhere"):
        resolve("fake_nowhere")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError, match="aer_cpu"):
        resolve("qpu")


def test_shots_on_the_exact_simulator_are_refused():
    with pytest.raises(UserError, match="shots"):
        resolve("exact", shots=100)


def test_aliases_are_refused_before_they_expand():
    with pytest.raises(UserError, match="aliases"):
        read_entries("a: &x {provider: exact}\nb: *x", "file")
