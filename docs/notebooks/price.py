# %% [markdown]
# # What a hardware run costs, and how packing cuts it
#
# QPU time is billed by the second. This notebook prices a model before anything is sent, and shows where the
# saving comes from. Nothing is paid, and no account is needed: prices and calibrations come with the packages.

# %%
import json
import subprocess

from matplotlib import pyplot as plt


def report(*words):
    """What `qrkt-hw resources` found, as a dictionary."""
    line = ["qrkt-hw", "resources", "--json", *map(str, words)]
    return json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


# %% [markdown]
# ## The bill
#
# Fifty images through the preset `digits-hardware` on a Heron of 133 qubits, in three ways: a PUB for each observable,
# as `EstimatorQNN` submits them; a PUB for each layer, which reads all observables from the same shots; and packed.

# %%
found = report("--preset", "digits-hardware", "--backend", "fake_torino", "--samples", 50)
ways = {"estimator": "a PUB an observable", "broadcast": "a PUB a layer", "packed": "packed"}
costs = {ways[c["way"]]: c for c in found["costs"] if c["task"].startswith("infer")}
for name, cost in costs.items():
    print(f"{name:20} {cost['executions']:>10,} executions {cost['seconds']:>8,.1f} s {cost['usd']['payg']:>8,.0f} USD")

# %%
figure, axes = plt.subplots(figsize=(6, 1.9), num="QPU seconds of 50 images in three ways")
axes.barh(list(costs), [c["seconds"] for c in costs.values()], color=["#cbd5e0", "#cbd5e0", "#2b6cb0"])
axes.invert_yaxis()
axes.set(xlabel="QPU seconds of 50 images")
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Where the saving comes from
#
# A circuit of four qubits leaves the rest of the chip idle. Replicas of it run side by side on every good region, so
# one execution evaluates many samples. Each colour below is a replica; orange is where the circuit would run alone.
# Regions with bad couplings or bad readout stay empty.

# %%
# !qrkt-hw resources --ansatz brickwork --qubits 4 --backend fake_torino --plot chip.png --quiet > report.txt

# %%
figure, axes = plt.subplots(figsize=(7, 6.3), num="replicas of a circuit of four qubits on 133 qubits")
axes.imshow(plt.imread("chip.png"))
axes.axis("off")

# %% [markdown]
# The report says how many replicas fit, and what the noise of the chip leaves of a circuit (ESP is the estimated
# success probability).

# %%
# !sed -n '/^ON FAKE_TORINO/,/^Device/p' report.txt

# %% [markdown]
# ## Shots
#
# Time is nearly proportional to shots once a job is longer than its two seconds of overhead. Few shots need a model
# that was trained for them ([few shots](../backends.md#few-shots)).

# %%
shots = [64, 256, 1024, 4096]
seconds = []
for count in shots:
    again = report("--preset", "digits-hardware", "--backend", "fake_torino", "--samples", 50, "--shots", count)
    seconds.append(next(c["seconds"] for c in again["costs"] if c["way"] == "packed" and c["task"].startswith("infer")))
    print(f"{count:5} shots: {seconds[-1]:6.1f} s")

# %%
figure, axes = plt.subplots(figsize=(6, 2.6), num="QPU seconds over shots")
axes.loglog(shots, seconds, "o-", color="#2b6cb0")
axes.set(xlabel="shots of each circuit", ylabel="QPU seconds, packed")
axes.set_xticks(shots, [str(count) for count in shots])
axes.minorticks_off()
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# More: [read the report](../resources.md#read-the-report), [packing](../packing.md), and
# [fit a budget](../backends.md#fit-a-budget), which searches shots, circuits and mitigation for given seconds.
