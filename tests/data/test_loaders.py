"""Each data set is read from files in its true format; what is damaged or missing is named."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from qrkt_hw.data import load_data
from qrkt_hw.data.batches import loader
from qrkt_hw.data.parquet import Stream
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import Config
from tests.data import writing

pytestmark = pytest.mark.acceptance


def options(dataset, root, **more):
    return Config(dataset=dataset, data_dir=root, **more).data


def cifar_parquet(root):
    for part, count in (("train", 100), ("test", 20)):
        file = root / "cifar10" / f"{part}-00000-of-00001.parquet"
        writing.image_parquet(file, count, 32, [f"name {k}" for k in range(10)], "img", "label")
    return root


def pets(root, parts, name="pets"):
    return writing.image_folder(root / name, parts).parent


# name: (writer, data set, counts, channels, size, classes, first class name)
CASES = {
    "mnist-gz": (lambda r: writing.mnist(r), "mnist", (90, 10, 20), 1, 28, 10, "0"),
    "mnist-plain": (lambda r: writing.mnist(r, packed=False), "mnist", (90, 10, 20), 1, 28, 10, "0"),
    "cifar10": (lambda r: writing.cifar_pickles(r, "cifar10"), "cifar10", (180, 20, 100), 3, 32, 10, "class 0"),
    "cifar10-tar": (lambda r: writing.cifar_pickles(r, "cifar10", archive=True),
                    "cifar10", (180, 20, 100), 3, 32, 10, "class 0"),
    "cifar10-parquet": (cifar_parquet, "cifar10", (90, 10, 20), 3, 32, 10, "name 0"),
    "cifar100": (lambda r: writing.cifar_pickles(r, "cifar100"), "cifar100", (180, 20, 100), 3, 32, 100, "class 0"),
    "folder": (lambda r: pets(r, {"train": 40, "val": 10}), "folder:pets", (36, 4, 10), 3, 64, 2, "cat"),
    "folder-flat": (lambda r: pets(r, {".": 40}), "folder:pets", (32, 4, 4), 3, 64, 2, "cat"),
    "imagenet-folder": (lambda r: pets(r, {"train": 40, "val": 10}, "imagenet"),
                        "imagenet", (36, 4, 10), 3, 64, 2, "cat"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_counts_names_and_normalisation(case, tmp_path):
    write, dataset, counts, channels, size, classes, name = CASES[case]
    data = load_data(options(dataset, write(tmp_path)))
    assert tuple(len(data.splits[s]) for s in ("train", "validation", "test")) == counts
    assert (data.shape.channels, data.shape.image_size, data.shape.classes) == (channels, size, classes)
    assert data.class_names[0] == name and len(data.class_names) == classes
    images, labels = data.splits["train"][list(range(counts[0]))]
    assert images.shape == (counts[0], channels, size, size) and images.dtype == torch.float32
    assert labels.dtype == torch.int64
    # normalised by the training part, and by it alone
    assert images.mean().abs() < 1e-3 and (images.std() - 1).abs() < 1e-2


def test_images_keep_their_labels(tmp_path):
    data = load_data(options("mnist", writing.mnist(tmp_path)))
    original, labels = writing.pixels(20, 28, 1)[..., 0], writing.balanced(20, 10)
    images, found = data.splits["test"][list(range(20))]
    back = (images[:, 0] * data.std[0] + data.mean[0]) * 255
    assert np.allclose(back.numpy(), original, atol=0.01)
    assert found.tolist() == labels.tolist()


def test_the_split_does_not_depend_on_the_seed_and_the_limit_is_balanced(tmp_path):
    root = writing.mnist(tmp_path)
    first, second = (load_data(options("mnist", root, seed=seed, limit=50)) for seed in (0, 1))
    for name in first.splits:
        a, b = (d.splits[name][list(range(len(d.splits[name])))] for d in (first, second))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert np.bincount(first.splits["train"].labels).tolist() == [5] * 10
    assert len(first.splits["validation"]) == 10


def collected(data, workers, seed=3, epoch=2, augment="crop-flip", split="train"):
    batches = loader(data.splits[split], 16, seed, workers, augment)
    batches.sampler.set_epoch(epoch)
    return [(x.clone(), y.clone()) for x, y in batches]


@pytest.mark.parametrize("dataset", ["mnist", "imagenet"])
def test_order_and_augmentation_depend_on_seed_and_epoch_alone(dataset, tmp_path):
    root = writing.mnist(tmp_path) if dataset == "mnist" else writing.imagenet_parquet(tmp_path)
    data = load_data(options(dataset, root, image_size=16))
    alone, shared = collected(data, 0), collected(data, 2)
    assert len(alone) == len(shared) == -(-len(data.splits["train"]) // 16)
    for (x, y), (other, labels) in zip(alone, shared, strict=True):
        assert torch.equal(x, other) and torch.equal(y, labels)
    assert not multiprocessing.active_children()
    later = collected(data, 0, epoch=3)
    assert not torch.equal(alone[0][0], later[0][0])
    plain = collected(data, 0, augment="none")
    assert torch.equal(plain[0][1], alone[0][1]) and not torch.equal(plain[0][0], alone[0][0])


def test_a_stream_holds_every_row_once(tmp_path):
    data = load_data(options("imagenet", writing.imagenet_parquet(tmp_path), image_size=16))
    assert data.class_names == ("ant", "bee", "cat", "dog")
    sizes = {name: len(part) for name, part in data.splits.items()}
    assert sizes["train"] + sizes["validation"] == 120 and sizes["test"] == 20 and sizes["validation"] > 0
    rows = [x for s in ("train", "validation") for x, _ in collected(data, 0, augment="none", split=s)]
    assert len(torch.cat(rows).flatten(1).unique(dim=0)) == 120
    few = load_data(options("imagenet", tmp_path, image_size=16, limit=10))
    assert isinstance(few.splits["train"], Stream) and sum(len(y) for _, y in collected(few, 0)) == 10


@pytest.mark.slow
def test_memory_is_bounded_for_a_stream(tmp_path):
    # 118 MB of images in files of 20 MB; the process may grow by far less
    for k in range(6):
        file = tmp_path / "imagenet" / f"train-{k:05}-of-00006.parquet"
        writing.image_parquet(file, 25, 512, ["a", "b"], "image", "label", "BMP")
    writing.image_parquet(tmp_path / "imagenet" / "validation-0.parquet", 4, 32, ["a", "b"], "image", "label")
    total = sum(f.stat().st_size for f in tmp_path.rglob("train-*.parquet")) / 2**20
    assert total > 105
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from qrkt_hw.data import load_data, parquet
        from qrkt_hw.data.batches import loader
        from qrkt_hw.runs.config import Config
        parquet.WINDOW = 16
        data = load_data(Config(dataset="imagenet", data_dir=Path(sys.argv[1]), image_size=16).data)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before, count = peak(), 0
        for x, y in loader(data.splits["train"], 8, 0):
            count += len(y)
        print(count, len(data.splits["train"]), peak() - before)
    """)
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    count, expected, growth = result.stdout.split()
    assert count == expected and float(growth) < 80, result.stdout


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "mnist": (lambda r: writing.mnist(r), "mnist", "train-images-idx3-ubyte.gz"),
    "mnist-plain": (lambda r: writing.mnist(r, packed=False), "mnist", "t10k-labels-idx1-ubyte"),
    "cifar10": (lambda r: writing.cifar_pickles(r, "cifar10"), "cifar10", "data_batch_3"),
    "cifar10-tar": (lambda r: writing.cifar_pickles(r, "cifar10", True), "cifar10", "cifar-10-python.tar.gz"),
    "cifar10-parquet": (cifar_parquet, "cifar10", "train-00000-of-00001.parquet"),
    "imdb": (lambda r: writing.imdb(r), "imdb", "train-00000-of-00001.parquet"),
    "imagenet": (lambda r: writing.imagenet_parquet(r), "imagenet", "train-00001-of-00003.parquet"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_named(case, tmp_path):
    write, dataset, file = DAMAGES[case]
    write(tmp_path)
    cut(next(tmp_path.rglob(file)))
    with pytest.raises(UserError, match=file):
        load_data(options(dataset, tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_when_it_is_read(workers, tmp_path):
    writing.image_folder(tmp_path / "pets", {"train": 40, "val": 10})
    cut(tmp_path / "pets" / "val" / "cat" / "0004.png")
    data = load_data(options("folder:pets", tmp_path))
    with pytest.raises(UserError, match=r"^\S*0004.png is not an image"):
        list(loader(data.splits["test"], 4, workers=workers))
    assert not multiprocessing.active_children()


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    writing.cifar_pickles(tmp_path, "cifar10")
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({b"data": Harm()}))
    with pytest.raises(UserError, match="data_batch_1"):
        load_data(options("cifar10", tmp_path))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "cifar100", "imdb", "imagenet", "folder:pets"])
