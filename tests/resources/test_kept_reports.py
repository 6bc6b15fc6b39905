"""What a report computes is kept, in a plain install as in a checkout, and only while it stays true."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qrkt_hw
from qrkt_hw import circuits

REPORT = """
import sys
from qrkt_hw.commands import group
try:
    group(["resources", "--preset", "digits", "--format", "json"])
finally:
    print("torch" in sys.modules, qrkt_hw.__file__, file=sys.stderr)
"""


@pytest.fixture
def installed(tmp_path):
    """Run Python where the package lies in site-packages as a wheel puts it: the circuits in a folder of their own."""
    site = tmp_path / "site-packages"
    shutil.copytree(Path(qrkt_hw.__file__).parent, site / "qrkt_hw", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def python(code):
        done = subprocess.run(
            [sys.executable, "-c", f"import qrkt_hw\n{code}"], env=environment, cwd=tmp_path, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        return done.stdout, done.stderr.split()

    python.site, python.cache = site, tmp_path / "cache" / "qrkt-hw"
    return python


def test_a_plain_install_computes_a_report_once(installed):
    first, (torch_used, where) = installed(REPORT)
    assert torch_used == "True" and Path(where).is_relative_to(installed.site)
    (kept,) = (installed.cache / "subjects").iterdir()
    second, (torch_used, _) = installed(REPORT)
    assert second == first and json.loads(first)["logical"]["calls_per_image"] > 0
    assert torch_used == "False"  # no model was built
    assert list((installed.cache / "subjects").iterdir()) == [kept]


def test_what_is_kept_depends_on_the_text_of_the_installed_circuits_and_on_nothing_beside_the_package(installed):
    code = "from qrkt_hw.backends.device.cache import versions; print(versions()['qrkt-hw'])"
    before, _ = installed(code)
    (installed.site / "circuits").mkdir()  # of another package
    (installed.site / "circuits" / "other.py").write_text("x = 1\n")
    os.utime(installed.site / "qrkt_hw" / "errors.py")
    assert installed(code)[0] == before
    with (installed.site / "qrkt_hw" / "circuits" / "qrkt.py").open("a") as file:
        file.write("\n")
    assert installed(code)[0] != before


def test_a_checkout_and_an_install_of_it_keep_the_same(installed):
    from qrkt_hw.backends.device.cache import versions

    found, _ = installed("from qrkt_hw.backends.device.cache import versions; print(versions()['qrkt-hw'])")
    assert found.strip() == versions()["qrkt-hw"]


def test_only_the_package_s_own_circuits_are_known_by_name(monkeypatch):
    monkeypatch.setattr(circuits, "_factories", dict(circuits._factories))
    assert all(circuits.is_built_in(name) for name in ("qrkt", "efficient_su2"))
    assert not circuits.is_built_in("file.py:function") and not circuits.is_built_in("nothing")
    circuits.register("qrkt", lambda qubits, layers: None)
    assert not circuits.is_built_in("qrkt")
    circuits.build.cache_clear()
