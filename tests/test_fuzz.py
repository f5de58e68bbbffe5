"""Hundreds of hostile and damaged inputs at every border, and faults at every write.

`make fuzz` runs it for longer, with other inputs each time.
"""

import csv
import errno
import io
import json
import os
import resource
import signal
import tarfile
import tempfile
import zipfile
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hostile import TEXTS, VALUES, changed, fuzz, fuzz_bytes, fuzz_files
from hypothesis import strategies as st
from PIL import Image
from planted import model, run_of
from safetensors.torch import save
from settings import check
from test_data import write
from workspace import RAW

from advprune.core import files
from advprune.core.claims import read_claims
from advprune.core.errors import UserError
from advprune.core.params import Params, load
from advprune.core.resume import Parts, unfinished
from advprune.core.settings import parse, text_of, yaml_of
from advprune.core.train_settings import DataSettings
from advprune.data import prepare
from advprune.data.imagefolder import read_image_folder
from advprune.models.audit import audit
from advprune.models.checkpoint import build, fill, header_spec, load_model, save_model, stored
from advprune.models.spec import spec_of
from advprune.models.tensor_file import read_weights
from advprune.models.weights import plain
from advprune.report.gate import judge
from advprune.report.gate_page import page
from advprune.report.read import records_of
from advprune.report.results import read_results, results
from advprune.report.revision import revision_of
from advprune.rl.settings import load as rl_load
from conftest import make_network


# --- settings ------------------------------------------------------------------------------------
def test_settings():
    def taken(raw):
        check(parse(Params, raw, "params.yaml"))

    extra = {"name": "PGD", "eps": "8/255", "alpha": 0.01, "steps": 2}
    known = RAW | {"attack": RAW["attack"] | {"extra": [extra]}}
    known["profiles"] = {"digits": RAW["profiles"]["digits"]}
    fuzz("settings", changed(known), taken, 80)


LETTERS = [*pairwise("abcdefghijk")]


@pytest.mark.parametrize(
    "text",
    [
        "seed: " + "9" * 5000,
        "seed: !!python/object/apply:os.system ['touch PWNED']",
        "seed: !what 1",
        "date: 2026-13-45",
        "a: " + "[" * 3000 + "]" * 3000,
        "a: &a [*a]",
        "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in LETTERS),
        "? {a: 1}\n: 2",
        "a: 1\na: 2",
        "\0",
        "x" * (1 << 21),
    ],
    ids=range(11),
)
def test_yaml_that_is_no_settings(text):
    with pytest.raises(UserError) as refused:
        parse(Params, yaml_of(text, "params.yaml"), "params.yaml")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert not Path("PWNED").exists()


def test_files_that_hold_no_settings(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes("profile: digits # é".encode("latin-1"))
    for name, words in (
        ("latin", "as UTF-8 text"),
        ("pipe", "it is no plain file"),
        ("empty", "holds no settings; restore it"),
        ("absent", "it is not there; run this in the root of the project"),
    ):
        with pytest.raises(UserError, match=f"{name}.* {words}"):
            load(tmp_path / name)
    wrong = b"\xff\xfe", b"- claims: {2020-13-45: 1}", b"- {claims: {x: 1}}", b"[" * 3000
    for reads, contents in product((read_claims, rl_load), wrong):
        (tmp_path / "x.yaml").write_bytes(contents)
        with pytest.raises(UserError, match=r"x\.yaml"):
            reads(tmp_path / "x.yaml")


def test_yaml_of_any_bytes(tmp_path):
    path = tmp_path / "params.yaml"
    text = b'profile: digits\nseed: 0\nrecipes: {standard: {method: "x"}}\n- &a [1, *a]\n<<: *a\n'
    fuzz_files("yaml", [text], path, lambda: yaml_of(text_of(path), "params.yaml"), 10_000)


# --- checkpoints ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def network():
    return make_network(torch.rand(8, 1, 8, 8), "resnet20", 2)


def opened(path):
    """As `advprune audit` and `load_model` open it."""
    tensors, metadata = read_weights(path)
    spec = header_spec(metadata, str(path))
    found = audit(tensors, spec)
    if found.sound and found.spec is not None:
        fill(build(found.spec), plain(tensors).tensors, str(path))
    if spec is not None and path.suffix == ".safetensors":
        load_model(path)


def test_headers(network, tmp_path):
    known = json.loads(spec_of(network).model_dump_json())
    known["layers"] = [{"kind": "sap", "settings": {"fraction": 1.0}, "where": "relu"}]
    path = tmp_path / "m.safetensors"

    def taken(spec):
        header = {"spec": json.dumps(spec, default=str)}
        path.write_bytes(save(stored(network), metadata=header))
        opened(path)

    known["layers"] *= 17
    with pytest.raises(UserError, match=r"the model spec: layers: .*at most 16 items"):
        taken(known)
    known["layers"] = known["layers"][:1]
    for settings in ({"fraction": 1.0, "form": "x"}, {"fraction": 0}, {"fraction": True}):
        with pytest.raises(UserError, match=r"the spec's layers of kind 'sap': (form|fraction)"):
            taken(known | {"layers": [{"kind": "sap", "settings": settings}]})
    sizes = st.sampled_from([1, 3, 16384, 100_000, 0, -1, [0.0] * 3, [float("nan")], [0.0]])
    fuzz("headers", changed(known, VALUES | sizes), taken, 50)


def test_bytes_of_checkpoints(network, tmp_path):
    state, zipped, legacy = stored(network), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 1}, zipped)
    torch.save({"state_dict": state}, legacy, _use_new_zipfile_serialization=False)
    header = {"spec": spec_of(network).model_dump_json()}
    own = save(state, metadata=header)

    def taken(contents):
        (tmp_path / "m.safetensors").write_bytes(contents)
        (tmp_path / "m.pt").write_bytes(contents)
        opened(tmp_path / "m.pt" if contents[:1] in (b"P", b"\x80") else tmp_path / "m.safetensors")

    fuzz_bytes("checkpoints", [own, zipped.getvalue(), legacy.getvalue()], taken, 2_000)


