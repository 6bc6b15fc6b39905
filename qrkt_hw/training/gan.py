"""Train a GAN into a run folder: what differs from a classifier's training."""

from __future__ import annotations

import time

import torch
from lightning.pytorch import Callback

from qrkt_hw.backends import Backend
from qrkt_hw.data import Data
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import count_parameters, largest_circuit, quantum_layers, summed_qubits
from qrkt_hw.models.gan import Gan
from qrkt_hw.models.weights import read_weights, sha256
from qrkt_hw.options.gan import TWICE
from qrkt_hw.options.run import RunOptions
from qrkt_hw.plots.images import save_animation
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.atomic import write_json
from qrkt_hw.training.adversaries import Adversaries
from qrkt_hw.training.gallery import Gallery
from qrkt_hw.training.measures import spent, where

# features of a batch below which waking a second thread costs more than it brings
WORTH_SHARING = 16_384


def check_losses(options: RunOptions, model: Gan, backend: Backend) -> None:
    """Refuse a loss that differentiates circuits twice where they can be differentiated once.

    Raises:
        UserError: such a loss, with what would work.
    """
    if options.loss in TWICE and options.penalty and quantum_layers(model.discriminator) and not backend.differentiable:
        raise UserError(
            f"--loss: {options.loss} differentiates the discriminator's circuits twice, which {backend.name} does not "
            "allow; take --loss hinge, or --backend exact"
        )


def parts(
    run: RunFolder, options: RunOptions, data: Data, model: Gan, batches: int, backend: Backend
) -> tuple[Adversaries, Gallery]:
    """The module and the callback that keeps the run."""
    module = Adversaries(model, options, batches, (data.mean, data.std))
    return module, Gallery(run, backend, options.samples_every or max(1, options.epochs // 20))


def threads_for(options: RunOptions) -> int:
    """1 where the largest tensors of a step are small, else torch's default."""
    widest = options.batch_size * max(options.generator_hidden, options.hidden)
    return 1 if widest < WORTH_SHARING else torch.get_num_threads()


def seconds_per_step(options: RunOptions, data: Data, steps: int = 16) -> float:
    """Processor time of a training step, both sides and penalties in their proportion; measured after a warm-up."""
    from lightning.pytorch import Trainer

    from qrkt_hw.data.batches import loader
    from qrkt_hw.models.factory import build_model
    from qrkt_hw.training.fit import quiet

    quiet()
    batches = loader(data.splits["train"], options.batch_size, options.seed)
    torch.set_num_threads(options.threads or threads_for(options))
    with torch.random.fork_rng(devices=[]):
        module = Adversaries(build_model(options, data.shape), options, len(batches), (data.mean, data.std))  # type: ignore[arg-type]
        clock = _Clock(steps)
        Trainer(
            accelerator=options.accelerator,
            devices=1,
            max_epochs=1 + (2 * steps) // len(batches),
            limit_train_batches=min(2 * steps, len(batches)),
            logger=False,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, batches)
    return clock.seconds / max(1, clock.counted)


class _Clock(Callback):
    """Processor seconds of the steps after the first ones."""

    def __init__(self, skipped: int) -> None:
        self.skipped, self.seen, self.counted, self.seconds, self.last = skipped, 0, 0, 0.0, 0.0

    def on_train_batch_start(self, *_: object) -> None:
        self.last = time.process_time()

    def on_train_batch_end(self, *_: object) -> None:
        self.seen += 1
        if self.seen > self.skipped:
            self.counted += 1
            self.seconds += time.process_time() - self.last


def conclude(run: RunFolder, options: RunOptions, model: Gan, gallery: Gallery, backend: Backend) -> None:
    """Loss curves, the animation and ``results.json``."""
    started = time.perf_counter()
    from qrkt_hw.plots.charts import plot_losses  # matplotlib, only now: it delays the first step

    plot_losses(gallery.history, run.plots / "losses.png")
    frames = sorted((run.path / "samples").glob("epoch-*.png"))
    save_animation(frames, run.path / "samples" / "training.gif")
    sides = {name: count_parameters(side) for name, side in model.sides.items()}
    write_json(
        run.results,
        {
            "parameters": count_parameters(model),
            "parameters_of": sides,
            "losses": {k: v for k, v in gallery.history[-1].items() if k.endswith(("loss", "score", "penalty"))},
            "qubits": largest_circuit(model),
            "summed_qubits": summed_qubits(model),
            "epochs": gallery.best_epoch,
            "weights_sha256": sha256(read_weights(model, run.model)),
            "data_sha256": run.data_sha256(),
            **spent(gallery, started),
            **where(options, backend),
        },
    )
