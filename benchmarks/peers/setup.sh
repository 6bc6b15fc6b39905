#!/bin/sh
# An environment for each peer, since they cannot share one: sh benchmarks/peers/setup.sh [folder]
set -e
folder=${1:-.peers}
python3 -m venv "$folder/tensorcircuit" && "$folder/tensorcircuit/bin/pip" install -q tensorcircuit-ng "jax[cpu]"
python3 -m venv "$folder/pennylane" && "$folder/pennylane/bin/pip" install -q pennylane "jax[cpu]"