def test_odd_state_dicts(network, tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"a \(.*\) is no plain tensor"):
        opened(tmp_path / "a.safetensors")
    state, loop = stored(network), {"epoch": 1}
    loop["state_dict"] = loop
    conv = state["conv1.weight"]

    def first(tensor):
        return state | {"conv1.weight": tensor}

    taken = {
        "complex": first(conv.to(torch.complex64)),
        "deep": {"state_dict": {"model": {"net": {"weights": {"state_dict": state}}}}},
        "encoder": {"encoder": state, "optimizer": {"state": {}, "param_groups": []}},
    }
    refused = {
        "sparse": first(conv.to_sparse()),
        "stride 0": first(torch.zeros(()).expand(2, 1, 3, 3)),
        "self-referential": loop,
        "huge stride 0": first(torch.zeros(()).expand(10**6, 10**5, 3, 3)),
        "meta": first(torch.empty(2, 1, 3, 3, device="meta")),
        "float8": first(conv.to(torch.float8_e4m3fn)),
        "long name": state | {"x" * 301: conv},
        "numbers as names": {1: conv},
        "empty": {},
        "text": "no network",
        "numpy": {"model": state, "best": np.float64(1.0)},
        "scalars": state | {"epoch": 3},
        "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
    }
    for name, content in (taken | refused).items():
        torch.save(content, tmp_path / "theirs.pt")
        try:
            opened(tmp_path / "theirs.pt")
        except UserError as error:
            assert "\n" not in str(error) and name not in taken, name
        else:
            assert name not in refused, name


# --- pictures ------------------------------------------------------------------------------------
def encoded(kind="PNG", mode="L", **options):
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 50).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(pictures):
    return write(Path(tempfile.mkdtemp()), pictures)


def sound():
    return {
        f"{part}/{c}/{i}.png": encoded() for part in ("train", "test") for c in "ab" for i in "123"
    }


def read(place):
    settings = DataSettings(source="imagefolder", root=str(place), val_fraction=0.4)
    return prepare(settings, cache=place)


