"""digits-hardware: inference of 50 images, packed, fits the free ten minutes of a device with room to spare."""

import pytest
import torch

from qrkt_hw.backends import resolve
from qrkt_hw.data.base import DataShape
from qrkt_hw.experiments import presets
from qrkt_hw.models.factory import build_model, set_backend
from qrkt_hw.runs.config import Config

SHOTS, OPEN_PLAN = 1024, 600


@pytest.mark.acceptance
def test_fifty_images_take_less_than_half_of_the_open_plan():
    options = Config(**presets.load("digits-hardware"))
    model = build_model(options, DataShape(1, 8, 10)).eval()
    backend = resolve("fake_torino", shots=SHOTS, seed=0)
    set_backend(model, backend)
    with torch.no_grad():
        model(torch.zeros(50, 1, 8, 8))
    used = backend.counters
    assert 0 < used.executions < SHOTS * used.circuits / 20
    # IBM's quick form: 2 s a job and 0.35 ms an execution
    seconds = 2 * used.rounds + 0.00035 * used.executions
    assert seconds < OPEN_PLAN / 2
