"""Several ranks train what one process trains: the same samples, the same random numbers, the same figures."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qrkt_hw.data import ranks
from qrkt_hw.data.base import Indexed
from qrkt_hw.data.batches import augmented, loader
from qrkt_hw.data.imagenet import load as load_imagenet
from qrkt_hw.data.ranks import Ranks, Share
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import Config
from qrkt_hw.training.gan import discriminator_loss
from tests.acceptance.on_ranks import (
    GAN,
    SMALL,
    TINY,
    Each,
    damaged,
    die_at,
    environment,
    flags,
    free_port,
    of_another_version,
    of_other_labels,
    on_ranks,
    slurm,
    steps,
    trained,
    whole,
)
from tests.command_line import qrkt, refused
from tests.data import writing

pytestmark = pytest.mark.acceptance
LOSSES = {
    "r1": {"loss": "nonsaturating-r1"},
    "wgangp": {"loss": "wgangp-eps", "dropout": 0.2, "critic_steps": 2, "penalty_every": 2},
    "hinge": {"loss": "hinge", "dtype": "complex128"},  # Adam makes a rate of what rounding leaves of a zero
    "conditional": {"conditional": True, "accumulate": 2, "discriminator_ansatz": "orthogonal_brick"},
}


@pytest.fixture(scope="module", autouse=True)
def server():
    """The server of ranks loads torch while other tests run."""
    forkserver.ensure_running()


class One(Ranks):
    """A rank of several, without the others."""

    def __init__(self, rank: int, count: int) -> None:
        super().__init__()
        self.rank, self.count = rank, count


def numbered(size: int) -> Indexed:
    """Samples that say which they are."""
    return Indexed(torch.arange(size).float().view(-1, 1, 1, 1), torch.arange(size), lambda kept: kept)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 3))
def test_every_batch_is_dealt_without_overlap_and_nothing_is_left_out(size, batch, count, epoch):
    count = min(count, batch)
    whole, parts = loader(numbered(size), batch, 5), [loader(numbered(size), batch, 5, ranks=One(k, count))
                                                      for k in range(count)]  # fmt: skip
    for one in (whole, *parts):
        one.sampler.set_epoch(epoch)
    for expected, *dealt in zip(whole, *parts, strict=True):
        shares = [Share.of(len(expected[1]), k, count) for k in range(count)]
        own = [labels for (_, labels), share in zip(dealt, shares, strict=True) if share.weight]
        assert torch.cat(own).equal(expected[1])
        assert sum(share.weight for share in shares) == pytest.approx(1)
        assert all(len(labels) for _, labels in dealt)  # a rank without a sample takes part


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_is_dealt_without_overlap(tmp_path, workers):
    writing.imagenet_parquet(tmp_path)
    data = load_imagenet(Config(dataset="imagenet", data_dir=tmp_path, image_size=8).data)
    stream = data.splits["train"]
    for count, batch in ((2, 7), (3, 16), (5, 6)):
        parts = [loader(stream, batch, 1, workers, "flip", One(k, count)) for k in range(count)]
        for (pixels, labels), *dealt in zip(loader(stream, batch, 1, workers, "flip"), *parts, strict=True):
            kept = [found for k, found in enumerate(dealt) if Share.of(len(labels), k, count).weight]
            assert torch.cat([found[0] for found in kept]).equal(pixels)
            assert torch.cat([found[1] for found in kept]).equal(labels)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("layout", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_random_numbers_are_those_of_the_whole_batch(copies, count, layout, device):
    total, like = 6, torch.ones(copies * 6, 4, 3, device=device).permute(layout)

    def everything(rows):
        torch.manual_seed(3)
        half = torch.ones(rows * copies, 4, 3, device=device).permute(layout)
        found = ranks.dropout(half, 0.4), ranks.drawn(partial(torch.randn), (rows * copies, 5))
        moves = ranks.drawn(partial(torch.randint, 0, 100), (2, rows * copies, 1), axis=1)
        return *found, moves.transpose(0, 1)

    whole = everything(total)
    torch.manual_seed(3)
    assert whole[0].equal(F.dropout(like, 0.4)) and whole[1].equal(torch.randn(copies * 6, 5))  # one process: torch's
    for rank in range(count):
        share = Share.of(total, rank, count)
        ranks.set_share(share)
        try:
            own = everything(share.stop - share.start)
        finally:
            ranks.set_share(None)
        for all_of_it, found in zip(whole, own, strict=True):
            rows = all_of_it.unflatten(0, (copies, total))[:, share.start : share.stop].flatten(0, 1)
            assert rows.equal(found)


def test_augmentation_is_that_of_the_whole_batch():
    images = torch.rand(10, 3, 8, 8)
    for kind in ("crop-flip", "shift"):
        whole = augmented(images, kind, np.random.default_rng(4))
        share = Share.of(10, 1, 3)
        own = augmented(images[share.start : share.stop], kind, np.random.default_rng(4), ([3, 4, 5], 10))
        assert own.equal(whole[share.start : share.stop])


def test_the_drift_of_a_batch_in_parts_has_its_value_and_gradient(monkeypatch):
    real = torch.randn(7, 1, dtype=torch.float64, requires_grad=True)
    fake = torch.randn(7, 1, dtype=torch.float64)
    expected = discriminator_loss("wgangp-eps", real, fake)
    (gradient,) = torch.autograd.grad(expected, real)
    mean, found, total = real.detach().mean(), torch.zeros_like(real), 0.0
    monkeypatch.setattr(ranks, "_here", type("All", (), {"sum": lambda self, part: mean})())
    for rank in range(3):
        share = Share.of(7, rank, 3)
        rows = slice(share.start, share.stop)
        monkeypatch.setattr(ranks, "_share", share)
        part = ranks.part(discriminator_loss("wgangp-eps", real[rows], fake[rows]))
        found += torch.autograd.grad(part, real)[0]
        total += part.item()
    assert total == pytest.approx(expected.item(), rel=1e-12)
    assert found.numpy() == pytest.approx(gradient.numpy(), rel=1e-12)


def close(found, one):
    """Losses of the steps and figures of the epochs are those of one process, and all ranks have the same weights."""
    assert len({rank["sha256"] for rank in found}) == 1
    assert np.abs(np.array(found[0]["losses"]) - np.array(one["losses"])).max() < 1e-5
    for ours, theirs in zip(found[0]["figures"], one["figures"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, nan_ok=True)


def test_two_ranks_train_what_one_trains():
    one = steps(TINY, 8)
    found = whole(on_ranks(2, steps, TINY, 8, by=slurm))
    close(found, one)
    # what the page on scale says of the traffic: the gradients once a step
    assert [rank["sent"] for rank in found] == [one["bytes"] * one["steps"]] * 2
    assert one["sent"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_gan_with_its_penalty_is_that_of_one_process(loss, count):
    keys = {**GAN, **LOSSES[loss]}
    close(whole(on_ranks(count, steps, keys, 20)), steps(keys, 20))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_classifier_of_twenty_steps_is_that_of_one_process(count):
    keys = {**TINY, "encoder_blocks": 1, "decoder_blocks": 1, "patch": 1}
    close(whole(on_ranks(count, steps, keys, 20)), steps(keys, 20))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_mixup_stochastic_depth_noise_and_angles_apart_are_those_of_one_process(count):
    keys = {**TINY, "encoder_blocks": 1, "mixup": 0.4, "drop_path": 0.3, "angle_learning_rate": 0.01}
    keys |= {"shot_noise": 64, "readout_error": 0.02}
    close(whole(on_ranks(count, steps, keys, 8)), steps(keys, 8))


@pytest.mark.slow
def test_texts_with_word_dropout_are_those_of_one_process(tmp_path):
    writing.imdb(tmp_path)
    keys = {"dataset": "imdb", "data_dir": str(tmp_path), "vocabulary": 40, "text_length": 12, "token_dropout": 0.3}
    keys |= {"batch_size": 7, "hidden": 16, "mlp": 8, "rk_blocks": 1, "rk": "rk1", "epochs": 3}
    close(whole(on_ranks(3, steps, keys, 10)), steps(keys, 10))


@pytest.mark.slow
def test_an_equal_number_of_ranks_gives_the_same_bits():
    found = [whole(on_ranks(3, steps, TINY, 6))[0] for _ in range(2)]
    assert found[0]["sha256"] == found[1]["sha256"] and found[0]["losses"] == found[1]["losses"]


def figures(folder: Path) -> dict[str, float]:
    with (folder / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    kept = [key for key in rows[0] if "seconds" not in key and "memory" not in key]
    return {f"{key} {number}": float(row[key]) for number, row in enumerate(rows) for key in kept}


REFUSED = {
    "another version": (of_another_version, "rank 1 has another version (0.0.1)"),
    "other data": (of_other_labels, "rank 1 has another data_sha256"),
    "damaged while it trains": (damaged, "rank 1: image 17 is damaged"),
}


@pytest.mark.parametrize("what", [*list(REFUSED)[:1], *(pytest.param(w, marks=pytest.mark.slow)
                                                        for w in list(REFUSED)[1:])])  # fmt: skip
def test_a_rank_that_differs_ends_all_with_one_sentence(what, tmp_path):
    how, words = REFUSED[what]
    found = on_ranks(2, trained, str(tmp_path), SMALL, "run", Each([None, how]))
    assert all(isinstance(one, UserError) for one in found)
    assert words in str(found[0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--devices", "99"], ["99 ranks", "--batch-size 64"]),
        (["--devices", "0"], ["--devices", "from 1 to 1024, or auto"]),
        (["--num-nodes", "2"], ["2 machines need srun or torchrun", "MASTER_ADDR"]),
        (["--accelerator", "cuda", "--devices", "64"], ["cuda"]),
        (["--precision", "bf16-mixed", "--dtype", "complex128"], ["--precision", "32-true"]),
        (["--precision", "bf16-mixed", "--backend", "fake_torino", "--shots", "9"], ["--precision", "fake_torino"]),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, words, tmp_path):
    refused(qrkt("train", "--limit", "50", *flags, "--out", "run", cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_other_commands_run_in_one_process(tmp_path, monkeypatch):
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    refused(qrkt("export", "run", cwd=tmp_path), "export runs in one process")
    refused(qrkt("train", "--devices", "3", cwd=tmp_path), "torchrun started 2 processes on this machine, not 3")


def test_torchrun_resumes_on_other_ranks_and_starts_again_only_its_own_run(tmp_path, monkeypatch):
    keys = flags({**SMALL, "epochs": 1})
    assert qrkt("train", *keys, "--out", "run", cwd=tmp_path).returncode == 0
    for name, value in {**environment(0, 1, 1), "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert qrkt("train", "--resume", "run", "--epochs", 2, "--devices", 1, cwd=tmp_path).returncode == 0
    refused(qrkt("train", *keys, "--out", "run", cwd=tmp_path), "run exists already, with other options")
    again = qrkt("train", *flags({**SMALL, "epochs": 2}), "--devices", 1, "--out", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_batch_script_is_printed(tmp_path):
    (tmp_path / "big run.yaml").write_text("dataset: digits\nbatch_size: 64\n")
    script = qrkt("launch", "--slurm", "big run.yaml", "--nodes", "4", "--gpus", "4", cwd=tmp_path)
    assert script.returncode == 0, script.stderr
    for line in ("#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=4", "#SBATCH --gres=gpu:4", "MASTER_ADDR=", "srun "):
        assert line in script.stdout
    assert subprocess.run(["bash", "-n"], input=script.stdout, text=True).returncode == 0
    # what the script does, with stand-ins for the programs of the cluster
    stubs = 'scontrol() { echo first; }; srun() { echo "$MASTER_ADDR" "$MASTER_PORT"; printf "[%s]" "$@"; }\n'
    run = subprocess.run(["bash"], input=stubs + script.stdout, text=True, capture_output=True, cwd=tmp_path,
                         env={**os.environ, "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "2"})  # fmt: skip
    assert run.stdout.startswith("first 24711\n")
    assert "[qrkt-hw][train][--config][big run.yaml][--accelerator][cuda][--out][runs/big run]" in run.stdout
    refused(qrkt("launch", "--slurm", "big run.yaml", "--nodes", "40", "--gpus", "4", cwd=tmp_path), "160 ranks")


def program(*arguments, **environment):
    return [sys.executable, "-m", "qrkt_hw", *map(str, arguments)], {**os.environ, **environment}


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("who", ["first", "other"])
def test_a_killed_rank_takes_the_others_with_it(who, tmp_path):
    command, env = program("train", *flags({**SMALL, "epochs": 500}), "--devices", 3, "--out", "run")
    process = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    others = children(process.pid)
    assert len(others) == 2
    os.kill(process.pid if who == "first" else others[1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    if who == "other":
        assert process.returncode == 2
        (line,) = [line for line in said.splitlines() if line.startswith("qrkt-hw: ")]
        assert "rank 2 ended" in line and "resume with: qrkt-hw train --resume run" in line
    until = time.monotonic() + 20
    while any(map(alive, others)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(map(alive, others))


MOMENTS = ["folder-made", "first-epoch", "first-validation", "checkpoint-half-written", "before-results"]


@pytest.mark.slow
def test_a_rank_killed_at_five_moments_and_resumed_gives_the_undisturbed_figures(tmp_path):
    undisturbed = whole(on_ranks(2, trained, str(tmp_path), SMALL, "undisturbed"))[0]
    for number, moment in enumerate(MOMENTS):
        rank = 1 if moment == "first-epoch" else 0
        orders = [partial(die_at, moment) if k == rank else None for k in range(2)]
        with pytest.raises(EOFError):  # one rank says nothing any more; the others end, or on_ranks complains
            on_ranks(2, trained, str(tmp_path), SMALL, moment, Each(orders))
        count = 2 + number % 2
        found = whole(on_ranks(count, trained, str(tmp_path), SMALL, moment))[0]
        assert figures(tmp_path / moment) == pytest.approx(figures(tmp_path / "undisturbed"), abs=1e-5)
        assert found["test.accuracy"] == undisturbed["test.accuracy"]
        assert found["test.loss"] == pytest.approx(undisturbed["test.loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1, 2])
def test_agents_of_torchrun_train_what_one_process_trains(agents, tmp_path):
    """Two of them on one loopback, as on two machines; a single one starts its ranks again when one is killed."""
    assert qrkt("train", *flags(SMALL), "--out", "alone", cwd=tmp_path).returncode == 0
    script = tmp_path / "once.py"
    script.write_text(
        "import os, sys\nfrom tests.acceptance.killing import arrange\nfrom qrkt_hw.commands import main\n"
        "first, alone = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0', sys.argv.pop(1) == '1'\n"
        "if first and alone and os.environ['RANK'] == '1':\n    arrange('later-validation')\nmain()\n"
    )
    started, port = [], str(free_port())
    for node in range(agents):
        how = ["--nnodes", str(agents), "--node-rank", str(node), "--nproc-per-node", str(3 - agents)]
        how += ["--master-addr", "127.0.0.1", "--master-port", port, "--max-restarts", str(2 - agents)]
        command = [sys.executable, "-m", "torch.distributed.run", *how, str(script), str(agents), "train"]
        env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        started.append(subprocess.Popen([*command, *flags(SMALL), "--out", "many"], cwd=tmp_path, env=env,
                                        stderr=subprocess.PIPE, text=True))  # fmt: skip
    said = [agent.communicate(timeout=200)[1] for agent in started]
    assert [agent.returncode for agent in started] == [0] * agents, said
    assert ("exitcode: -9" in said[0]) == (agents == 1)
    assert figures(tmp_path / "many") == pytest.approx(figures(tmp_path / "alone"), abs=1e-5)
    found = [json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("many", "alone")]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence_and_infer_deals_a_split(tmp_path):
    assert qrkt("train", *flags(SMALL), "--out", "run", cwd=tmp_path).returncode == 0
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command, env = program("train", "--devices", 2, "--out", "other", MASTER_PORT=port)
        found = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    refused(found, "MASTER_PORT", port, "in use")
    command, env = program("infer", "run", "--devices", 3, "--json")
    shared = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    alone = qrkt("infer", "run", "--json", cwd=tmp_path)
    assert shared.returncode == 0, shared.stderr
    ours, theirs = json.loads(shared.stdout), json.loads(alone.stdout)
    for key in ("count", "accuracy", "f1", "auroc", "loss"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6)
    assert len(list((tmp_path / "run" / "inference").iterdir())) == 2


def test_the_options_of_ranks_are_kept_in_the_configuration():
    kept = yaml.safe_load(yaml.safe_dump(Config(devices=4, num_nodes=2).model_dump(mode="json")))
    assert (kept["training"]["devices"], kept["training"]["num_nodes"]) == ("4", 2)
    assert Config(**kept).alone() == Config()


def test_the_page_on_scale_prints_what_it_says(capsys):
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (code,), (printed,) = re.findall(r"```python\n(.*?)```", page, re.S), re.findall(r"```\n(\d.*?)```", page, re.S)
    exec(compile(code, "docs/scale.md", "exec"), {})
    assert capsys.readouterr().out == printed
    numbers = [float(x.replace(",", "")) for x in re.findall(r"[\d.,]*\d", printed)]
    fixed, sample, traffic = numbers[2] / 1e3, numbers[3] / 1e3, numbers[4]
    rows = [[float(re.match(r"[\d.,]+", cell.strip())[0].replace(",", "")) for cell in line.split("|")[1:-1]]
            for line in page.splitlines() if re.match(r"\| \d+ .*\d \|$", line)]  # fmt: skip
    assert len(rows) == 5
    for count, batch, own, memory, draw, sent in rows:
        assert own == batch / count
        assert memory == pytest.approx(fixed + sample * own, abs=0.06)
        assert draw == pytest.approx(0 if count == 1 else 12 * batch * 4 * 1024**2 / 1e9, abs=0.06)
        assert sent == pytest.approx(2 * (count - 1) / count * traffic, abs=0.1)
