"""Data files of every kind are read rightly or refused in a sentence: hostile ones, too deep ones, ones too large."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from qrkt_hw.data import cifar, images, load_data, mnist
from qrkt_hw.data.batches import loader
from qrkt_hw.data.images import decoded, read_image
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import Config, DataConfig
from qrkt_hw.training import fit
from tests.data import writing


def options(dataset: str, root: Path, **more: object) -> DataConfig:
    return DataConfig(dataset=dataset, data_dir=root, **more)


def refused(dataset: str, root: Path, **more: object) -> str:
    """The one sentence with which a data set is refused, when it is loaded or when its images are read."""
    with pytest.raises(UserError) as error:
        data = load_data(options(dataset, root, **more))
        for split in data.splits.values():
            list(loader(split, 64))
    assert "\n" not in str(error.value)
    return str(error.value)


# -- CIFAR ------------------------------------------------------------------------------------------------------------


def python2(content: dict) -> bytes:
    """A pickle as the published files are: written by Python 2, protocol 2, strings of bytes."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + len(text).to_bytes(4, "little") + text

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + value.to_bytes(4, "little", signed=True)

    out = b"\x80\x02}q\x01("
    for key, value in content.items():
        out += string(key)
        if isinstance(value, np.ndarray):
            out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
            out += number(value.shape[0]) + number(value.shape[1]) + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
            out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(value.tobytes()) + b"tb"
        else:
            items = [string(item) if isinstance(item, bytes) else number(item) for item in value]
            out += b"]q\x02(" + b"".join(items) + b"e"
    return out + b"u."


HAND_WRITTEN = {
    b"data": np.random.default_rng(0).integers(0, 256, (300, 3072), np.uint8),
    b"labels": [k % 10 for k in range(300)],
    b"filenames": [b"%d.png" % k for k in range(300)],
}


@pytest.mark.parametrize("write", [python2, *(lambda c, p=p: pickle.dumps(c, protocol=p) for p in (2, 3, 4))])
def test_cifar_pickles_of_every_kind_read_as_python_reads_them(write):
    content = write(HAND_WRITTEN)
    found = cifar.read_pickle(content)
    expected = pickle.loads(content, encoding="bytes")
    assert {key.decode() for key in expected} == set(found)
    assert np.array_equal(found["data"], expected[b"data"]) and found["data"].dtype == np.uint8
    assert found["labels"] == expected[b"labels"] and found["filenames"] == expected[b"filenames"]


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<i2", "i1", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_whole_numbers_keep_byte_order_and_layout(dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    assert np.array_equal(cifar.read_pickle(pickle.dumps({"x": array}, protocol=2))["x"], array)


def objects(count: int) -> bytes:
    """``ndarray((count,), dtype('O'), bytes)``: pointers out of a file, which NumPy's own functions would follow."""
    raw = b"\x41" * (8 * count)
    array = b"cnumpy\nndarray\n(K" + bytes([count]) + b"\x85cnumpy\ndtype\nU\x01O\x85RT"
    array += len(raw).to_bytes(4, "little") + raw + b"tR"
    pixels = pickle.dumps(np.zeros((count, 3072), np.uint8), protocol=2)[2:-1]
    return b"\x80\x02}(U\x04data" + pixels + b"U\x06labels" + array + b"u."


HOSTILE = {
    "pointers": objects(30),
    "object-dtype": pickle.dumps({"data": np.array([None, 1], dtype=object)}, protocol=2),
    "state-of-a-global": b"\x80\x02}U\x04datacnumpy\ndtype\n}U\x05shapeK\x01sbs.",
    "memo-of-64-GB": b"\x80\x02}r\xff\xff\xff\x7f.",
    "deep-key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "many": b"\x80\x02(" + b"}" * 3_000_000 + b"l.",
}


LOAD = """
import resource, sys
from pathlib import Path
from qrkt_hw.data import load_data
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import Config, DataConfig
resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[2:]:
    try:
        load_data(DataConfig(dataset=sys.argv[1], data_dir=Path(folder)))
    except UserError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, file=sys.stderr)
"""


def loaded_elsewhere(dataset: str, *folders: Path) -> tuple[list[str], int]:
    """The sentences of a process of its own, which must survive, and by how many MiB it grew."""
    command = [sys.executable, "-c", LOAD, dataset, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.returncode, done.stderr[-300:])
    return done.stdout.splitlines(), int(done.stderr.splitlines()[-1])


