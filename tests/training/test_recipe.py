"""Options of a training: each changes what it says, and off it changes nothing."""

from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console
from torchvision.ops import stochastic_depth
from torchvision.transforms import v2

from qrkt_hw import backends
from qrkt_hw.data import load_data, ranks
from qrkt_hw.data.batches import loader
from qrkt_hw.data.ranks import DropPath
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import quantum_layers
from qrkt_hw.nn.blocks import TABLEAUS, RungeKuttaBlock, TransformerBlock
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
        learner.update([sum(p.sum() for p in learner.parameters)], rate / 2)
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


# stochastic depth -----------------------------------------------------------------------------------------------------
def test_a_path_is_dropped_as_torchvision_drops_it():
    x = torch.randn(64, 3, 5, dtype=torch.float64)
    torch.manual_seed(0)
    found = DropPath(0.3)(x)
    torch.manual_seed(0)
    assert torch.equal(found, stochastic_depth(x, 0.3, "row"))
    assert DropPath(0.3).eval()(x) is x and DropPath(0.0)(x) is x


@pytest.mark.parametrize("rule", ["rk1", "rk2", "rk4"])
def test_a_runge_kutta_step_is_left_out_as_a_whole_and_right_on_average(rule):
    torch.manual_seed(1)
    block = RungeKuttaBlock(torch.nn.Linear(4, 4), TABLEAUS[rule], drop_path=0.25)
    y = torch.randn(1, 2, 4).expand(400, 2, 4)
    with torch.no_grad():
        whole, found = block.eval()(y), block.train()(y)
    left = (found == y).flatten(1).all(1)
    torch.testing.assert_close(found[~left], (y + (whole - y) / 0.75)[~left])
    assert 0.15 < left.float().mean() < 0.35


def test_rates_rise_over_the_blocks_as_timm_has_them():
    def rates(model):
        blocks = (TransformerBlock, RungeKuttaBlock)
        return [m.drop_path.p for m in model.modules() if isinstance(m, blocks)]

    model = task_of(encoder_blocks=2, rk_blocks=1, decoder_blocks=2, drop_path=0.2).model
    assert rates(model) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    gan = task_of(model="gan", drop_path=0.3, generator_rk_blocks="1,1").model
    assert rates(gan.generator) == pytest.approx([0, 0.1, 0.2, 0.3]) and rates(gan.discriminator) == [0, 0.3]
    assert set(rates(task_of().model)) == {0.0}


def test_stochastic_depth_does_not_depend_on_the_number_of_ranks():
    torch.manual_seed(0)
    x = torch.randn(7, 2, 3)
    path, parts = DropPath(0.5), []
    torch.manual_seed(3)
    whole = path(x)
    for rank in range(3):
        share = ranks.Share.of(7, rank, 3)
        ranks.set_share(share)
        torch.manual_seed(3)
        parts.append(path(x[share.start : share.stop]))
        ranks.set_share(None)
    assert torch.equal(torch.cat(parts), whole)


def test_stochastic_depth_changes_the_training_and_off_is_as_before():
    assert not same(after()[1], after(drop_path=0.5)[1]) and same(after()[1], after(drop_path=0.0)[1])


# mixup ----------------------------------------------------------------------------------------------------------------
def test_images_and_labels_are_mixed_as_torchvision_mixes_them(monkeypatch):
    images, labels = torch.randn(10, 3, 4, 4), torch.randint(5, (10,))

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, places):
            return images[places], labels[places]

    plain = next(iter(loader(Samples(), 10, 1, augment="crop")))
    mixed, own, partners, weight = next(iter(loader(Samples(), 10, 1, augment="crop", mixup=0.4)))
    assert 0 < weight < 1 and torch.equal(own, plain[1])
    mix = v2.MixUp(alpha=1.0, num_classes=5)
    monkeypatch.setattr(mix, "_dist", type("One", (), {"sample": lambda self, size: weight.expand(1)})())
    wanted, soft = mix(*plain)
    torch.testing.assert_close(mixed, wanted)
    logits = torch.randn(10, 5)
    entropy = partial(torch.nn.functional.cross_entropy, logits, label_smoothing=0.1)
    torch.testing.assert_close(weight * entropy(own) + (1 - weight) * entropy(partners), entropy(soft))
    # ranks have their part of it
    for count in (2, 3, 7):
        found = []
        for rank in range(count):
            there = type("One", (), {"rank": rank, "count": count, "share": lambda *_: None})()
            found.append(next(iter(loader(Samples(), 10, 1, augment="crop", ranks=there, mixup=0.4))))
        for place, one in enumerate((mixed, own, partners)):
            assert torch.equal(torch.cat([part[place] for part in found]), one)


def test_mixup_changes_the_training_and_off_is_as_before():
    assert not same(after()[1], after(mixup=0.5)[1]) and same(after()[1], after(mixup=0.0)[1])


def test_mixup_of_texts_is_refused():
    with pytest.raises(UserError, match="mixup"):
        Config(dataset="imdb", mixup=0.2).check_sizes()


# what would do nothing -----------------------------------------------------------------------------------------------
NOTHING = [
    ({"angle_learning_rate": 0.1, "projection": "classical"}, "angle_learning_rate"),
    ({"angle_weight_decay": 0.1, "projection": "classical"}, "angle_weight_decay"),
    ({"schedule": "linear", "model": "gan"}, "schedule"),
    ({"mixup": 0.2, "model": "gan"}, "mixup"),
    ({"mixup": 0.2, "batch_size": 1}, "mixup"),
    ({"mixup": 0.2, "dataset": "imdb"}, "mixup"),
    ({"learning_rate": 0.1, "model": "gan", "generator_learning_rate": 0.2, "discriminator_learning_rate": 0.2},
     "learning_rate"),
    ({"structured": True, "attention": "higher-order", "projection": "classical"}, "structured"),
    ({"qubits": 2, "mlp_qubits": 4, "attention": "higher-order", "projection": "quantum-mlp"}, "qubits"),
    ({"drop_path": 0.2, "rk_blocks": 1}, "drop_path"),
    ({"drop_path": 0.2, "model": "gan", "discriminator_rk_blocks": 1, "generator_rk_blocks": "0,1"}, "drop_path"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "key"), NOTHING)
def test_an_option_that_would_do_nothing_is_refused(keys, key):
    assert f"--{key.replace('_', '-')}" in str(unused(Config(**keys), keys))


def test_circuits_over_tokens_have_the_ansatz_layers_and_backend_that_are_given():
    keys = {"attention": "higher-order", "projection": "quantum-mlp", "ansatz": "higher_order", "layers": 2}
    keys |= {"mlp_ansatz": "qrkt", "mlp_layers": 1}
    for more in ({}, {"structured": True, "shots": 10, "initial_angles": "uniform"}):
        assert unused(Config(**keys, **more), {**keys, **more}) is None
