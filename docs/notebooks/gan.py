# %% [markdown]
# # A GAN that draws
#
# Generator and discriminator are transformers whose attention projections are quantum circuits. This notebook trains
# one on the 8x8 digits of scikit-learn for a tenth of the epochs of its preset, and watches it learn to draw.

# %%
from matplotlib import pyplot as plt
from PIL import Image

import qrkt_hw

run = qrkt_hw.train("qrkt-gan-digits", epochs=30, samples_every=1, seed=0)
print(f"{len(run.history)} epochs in {run.results['train_seconds']:.0f} s")

# %% [markdown]
# ## Epoch by epoch
#
# The same noise after 1, 5, 15 and 30 epochs. Nothing is chosen.

# %%
figure, panels = plt.subplots(1, 4, figsize=(9, 2.5), num="images from the same noise after 1, 5, 15 and 30 epochs")
for axes, epoch in zip(panels, (1, 5, 15, 30)):
    picture = Image.open(run.path / "samples" / f"epoch-{epoch:05d}.png")
    side = min(picture.size) // 2
    axes.imshow(picture.crop((0, 0, side, side)), cmap="gray")
    axes.set_title(f"epoch {epoch}", fontsize=10)
    axes.axis("off")

# %% [markdown]
# ## The balance
#
# A GAN learns while the discriminator tells real from generated images, and not too well. With this loss a generator
# at log 2 and a discriminator at 2 log 2 mean that the discriminator guesses.

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), num="losses of generator and discriminator over epochs")
epochs = [row["epoch"] for row in run.history]
axes.plot(epochs, [row["generator_loss"] for row in run.history], color="#2b6cb0", label="generator")
axes.plot(epochs, [row["discriminator_loss"] for row in run.history], "--", color="#dd6b20", label="discriminator")
axes.set(xlabel="epoch", ylabel="loss")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)

# %% [markdown]
# ## Between two images
#
# Each row walks from one point of the noise to another in eight steps.

# %%
# !qrkt-hw generate --interpolate --samples 32 --plot between.png --quiet

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), num="rows of images between two points of the noise")
axes.imshow(plt.imread("between.png"), cmap="gray")
axes.axis("off")

# %% [markdown]
# ## How good are they?
#
# `evaluate` compares statistics of generated and real images, with the features of a classifier of the digits.
# [Train a GAN](../gan.md) has the figures of longer trainings.

# %%
# !qrkt-hw evaluate --samples 1000 --quiet
