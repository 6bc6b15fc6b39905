"""What all tests share."""

import gc
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch counts the cores: threads of several workers wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    """xdist hands out files with many tests first; those of few tests take longest, and stand first by name."""
    config.option.loadscopereorder = False


def pytest_collection_finish():
    """What is imported stays: without this the garbage collector walks through torch and Qiskit again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _without_charts():
    """A training in this process leaves out its charts, which take longer than the small trainings of most tests.

    ``QRKT_HW_CHARTS=1`` draws them everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        if "QRKT_HW_CHARTS" not in os.environ:
            from qrkt_hw.plots import charts

            for name in ("plot_confusion", "plot_curves", "plot_losses"):
                patch.setattr(charts, name, lambda *_: None)
        yield patch


@pytest.fixture(scope="module")
def charts(_without_charts):
    """From here on the trainings of this file draw their charts, as those of a user do."""
    _without_charts.undo()
