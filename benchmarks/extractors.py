"""The reference classifiers that come with the package: made anew, or checked, by one command.

Their features give FID and KID of ``qrkt-hw evaluate`` where no Inception weights are at hand.
Usage: ``OMP_NUM_THREADS=1 python benchmarks/extractors.py [NAME ...] [--data-dir DIR]``; NAMEs are those of DATA.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qrkt_hw.data import load_data
from qrkt_hw.models import metrics
from qrkt_hw.runs.config import Config

# by name: options, and the data set's folder under --data-dir
DATA: dict[str, tuple[dict[str, Any], str]] = {
    "digits": ({"dataset": "digits"}, ""),
    "mnist": ({"dataset": "mnist"}, ""),
    "cifar10": ({"dataset": "cifar10"}, ""),
    "imagenet-32": ({"dataset": "imagenet", "image_size": 32}, "imagenette"),
    "imagenet-64": ({"dataset": "imagenet", "image_size": 64}, "imagenette"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(DATA), metavar="NAME", help=f"of {', '.join(DATA)}")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        options, folder = DATA[name]
        where = {} if name == "digits" else {"data_dir": given.data_dir / folder}
        started = time.process_time()
        data = load_data(Config(**options, **where).data)
        place = metrics.EXTRACTORS / metrics.file_name(data)
        _, found = metrics.reference_classifier(data, Console(), place)
        accuracy = found["quality"]["test_accuracy"]
        seconds = time.process_time() - started
        print(f"{name:12} {place.name}  sha256 {found['sha256']}  accuracy {accuracy:.4f}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
