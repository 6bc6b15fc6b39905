# %% [markdown]
# # Read a run
#
# Every training leaves a folder that holds all of it: options, circuits, weights, figures. This notebook trains a small
# model and reads everything out of its folder.

# %%
import torch
from matplotlib import pyplot as plt

import qrkt_hw

run = qrkt_hw.train("digits-hardware", epochs=12, seed=0)
for file in sorted(run.path.rglob("*")):
    if file.is_file():
        print(f"{file.stat().st_size:>9,} bytes  {file.relative_to(run.path)}")

# %% [markdown]
# ## Figures
#
# `results` is one flat row, so a list of runs is a table of pandas.

# %%
for key in ("test.accuracy", "test.auroc", "parameters.total", "parameters.quantum", "best_epoch", "train_seconds"):
    print(f"{key:20} {run.results[key]:,.4g}")
print("options that are no defaults:", *(key for key in run.results if key.startswith("config.")), sep="\n  ")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), num="losses and validation accuracy over epochs")
epochs = [row["epoch"] for row in run.history]
left.semilogy(epochs, [row["train_loss"] for row in run.history], "--", color="#718096", label="training")
left.semilogy(epochs, [row["val_loss"] for row in run.history], color="#2b6cb0", label="validation")
left.legend(frameon=False)
left.set(xlabel="epoch", ylabel="cross-entropy")
right.plot(epochs, [row["val_accuracy"] for row in run.history], color="#2b6cb0")
right.axvline(run.results["best_epoch"], color="#718096", linestyle=":", label="best epoch")
right.legend(frameon=False)
right.set(xlabel="epoch", ylabel="validation accuracy")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## The model
#
# `run.model` is an ordinary torch module that knows how to read images. Here are digits that it has never seen, and
# those that it gets wrong.

# %%
from sklearn.datasets import load_digits

model = run.model
images = load_digits().images
labels = load_digits().target
with torch.no_grad():
    logits = model(model.preprocess(images))
predicted = logits.argmax(-1).numpy()
wrong = [k for k in range(len(labels)) if predicted[k] != labels[k]]
print(f"{len(wrong)} of all {len(labels):,} digits are wrong, training images included")
figure, panels = plt.subplots(1, 8, figsize=(9, 1.5), num="digits that the model gets wrong: true and predicted class")
for axes, k in zip(panels, wrong):
    axes.imshow(images[k], cmap="gray_r")
    axes.set_title(f"{labels[k]}, not {predicted[k]}", fontsize=9)
    axes.axis("off")

# %% [markdown]
# ## The circuits
#
# Each layer has circuits with trained angles, which any Qiskit program can run.

# %%
layer = model.blocks[0].fields[0].attention.query.layer
for key in ("ansatz", "qubits", "groups", "weights", "depth", "two_qubit_gates", "method"):
    print(f"{key:16} {layer.specs()[key]}")
layer.circuit(0).draw("mpl", scale=0.7, fold=-1).set_label("the first circuit of the queries, with its trained angles")

# %% [markdown]
# ## What are the circuits for?
#
# Replace what they return: by its mean over the batch, which removes them, or by a sine of each input, which is the
# simplest classical stand-in.

# %%
kept = run.infer(ablate=["batch-mean", "sine"])
print(f"as trained   {kept['accuracy']:.3f}")
for name, found in kept["ablations"].items():
    print(f"{name:12} {found['accuracy']:.3f}")

# %% [markdown]
# ## Again, elsewhere
#
# The folder repeats its figures on any machine, and `train --resume` trains longer. More:
# [the run folder](../run-folder.md), [runs](../runs.md).

# %%
# !qrkt-hw infer --quiet
