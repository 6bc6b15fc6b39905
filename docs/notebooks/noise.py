# %% [markdown]
# # Noise, mitigation, and a comparison that is fair
#
# The same weights on exact values and on a noisy device, on the same images: how far are the values off, which
# classes change, what does mitigation correct, and can so few images show it?

# %%
from matplotlib import pyplot as plt

import qrkt_hw
from qrkt_hw.errors import in_words

run = qrkt_hw.train("digits-hardware", epochs=8, seed=0, figures=False)
print(f"test accuracy with exact values: {run.results['test.accuracy']:.3f}")

# %% [markdown]
# ## On the device
#
# `fake_torino` has the couplings and the noise of a real device on the day of its calibration. `value_errors=True`
# compares every value with the exact one at the same inputs.

# %%
there = run.infer(backend="fake_torino", shots=1024, limit=120, value_errors=True)
low, high = there["interval"]
print(f"there  {there['accuracy']:.3f}  95 % interval {low:.3f} to {high:.3f}")
print(f"exact  {there['exact_accuracy']:.3f}, the same images; equal classes: {there['agreement']:.3f}")
print(f"correct there only, exact only: {there['discordant']}, p = {there['p_value']:.2g} (McNemar)")

# %%
rows = there["layers"]
words = in_words(row["layer"] for row in rows)
figure, axes = plt.subplots(figsize=(6, 2.2), num="mean error of the values of each layer")
axes.barh([words[row["layer"]] for row in rows], [row["mean_error"] for row in rows], color="#2b6cb0")
axes.invert_yaxis()
axes.axvline(1 / 1024**0.5, color="#718096", linestyle=":", label="most that shots alone give")
axes.set(xlabel="mean error of an expectation value")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## Mitigation
#
# Every way on the same images. The error of the values resolves what the accuracy of so few images cannot: look at
# the intervals before you pay for a method.

# %%
ways = run.infer(backend="fake_torino", shots=1024, limit=40, compare_mitigation=True)["mitigations"]
ways = [way for way in ways if "rms_error" in way]
for way in ways:
    error, accuracy, seconds = way["rms_error"], way["accuracy"], way["seconds"]
    print(f"{way['mitigation']:21} error {error:.4f}  accuracy {accuracy:.3f}  {seconds:6.1f} QPU seconds")

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), num="error of the values and QPU seconds by mitigation")
for way, marker in zip(ways, "osD^vP"):
    low, high = way["rms_interval"]
    bars = [[way["rms_error"] - low], [high - way["rms_error"]]]
    axes.errorbar(way["seconds"], way["rms_error"], yerr=bars, fmt=marker, capsize=4, label=way["mitigation"])
axes.set(xlabel="QPU seconds of 40 images", ylabel="rms error of the values")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# ## A and B
#
# Does training with the noise of shots help on a device with few of them? A and B differ in that alone, start at the
# same weights and see the same batches.

# %%
other = qrkt_hw.train("digits-hardware", epochs=8, seed=0, shot_noise=16, noise_device="fake_torino", figures=False)
for name, one in {"A, trained without noise": run, "B, trained with noise": other}.items():
    few = one.infer(backend="fake_torino", shots=16)
    low, high = few["interval"]
    print(f"{name:25} exact {few['exact_accuracy']:.3f}  16 shots {few['accuracy']:.3f} ({low:.3f} to {high:.3f})")

# %% [markdown]
# One seed of short trainings decides nothing;
# [several seeds](../backends.md#training-with-noise-a-gain-with-few-shots-only) do.
# More: [mitigation](../packing.md#mitigation), [few shots](../backends.md#few-shots).
