"""Options of a training: each changes what it says, and off it changes nothing."""

import numpy as np
import pytest
import torch
from rich.console import Console

from qrkt_hw import backends
from qrkt_hw.data import load_data
from qrkt_hw.models.factory import quantum_layers
from qrkt_hw.runs.config import Config, unused
from qrkt_hw.training import fit
from qrkt_hw.training.classifier import rate_factor

TINY = {
    "epochs": 2,
    "limit": 32,
    "batch_size": 16,
    "hidden": 8,
    "mlp": 8,
    "rk": "rk1",
    "rk_blocks": 2,
    "warmup_steps": 0,
}
GAN = {"model": "gan", "limit": 16, "batch_size": 16, "latent": 4, "generator_hidden": 16, "hidden": 8, "heads": 2,
       "generator_patch": 2, "mlp": 8, "rk": "rk1", "discriminator_rk_blocks": 2, "generator_blocks": "1,1",
       "warmup_steps": 0}  # fmt: skip


def task_of(**keys):
    options = Config(**{**TINY, **keys} if keys.get("model") != "gan" else {**GAN, **keys})
    data = load_data(options.data)
    return fit.make_task(
        options, data, fit.fresh_model(options, data, backends.make(options.backend, 0, Console(quiet=True)))
    )


def after(steps=2, **keys):
    """The task and its weights after some steps."""
    task = task_of(**keys)
    task.start_epoch(1)
    for number, batch in zip(range(steps), task.batches, strict=False):
        task.step(batch, number)
    return task, [p.detach().clone() for p in task.model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# angles of their own -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keys", [{}, {"model": "gan"}])
def test_without_an_option_of_their_own_angles_are_in_the_one_group(keys):
    task = task_of(**keys)
    for learner in task.learners:
        (group,) = learner.optimizer.param_groups
        assert all(a is b for a, b in zip(group["params"], learner.network.parameters(), strict=True))


def test_equal_options_for_angles_give_the_same_training_to_rounding():
    _, one = after()
    _, other = after(angle_learning_rate=0.02, angle_weight_decay=0.1)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [{}, {"model": "gan", "generator_learning_rate": 0.01}])
def test_angles_have_their_own_rate_and_decay_in_the_same_schedule(keys):
    task, _ = after(1, angle_learning_rate=0.005, angle_weight_decay=0.0, **keys)
    rates = {"generator": 0.01, "discriminator": 0.002} if keys else {"model": 0.02}
    for learner, rate in zip(task.learners, rates.values(), strict=True):
        rest, own = learner.optimizer.param_groups
        assert own["weight_decay"] == 0 and rest["weight_decay"] == (0 if keys else 0.1)
        assert rest["lr"] == pytest.approx(rate) and own["lr"] == pytest.approx(0.005)
        angles = {id(layer.weight) for layer in quantum_layers(learner.network)}
        assert {id(p) for p in own["params"]} == angles and not angles & {id(p) for p in rest["params"]}
        learner.update(sum(p.sum() for p in learner.parameters), rate / 2)
        assert own["lr"] == pytest.approx(0.0025)


def test_a_training_with_them_resumes(tmp_path):
    from qrkt_hw import train

    keys = {**TINY, "angle_learning_rate": 0.1, "angle_weight_decay": 0.0, "schedule": "constant"}
    run = train(out=tmp_path / "run", **keys)
    longer = train(out=tmp_path / "longer", **{**keys, "epochs": 3})
    again = train(resume=run.path, epochs=3)
    assert (again.path / "model.safetensors").read_bytes() == (longer.path / "model.safetensors").read_bytes()


# schedules -----------------------------------------------------------------------------------------------------------
def test_schedules_rise_alike_and_then_fall_or_stay():
    found = {kind: np.array([rate_factor(k, 10, 110, kind) for k in range(111)]) for kind in ("linear", "constant")}
    cosine = np.array([rate_factor(k, 10, 110) for k in range(111)])
    assert all((rates[:10] == cosine[:10]).all() for rates in found.values())
    assert (found["constant"][10:] == 1).all()
    assert np.diff(found["linear"][10:]) == pytest.approx(-0.01) and found["linear"][-1] == 0
    task = task_of(schedule="linear")
    assert task._rate(1) == pytest.approx(0.02 * 0.75)


# what would do nothing -----------------------------------------------------------------------------------------------
NOTHING = [
    ({"angle_learning_rate": 0.1, "projection": "classical"}, "angle_learning_rate"),
    ({"angle_weight_decay": 0.1, "projection": "classical"}, "angle_weight_decay"),
    ({"schedule": "linear", "model": "gan"}, "schedule"),
]


@pytest.mark.parametrize(("keys", "key"), NOTHING)
def test_an_option_that_would_do_nothing_is_refused(keys, key):
    assert f"--{key.replace('_', '-')}" in str(unused(Config(**keys), keys))