def test_a_hostile_cifar_pickle_is_one_sentence(tmp_path):
    for kind, content in HOSTILE.items():
        writing.cifar_pickles(tmp_path / kind, "cifar10")
        (tmp_path / kind / "cifar10" / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    sentences, _ = loaded_elsewhere("cifar10", *(tmp_path / kind for kind in HOSTILE))
    assert len(sentences) == len(HOSTILE) and all("data_batch_1 is damaged" in text for text in sentences), sentences


def with_batch(root: Path, **changed: object) -> Path:
    writing.cifar_pickles(root, "cifar10")
    file = root / "cifar10" / "cifar-10-batches-py" / "data_batch_1"
    content = pickle.loads(file.read_bytes()) | {key.encode(): value for key, value in changed.items()}
    file.write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": [2**70] * 40},
        {"labels": [-1] * 40},
        {"labels": [10] * 40},
        {"labels": [True] * 40},
        {"labels": ["1"] * 40},
        {"labels": [1.5] * 40},
        {"labels": None},
        {"labels": [1] * 39},
        {"data": np.full((40, 3072), 300, np.int64)},
        {"data": np.zeros((40, 3071), np.uint8)},
        {"data": [[0] * 3072] * 40},
    ],
    ids=range(11),
)
def test_labels_and_pixels_that_cannot_be_are_refused(changed, tmp_path):
    assert "data_batch_1 is damaged" in refused("cifar10", with_batch(tmp_path, **changed))


def test_a_cifar_archive_that_unpacks_to_gigabytes_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "LARGEST_ARCHIVE", 2**22)
    (tmp_path / "cifar10").mkdir()
    archive = tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/readme.html")
        member.size = 2**24
        tar.addfile(member, io.BytesIO(bytes(2**24)))
    assert "unpacks to more than" in refused("cifar10", tmp_path)


def test_every_bit_of_a_cifar_archive_counts(tmp_path):
    writing.cifar_pickles(tmp_path, "cifar10", archive=True)
    archive = tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1  # of the checksum
    archive.write_bytes(bytes(content))
    assert "cannot be unpacked" in refused("cifar10", tmp_path)


# -- MNIST ------------------------------------------------------------------------------------------------------------


def idx(*shape: int, content: bytes = b"", kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


@pytest.mark.parametrize(
    "content",
    [
        b"", idx(), idx(*[1] * 255, content=b"\x00"), idx(2**31, 2**31, 2**31), idx(100, 28, 28),
        idx(100, 28, 28, content=bytes(100 * 784 + 1)), idx(100, 28, 28, content=bytes(78_400), kind=9),
        idx(100, 0, 0), idx(100, 14, 56, content=bytes(78_400)),
    ],
    ids=range(9),
)  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_of_odd_shapes_are_refused(content, packed, tmp_path):
    writing.mnist(tmp_path, packed=packed)
    file = next((tmp_path / "mnist").glob("train-images*"))
    file.write_bytes(gzip.compress(content) if packed else content)
    assert file.name in refused("mnist", tmp_path)


def test_no_more_is_unpacked_than_the_head_promises(tmp_path):
    """4 MB that unpack to 4 GB behind a head that promises 78 kB."""
    writing.mnist(tmp_path)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    zeros = gzip.compress(bytes(2**26))  # members of a gzip file follow each other
    file.write_bytes(gzip.compress(idx(100, 28, 28)) + zeros * 64)
    sentences, grown = loaded_elsewhere("mnist", tmp_path)
    assert len(sentences) == 1 and file.name in sentences[0] and grown < 300


def test_an_honest_head_of_many_gigabytes_is_refused(tmp_path):
    writing.mnist(tmp_path)
    file = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(idx(2**24, 28, 28)))
    assert "at most 1 GiB" in refused("mnist", tmp_path)
    assert mnist.LARGEST > 60_000 * 784


# -- images of other depths -------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
# what 16 bits are in 8, rounded
EIGHT = np.round(RAMP.astype(np.float64) * 255 / 65535).astype(np.uint8)