def test_bytes_of_pictures(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [encoded("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA")]
    files += [encoded("JPEG", "CMYK")]
    files += [encoded("JPEG", "RGB", exif=turned), encoded("PNG", "L", transparency=7)]
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    fuzz_files("pictures", files, path, lambda: read_image_folder(str(tmp_path), None), 50_000)


def test_names_of_pictures():
    def taken(name):
        if name and not {"/", "\0"} & set(name) and name not in (".", "..") and len(name) < 80:
            named = {f"train/{name}/x.png": encoded(), f"train/a/{name}": encoded()}
            read(folder_of(sound() | named))

    fuzz("names", TEXTS, taken, 40)


def test_bytes_of_archives(tmp_path):
    place, files = folder_of({"train/a/x.png": encoded(), "train/b/y.png": encoded()}), []
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            archive.add(place, "x")
        files.append(buffer.getvalue())
    path = tmp_path / "y.tar"
    fuzz_files("archives", files, path, lambda: read_image_folder(str(path), None), 10_000)


@pytest.mark.parametrize("kind", ["pipe", "device", "pipe inside", "device inside", "case", "form"])
def test_places_that_are_no_pictures(kind):
    place = folder_of(sound())
    match kind:
        case "pipe":
            os.mkfifo(place := place / "pipe")
        case "device":
            place = Path("/dev/zero")
        case "pipe inside":
            os.mkfifo(place / "train" / "a" / "y.png")
        case "device inside":
            (place / "train" / "a" / "y.png").symlink_to("/dev/zero")
        case "case":
            (place / "train" / "A").mkdir()
        case "form":
            for name in ("é", "e\u0301"):
                (place / "train" / name).mkdir()
    words = "neither a folder nor a file|no plain file|differ in case or Unicode form only"
    with pytest.raises(UserError, match=words):
        read(place)


def test_pictures_are_seen_as_they_are_meant_to_be():
    """EXIF's orientation is followed; transparency and animations are refused."""
    turned = Image.Exif()
    turned[0x0112] = 3  # by 180 degrees
    half = Image.new("L", (8, 8))
    half.paste(255, (0, 0, 8, 4))
    buffer = io.BytesIO()
    half.save(buffer, "PNG", exif=turned)
    found = read(folder_of(sound() | {"train/a/4.png": buffer.getvalue()}))
    upside_down = torch.from_numpy(np.asarray(half.rotate(180)).copy())[None]
    every = torch.cat([found["train"].images, found["val"].images])
    assert any(torch.equal(image, upside_down) for image in every)
    clear, film = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(clear, "PNG")
    half.save(film, "PNG", save_all=True, append_images=[half.rotate(90)])
    for contents, words in ((clear, "transparent"), (film, "animated")):
        with pytest.raises(UserError, match=f"is no image that can be used: .*{words}"):
            read(folder_of(sound() | {"train/a/4.png": contents.getvalue()}))


def test_the_same_pictures_in_two_parts_are_noted(capsys):
    pictures = sound()
    pictures["test/a/1.png"] = pictures["train/a/1.png"] = pictures["train/a/2.png"]
    pictures["train/c/1.png"], pictures["train/c/2.png"] = encoded(), encoded()
    read(folder_of(pictures))
    said = capsys.readouterr().err
    assert "test has no picture of class c" in said and "1 of 6 test pictures are in train" in said


# --- records and metrics -------------------------------------------------------------------------
def test_results_of_a_pull_request():
    whole = results(run_of(model("A"), model("B")))
    before = revision_of(read_results(whole.to_csv(index=False), "base"))
    rows = json.loads(whole.to_json(orient="records"))

    def taken(rows):
        kept = [row for row in rows if isinstance(row, dict)]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list({str(key): 0 for row in kept for key in row}))
        writer.writeheader()
        writer.writerows({str(key): value for key, value in row.items()} for row in kept)
        after = revision_of(read_results(buffer.getvalue(), "results.csv"))
        found = page(judge(before, after), "G")
        assert "<img" not in found and "\x1b" not in found

    fuzz("results", changed(rows), taken, 50)


def test_records(tmp_path):
    table = run_of(model("A")).models[0].records
    path = tmp_path / "records.parquet"
    changes = {
        "no column": lambda: table.drop(columns="adv_pred"),
        "no rows": lambda: table.iloc[:0],
        "twice": lambda: pd.concat([table, table.iloc[:1]]),
        "missing": lambda: table.drop(index=table.index[3]),
        "text": lambda: table.assign(adv_pred="x"),
        "NaN": lambda: table.assign(label=float("nan")),
        "lists": lambda: table.assign(attack=[["main"]] * len(table)),
    }
    table.to_parquet(path)
    assert len(records_of(path)) == len(table)
    for change in changes.values():
        change().to_parquet(path)
        with pytest.raises(UserError, match=r"records\.parquet .*; run `dvc repro`"):
            records_of(path)
    meta = b'{"index_columns": ["absent"], "columns": [], "column_indexes": []}'
    named = pa.Table.from_pandas(table).replace_schema_metadata({b"pandas": meta})
    pq.write_table(named, path)
    with pytest.raises(UserError, match=r"records\.parquet is damaged \('absent'\); run"):
        records_of(path)


