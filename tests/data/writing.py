"""Small data sets in their true formats."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def pixels(count: int, size: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(count + size).integers(0, 256, (count, size, size, channels), np.uint8)


def balanced(count: int, classes: int) -> np.ndarray:
    return np.arange(count) % classes


def mnist(root: Path, train: int = 100, test: int = 20, packed: bool = True) -> Path:
    folder = root / "mnist"
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        arrays = {"images-idx3": pixels(count, 28, 1)[..., 0], "labels-idx1": balanced(count, 10).astype(np.uint8)}
        for kind, array in arrays.items():
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            content, name = head + array.tobytes(), f"{part}-{kind}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return root


def cifar_pickles(root: Path, name: str, archive: bool = False, train: int = 200, test: int = 100) -> Path:
    ten = name == "cifar10"
    inner = "cifar-10-batches-py" if ten else "cifar-100-python"
    folder = root / name / inner
    folder.mkdir(parents=True)
    classes, label = (10, b"labels") if ten else (100, b"fine_labels")
    files = {f"data_batch_{k}": train // 5 for k in range(1, 6)} | {"test_batch": test} if ten else {}
    for file, count in (files or {"train": train, "test": test}).items():
        data = pixels(count, 32).transpose(0, 3, 1, 2).reshape(count, -1)
        content = {b"data": data, label: balanced(count, classes).tolist()}
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    meta = ("batches.meta", b"label_names") if ten else ("meta", b"fine_label_names")
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [b"class %d" % k for k in range(classes)]}, protocol=2))
    if archive:
        packed = root / name / ("cifar-10-python.tar.gz" if ten else "cifar-100-python.tar.gz")
        with tarfile.open(packed, "w:gz") as tar:
            tar.add(folder, arcname=inner)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return root


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def image_parquet(
    file: Path, count: int, size: int, names: list[str], image: str, label: str, kind: str = "PNG"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=names)})
    rows = {
        image: [{"bytes": encoded(array, kind), "path": None} for array in pixels(count, size)],
        label: balanced(count, len(names)).tolist(),
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)


def imagenet_parquet(root: Path, shards: int = 3, rows: int = 40, size: int = 24) -> Path:
    names = ["ant", "bee", "cat", "dog"]
    for k in range(shards):
        file = root / "imagenet" / f"train-{k:05}-of-{shards:05}.parquet"
        image_parquet(file, rows, size + k, names, "image", "label")
    image_parquet(root / "imagenet" / "validation-00000-of-00001.parquet", 20, size, names, "image", "label")
    return root


def image_folder(root: Path, parts: dict[str, int], size: int = 20, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for part, count in parts.items():
        for k, array in enumerate(pixels(count, size)):
            folder = root / part / names[k % len(names)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{k:04}.png")
    return root


GOOD, BAD = ("a wonderful film , warm and funny", "a dull film , slow and empty")


def imdb(root: Path, train: int = 40, test: int = 20) -> Path:
    folder = root / "imdb"
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        texts = [f"{(BAD, GOOD)[2 * k // count]} {part}{k}<br /><br />" for k in range(count)]
        labels = [2 * k // count for k in range(count)]
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        )
        made = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        made.to_parquet(folder / f"{part}-00000-of-00001.parquet")
    return root