def saved(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


DEEP = {"png": saved(RAMP), "tiff": saved(RAMP, "TIFF"), "int32": saved(RAMP.astype(np.int32), "TIFF")}


def parquet_of(root: Path, contents: list, labels: list, kinds: object = None, name: str = "mnist") -> Path:
    for part in ("train", "test", "validation"):
        (root / name).mkdir(exist_ok=True)
        columns = {"image": [{"bytes": content, "path": None} for content in contents], "label": labels}
        pq.write_table(pa.table(columns), root / name / f"{part}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_are_scaled_wherever_images_are_read(kind, tmp_path):
    content = DEEP[kind]
    expected = torch.from_numpy(EIGHT).float() / 255
    # a folder of images
    for k in range(20):
        folder = tmp_path / "deep" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.{'png' if kind == 'png' else 'tiff'}").write_bytes(content)
    data = load_data(options("folder:deep", tmp_path, image_size=32))
    pixel = data.splits["train"][[0]][0][0]
    back = pixel * torch.tensor(data.std).view(-1, 1, 1) + torch.tensor(data.mean).view(-1, 1, 1)
    torch.testing.assert_close(back, expected.expand(3, -1, -1))
    # parquet, in memory and as a stream
    parquet_of(tmp_path, [content] * 20, [k % 10 for k in range(20)])
    grey = load_data(options("mnist", tmp_path))
    back = grey.splits["test"][[0]][0][0] * grey.std[0] + grey.mean[0]
    torch.testing.assert_close(back[0], expected)
    parquet_of(tmp_path, [content] * 20, [0, 1] * 10, name="imagenet")
    stream = load_data(options("imagenet", tmp_path, image_size=32))
    back = next(iter(loader(stream.splits["test"], 1)))[0][0] * stream.std[0] + stream.mean[0]
    torch.testing.assert_close(back[0], expected)
    # --image, at its own size and resized
    file = tmp_path / "one.png"
    file.write_bytes(content)
    description = {"channels": 1, "image_size": 32, "mean": [0.0], "std": [1.0]}
    torch.testing.assert_close(read_image(file, description)[0], expected)
    half = read_image(file, {**description, "image_size": 16, "resized": True})[0]
    torch.testing.assert_close(half, expected.view(16, 2, 16, 2).mean((1, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8),
        np.full((8, 8), -1, np.int32),
        np.full((8, 8), 65536, np.int32),
    ],
    ids=["float", "negative", "more-than-16-bits"],
)
@pytest.mark.parametrize("resized", [True, False])
def test_pixels_that_are_not_8_or_16_bits_are_refused(array, resized, tmp_path):
    file = tmp_path / "odd.tiff"
    Image.fromarray(array).save(file)
    description = {"channels": 3, "image_size": 8, "mean": [0.5] * 3, "std": [1.0] * 3, "resized": resized}
    with pytest.raises(UserError, match="8 or 16 bits"):
        read_image(file, description)


def test_palettes_and_transparency_do_not_change_the_colours():
    colour = writing.pixels(1, 8)[0] // 64 * 64
    plain = Image.fromarray(colour)
    alpha = plain.copy()
    alpha.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    palette = plain.quantize(64)
    seen = {}
    for name, image in {"plain": plain, "alpha": alpha, "palette": palette}.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **({"transparency": bytes(range(64))} if name == "palette" else {}))
        seen[name] = [decoded(buffer.getvalue(), name, channels, None) for channels in (1, 3)]
    for grey, rgb in seen.values():
        assert torch.equal(grey, seen["plain"][0]) and torch.equal(rgb, seen["plain"][1])


# -- files that are something else ------------------------------------------------------------------------------------


def psd() -> bytes:
    """The smallest Photoshop file."""
    head = b"8BPS\x00\x01" + bytes(6) + b"\x00\x03" + (8).to_bytes(4, "big") * 2 + b"\x00\x08\x00\x03"
    return head + bytes(12) + b"\x00\x00" + bytes(192)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(("content", "own"), [(psd(), "PSD"), (EPS, "EPS")], ids=["psd", "eps"])
def test_only_formats_of_pixels_are_opened(content, own, tmp_path):
    with Image.open(io.BytesIO(content)) as image:  # Pillow itself would
        assert image.format == own and own not in images.FORMATS
    file = tmp_path / "cat.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cat\.png is not an image that can be read \(PNG, JPEG"):
        read_image(file, {"channels": 3, "image_size": 8, "mean": [0.5] * 3, "std": [1.0] * 3})