def test_a_missing_data_set_says_where_it_was_looked_for(dataset, tmp_path):
    with pytest.raises(UserError) as error:
        load_data(options(dataset, tmp_path))
    message = str(error.value)
    assert str(tmp_path) in message and "\n" not in message
    assert dataset.startswith("folder") or "https://" in message


def test_words_come_from_the_training_part_only(tmp_path):
    data = load_data(options("imdb", writing.imdb(tmp_path), text_length=16, vocabulary=1000))
    assert data.class_names == ("neg", "pos") and data.shape.length == 16
    assert data.vocabulary[:2] == ("<pad>", "<unk>") and "wonderful" in data.vocabulary
    made = [word for word in data.vocabulary if word.startswith("train") or word.startswith("test")]
    # one word per text is its own: those of validation and test are unknown
    assert len(made) == len(data.splits["train"]) == 36
    assert "br" not in data.vocabulary
    ids, labels = data.splits["train"][list(range(36))]
    assert ids.max() < len(data.vocabulary) and labels.sum() == 18
    small = load_data(options("imdb", tmp_path, vocabulary=5))
    assert len(small.vocabulary) == 5 and "a" in small.vocabulary


@pytest.mark.parametrize("kind", ["imdb", "folder"])
def test_the_first_samples_hold_every_class(kind, tmp_path):
    """Both come sorted by class: `infer --limit 20` must not see one class only, nor a batch tell it by its mean."""
    if kind == "imdb":
        data = load_data(options("imdb", writing.imdb(tmp_path, train=400, test=200)))
    else:
        data = load_data(options("folder:pets", pets(tmp_path, {"train": 400, "test": 200})))
    for split in ("validation", "test"):
        _, labels = data.splits[split][list(range(20))]
        assert 4 <= int(labels.sum()) <= 16, split
        again = load_data(options(data.name, tmp_path)).splits[split][list(range(20))][1]
        assert torch.equal(labels, again)
