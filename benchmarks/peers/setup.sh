#!/bin/sh
# An environment for each peer of layer_step.py, and one for those of chain.py: sh benchmarks/peers/setup.sh [folder]
set -e
folder=${1:-.peers}
python3 -m venv "$folder/tensorcircuit" && "$folder/tensorcircuit/bin/pip" install -q tensorcircuit-ng "jax[cpu]"
python3 -m venv "$folder/pennylane" && "$folder/pennylane/bin/pip" install -q pennylane "jax[cpu]"
python3 -m venv "$folder/all" && "$folder/all/bin/pip" install -q qulacs pennylane pennylane-lightning tensorcircuit-ng "jax[cpu]"  # for chain.py
