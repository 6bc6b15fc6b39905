"""Accuracy and planned QPU seconds with the most uncertain samples evaluated twice, beside more shots for all.

python benchmarks/repeat_uncertain.py results/digits-device/seed-0 --shots 8 14 16 23 --repeat 36 --draws 30
"""

import argparse
from pathlib import Path

import torch

from qrkt_hw.backends import resolve
from qrkt_hw.data.base import DataShape
from qrkt_hw.data.batches import loader
from qrkt_hw.experiments.devices import correct_readout
from qrkt_hw.experiments.loading import read_split, restored
from qrkt_hw.models.factory import set_backend
from qrkt_hw.models.metrics import logits_of, refined
from qrkt_hw.resources.forecast import BATCH, enlarge_batch, forecast
from qrkt_hw.resources.logical import stages_of
from qrkt_hw.runs import RunFolder


def shown(shares: list[float]) -> str:
    values = 100 * torch.tensor(shares)
    return f"{values.mean():.2f} ± {values.std() / len(values) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--backend", default="fake_torino")
    parser.add_argument("--shots", type=int, nargs="+", required=True)
    parser.add_argument("--repeat", type=int, required=True, help="samples that are evaluated twice")
    parser.add_argument("--limit", type=int, help="images of the test split")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--draws", type=int, default=10, help="inferences of each row")
    given = parser.parse_args()
    run = RunFolder.open(given.run)
    samples, shape = read_split(run, "test", given.limit, given.data_dir), DataShape.of(run.description())
    model = restored(run)
    exact, labels = logits_of(model, loader(samples, BATCH))
    print("| shots | evaluated twice | QPU seconds planned | accuracy (%) | as exact (%) |\n|---|---|---|---|---|")
    for shots in given.shots:
        backend = resolve(given.backend, shots=shots, seed=0)
        correct_readout(run, model, shape, len(samples), backend, False)
        enlarge_batch(model, shape, len(samples), backend)
        batch = backend.batch or BATCH
        set_backend(model, backend)
        once = [logits_of(model, loader(samples, batch))[0] for _ in range(given.draws)]
        twice = [refined(model, samples, one, given.repeat, batch) for one in once]
        for repeated, draws in ((0, once), (given.repeat, twice)):
            plan = forecast(stages_of(model, shape), len(samples), batch, backend, repeated=repeated)
            right, alike = (
                [float((one.argmax(-1) == wanted).double().mean()) for one in draws]
                for wanted in (labels, exact.argmax(-1))
            )
            print(f"| {shots} | {repeated} | {plan.seconds:.1f} | {shown(right)} | {shown(alike)} |", flush=True)


if __name__ == "__main__":
    main()