# --- faults --------------------------------------------------------------------------------------
def _folder(path, version):
    with files.atomic(path) as temporary:
        temporary.mkdir()
        for name in "ab":
            (temporary / name).write_text(f"{name}{version}" * 2000)


def _model(path, version):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(version))
    save_model(make_network(images), path)


def _torch(path, version):
    with files.atomic(path) as temporary:
        torch.save({"x": torch.full((3000,), version)}, temporary)


def _json(path, version):
    files.write_json(path, [version] * 3000)


def forked(work):
    """Run in a process of its own; how it ended, as os.waitpid tells: 0, or a signal, or 256 n."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except UserError:
            os._exit(2)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A folder of a pipeline, and in it one that a stage depends on."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("")
    Path("runs").mkdir()
    return tmp_path / "runs" / "x.out"


def seen(place):
    """What is there; torch's files hold a random number."""
    if place.is_file() and zipfile.is_zipfile(place):
        return str(torch.load(place))
    return files.sha256_of(place)


@pytest.mark.parametrize("write", [_json, _folder])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(write, pipeline):
    write(pipeline, 2)
    new = seen(pipeline)
    write(pipeline, 1)
    old = seen(pipeline)
    for fault in ("kill", "full"):
        for moment in range(6):
            write(pipeline, 1)

            def work(moment=moment, fault=fault):
                calls = iter(range(100))

                def counted(function):
                    def inner(*arguments, **options):
                        if next(calls) == moment:
                            if fault == "kill":
                                os.kill(os.getpid(), signal.SIGKILL)
                            raise OSError(errno.ENOSPC, "No space left on device")
                        return function(*arguments, **options)

                    return inner

                os.fsync = counted(os.fsync)
                Path.replace = counted(Path.replace)
                files.swap = counted(files.swap)
                write(pipeline, 2)

            ended = forked(work)
            assert ended in (0, signal.SIGKILL if fault == "kill" else 2 << 8), (fault, moment)
            assert seen(pipeline) in ((new,) if ended == 0 else (old, new))
            assert [p.name for p in Path("runs").iterdir()] == [pipeline.name]  # nothing beside it
    write(pipeline, 2)
    assert seen(pipeline) == new


@pytest.mark.parametrize("write", [_json, _folder, _model, _torch])  # errors of four kinds
def test_a_disk_that_is_full_is_said_in_one_line(write, pipeline):
    """The kernel refuses files of more than some bytes, as it does on a full disk."""
    write(pipeline, 1)
    old = seen(pipeline)

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        write(pipeline, 2)

    assert forked(work) == 2 << 8
    assert seen(pipeline) == old and [p.name for p in Path("runs").iterdir()] == [pipeline.name]


def test_two_at_once_write_one_or_the_other(pipeline):
    allowed = set()
    for version in (1, 2):
        _folder(pipeline, version)
        allowed.add(seen(pipeline))
    for _ in range(5):
        if (child := os.fork()) == 0:
            try:
                _folder(pipeline, 1)
            finally:
                os._exit(0)
        _folder(pipeline, 2)
        os.waitpid(child, 0)
        assert seen(pipeline) in allowed


def test_unfinished_work_has_one_worker(tmp_path, monkeypatch):
    """Finished parts are read back, under the same settings; what is damaged is made again."""
    parts, other = (Parts(tmp_path, name, files=[]) for name in ("it", "other"))
    assert forked(lambda: Parts(tmp_path, "it", files=[])) == 2 << 8
    assert forked(lambda: Parts(tmp_path, "third", files=[])) == 0
    monkeypatch.chdir(tmp_path)
    with unfinished("training", files=[]):
        assert forked(lambda: unfinished("training", files=[]).__enter__()) == 2 << 8
    assert not [*Path("checkpoints").iterdir()]
    for work, damaged, found in ((1, False, 1), (2, False, 1), (3, True, 3), (4, False, 3)):
        if damaged:
            for name in ("x.parquet", "i.safetensors"):
                (parts.folder / name).write_bytes(b"half")
        table = parts.frame("x", lambda work=work: pd.DataFrame({"a": [work]}))
        value, facts = parts.tensor("i", lambda work=work: (torch.full((2,), work), {"a": [work]}))
        assert table.a.tolist() == [found] and value.tolist() == [found] * 2
        assert facts == {"a": [found]}
    assert other.frame("x", lambda: pd.DataFrame({"a": [5]})).a.tolist() == [5]
    parts.discard()
    assert not parts.folder.exists() and other.folder.exists()
    assert forked(lambda: Parts(tmp_path, "it", files=[])) == 0