def pets(root: Path) -> Path:
    return writing.image_folder(root / "pets", {"train": 40, "val": 10})


def test_a_pipe_in_a_folder_is_refused(tmp_path):
    os.mkfifo(pets(tmp_path) / "train" / "cat" / "pipe.png")
    assert "pipe.png is no file" in refused("folder:pets", tmp_path)
    writing.imdb(tmp_path)
    for part in ("train", "test"):
        for kind in ("pos", "neg"):
            (tmp_path / "aclImdb" / part / kind).mkdir(parents=True)
            os.mkfifo(tmp_path / "aclImdb" / part / kind / "0.txt")
    assert "0.txt is no file" in refused("imdb", tmp_path)


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
def test_a_pipe_in_the_place_of_a_data_file_is_refused(dataset, tmp_path):
    (writing.cifar_pickles(tmp_path, "cifar10") if dataset == "cifar10" else writing.imagenet_parquet(tmp_path))
    file = next(tmp_path.rglob("data_batch_2" if dataset == "cifar10" else "train-00001*"))
    file.unlink()
    os.mkfifo(file)
    assert file.name in refused(dataset, tmp_path)


def test_a_folder_of_one_class_is_refused_and_serves_a_gan(tmp_path):
    writing.image_folder(tmp_path / "cats", {"train": 40, "val": 10}, names=("cat",))
    cats = Config(dataset="folder:cats", data_dir=tmp_path)
    with pytest.raises(UserError, match="one class \\('cat'\\)"):
        fit.start(cats, tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()
    assert load_data(cats.data).shape.classes == 1


def test_images_of_huge_dimensions_are_refused(tmp_path):
    one = tmp_path / "long.png"
    Image.new("1", (200_000, 1)).save(one)
    with pytest.raises(UserError, match="too long"):
        decoded(one, "long.png", 3, 64)
    Image.new("1", (2**14, 2**13 + 1)).save(one)
    with pytest.raises(UserError, match=r"16384x8193 pixels; at most"):
        decoded(one, "long.png", 3, 64)


# -- parquet ----------------------------------------------------------------------------------------------------------

GOOD = saved(np.zeros((8, 8, 3), np.uint8))
ODD_ROWS = {
    "null-image": ([None] * 20, [0, 1] * 10),
    "null-label": ([GOOD] * 20, [0, None] * 10),
    "text-label": ([GOOD] * 20, ["0", "1"] * 10),
    "fraction": ([GOOD] * 20, [0.5, 1.0] * 10),
    "truth": ([GOOD] * 20, [True, False] * 10),
    "negative": ([GOOD] * 20, [-1, 1] * 10),
    "too-large": ([GOOD] * 20, [2**63 - 1, 1] * 10),
    "no-rows": ([], []),
    "not-square": ([saved(np.zeros((8, 9, 3), np.uint8))] * 20, [0, 1] * 10),
}


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [(d, k) for d in ("mnist", "cifar10", "imagenet") for k in ODD_ROWS if (d, k) != ("imagenet", "not-square")],
)
def test_parquet_rows_that_are_no_image_with_a_label_are_refused(dataset, kind, tmp_path):
    assert "parquet" in refused(dataset, parquet_of(tmp_path, *ODD_ROWS[kind], name=dataset))


def test_the_size_of_training_and_test_images_must_agree(tmp_path):
    parquet_of(tmp_path, [GOOD] * 20, [0, 1] * 10, name="cifar10")
    larger = [{"bytes": saved(np.zeros((16, 16, 3), np.uint8)), "path": None}] * 20
    table = pa.table({"image": larger, "label": [0, 1] * 10})
    pq.write_table(table, tmp_path / "cifar10" / "test-00000-of-00001.parquet")
    assert "8x8 and 16x16" in refused("cifar10", tmp_path)


def test_a_pickle_is_never_unpickled():
    """The reader's opcodes are its own: none of those by which a pickle calls or builds anything else is taken."""
    for opcode in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "EXT1", "NEXT_BUFFER"):
        (code,) = [o.code for o in pickletools.opcodes if o.name == opcode]
        with pytest.raises((ValueError, IndexError)):
            cifar.read_pickle(b"\x80\x02}" + code.encode("latin1") + b"os\nsystem\n.")
