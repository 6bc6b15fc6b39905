"""The noise cache: plain arrays, rebuilt when damaged."""

import numpy as np
import pytest

from qrkt_hw.backends import noise
from qrkt_hw.backends.device.transpile import fake_device
from qrkt_hw.backends.noise import DeviceNoise, device_noise


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device_noise.cache_clear()
    yield tmp_path / "qrkt-hw" / "noise"
    device_noise.cache_clear()


def same(a: DeviceNoise, b: DeviceNoise) -> bool:
    return (
        a.gates.keys() == b.gates.keys()
        and all(np.array_equal(a.gates[k], b.gates[k]) for k in a.gates)
        and np.array_equal(a.readout, b.readout)
    )


def test_the_second_time_it_comes_from_the_file(folder, monkeypatch):
    first = device_noise("fake_lima")
    (file,) = folder.iterdir()
    device_noise.cache_clear()
    monkeypatch.setattr(noise, "_build", lambda device: pytest.fail("built again"))
    assert same(device_noise("fake_lima"), first)
    with np.load(file, allow_pickle=False) as arrays:
        assert all(arrays[key].dtype != object for key in arrays.files)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "nan", "shape"])
def test_a_damaged_file_is_built_anew(folder, damage):
    first = device_noise("fake_lima")
    (file,) = folder.iterdir()
    data = file.read_bytes()
    with np.load(file) as arrays:
        held = {key: arrays[key] for key in arrays.files}
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        file.write_text("hello")
    elif damage == "pickle":
        np.savez(file, readout=np.array([{"a": 1}], dtype=object))
    elif damage == "nan":
        np.savez(file, **{**held, "readout": held["readout"] * np.nan})
    else:
        np.savez(file, **{**held, "sx.superoperators": held["sx.superoperators"][:, :2]})
    device_noise.cache_clear()
    assert same(device_noise("fake_lima"), first)
    device_noise.cache_clear()
    assert same(device_noise("fake_lima"), first)


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    device_noise.cache_clear()
    assert device_noise("fake_lima").readout.shape == (5, 2, 2)
    device_noise.cache_clear()


def test_superoperators_are_what_aer_computes():
    from qiskit_aer.noise.device import basic_device_gate_errors

    for _, _, error in basic_device_gate_errors(target=fake_device("fake_lima").target):
        np.testing.assert_allclose(noise.error_superoperator(error), error.to_quantumchannel().data, atol=1e-12)
