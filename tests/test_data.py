"""IDX files, right and wrong ones, and the fetching of data sets from a server of our own."""

import gzip
import hashlib
import json
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dlnotes.datasets import images as data
from dlnotes.datasets.images import ImageData, as_images, fashion_mnist, mnist, read_idx

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
TINY = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 20, 30, 40, 50, 60])
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def idx(array):
    "The array as the bytes of an IDX file."
    big = array.astype(array.dtype.newbyteorder(">"))
    return (
        struct.pack(f">HBB{array.ndim}I", 0, CODES[array.dtype.str[1:]], array.ndim, *array.shape)
        + big.tobytes()
    )


def some_arrays():
    shapes = npst.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=4)
    dtypes = st.sampled_from(list(CODES)).map(np.dtype)
    return dtypes.flatmap(lambda dtype: npst.arrays(dtype, shapes))


# ---- files as they should be


@given(array=some_arrays(), packed=st.booleans(), kind=st.sampled_from([bytes, bytearray]))
def test_what_was_written_is_read(array, packed, kind):
    content = idx(array)
    back = read_idx(kind(gzip.compress(content) if packed else content))
    assert back.dtype == array.dtype and back.dtype.isnative and back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # NaN included
    assert back.flags.c_contiguous and back.flags.writeable


@pytest.mark.parametrize("name", ["a", "a.idx", "a.gz", "A.GZ", "a-idx3-ubyte"])
@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_from_paths(name, as_path, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(TINY) if name.lower().endswith("gz") else TINY)
    assert read_idx(as_path(path)).tolist() == [[10, 20, 30], [40, 50, 60]]


def test_gzip_is_known_by_its_content(tmp_path):
    (tmp_path / "unnamed").write_bytes(gzip.compress(TINY))
    assert read_idx(tmp_path / "unnamed").shape == (2, 3)


def test_gzip_in_several_members():
    assert read_idx(gzip.compress(TINY[:7]) + gzip.compress(TINY[7:])).shape == (2, 3)


@pytest.mark.parametrize("ndim", [1, 3, 32])
def test_numbers_of_dimensions(ndim):
    assert read_idx(idx(np.ones((1,) * ndim, np.int16))).shape == (1,) * ndim


# ---- files as they should not be


def header(code, *shape):
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)


PACKED = gzip.compress(TINY, mtime=0)  # a time in it would be another name of the test
PACKED_TWICE = gzip.compress(PACKED, mtime=0)
MALFORMED = [  # name of the file, content, what the message has to say after the path
    ("a", b"", "start of the header: expected 4 bytes, got only 0"),
    ("a", TINY[:3], "start of the header: expected 4 bytes, got only 3"),
    ("a", b"<!DOCTYPE html><html>", r"expected an IDX file, .*got b'<!DO'"),
    ("a", b"PK\3\4" + TINY, r"expected an IDX file, .*got b'PK"),
    ("a", b"\0\1" + TINY[2:], r"expected an IDX file, .*got b'\\x00\\x01"),
    ("a", TINY[3::-1] + TINY[4:], r"expected an IDX file, .*got b'\\x02\\x08"),  # little-endian
    *(
        ("a", header(code, 1) + bytes(8), f"expected type code 8, 9 or 11 to 14, got {code}")
        for code in (0, 7, 10, 15, 255)
    ),
    ("a", header(8), "expected 1 to 32 dimensions, got 0"),
    ("a", header(8, *(1,) * 33) + b"\0", "expected 1 to 32 dimensions, got 33"),
    ("a", TINY[:4], "lengths of 2 dimensions: expected 8 bytes, got only 0"),
    ("a", TINY[:11], "lengths of 2 dimensions: expected 8 bytes, got only 7"),
    ("a", header(8, 0), r"expected lengths of at least 1, got shape \(0,\)"),
    ("a", header(8, 3, 0), r"expected lengths of at least 1, got shape \(3, 0\)"),
    ("a", TINY[:12], r"values of shape \(2, 3\), uint8: expected 6 bytes, got only 0"),
    ("a", TINY[:-1], r"values of shape \(2, 3\), uint8: expected 6 bytes, got only 5"),
    ("a", header(14, 2) + bytes(15), r"values of shape \(2,\), float64: expected 16 bytes, got on"),
    ("a", TINY + b"\n", r"expected the end after 6 bytes of values of shape \(2, 3\), .*got more"),
    ("a", TINY + TINY, r"expected the end after 6 bytes"),
    ("a", header(8, 2**32 - 1) + b"\1", "expected 4294967295 bytes, got only 1"),
    ("a", header(14, *(2**32 - 1,) * 32) + b"\1" * 9, "expected [0-9]{310} bytes, got only 9"),
    ("a.gz", TINY, r"expected gzip, which begins with b'\\x1f\\x8b', got b'\\x00\\x00'"),
    ("a.gz", b"", r"expected gzip, which begins with b'\\x1f\\x8b', got b''"),
    ("a.gz", b"<html>", r"expected gzip, which begins with b'\\x1f\\x8b', got b'<h'"),
    ("a.gz", PACKED[:2], "expected whole gzip data, got damaged"),
    ("a.gz", PACKED[:-1], "expected whole gzip data, got damaged"),
    (
        "a.gz",
        PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:],
        "expected whole gzip data, got damaged: CRC",
    ),
    ("a.gz", PACKED[:-1] + b"\1", "expected whole gzip data, got damaged"),  # its own length
    ("a.gz", PACKED + b"more", "expected whole gzip data, got damaged"),
    ("a.gz", PACKED[:2] + b"\7" + PACKED[3:], "expected whole gzip data, got damaged"),
    ("a.gz", PACKED[:10] + b"\xff" * 9, "expected whole gzip data, got damaged"),
    ("a.gz", gzip.compress(TINY[:-1], mtime=0), "expected 6 bytes, got only 5"),
    ("a.gz", gzip.compress(TINY + b"\0", mtime=0), "expected the end after 6 bytes"),
    ("a.gz", PACKED_TWICE, r"expected an IDX file, .*got b'\\x1f\\x8b"),
]


@pytest.mark.parametrize(("name", "content", "words"), MALFORMED)
def test_malformed_files_are_refused(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_idx(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    if not name.endswith(".gz"):
        with pytest.raises(ValueError, match=f"^source: .*{words}|^source: {words}"):
            read_idx(content)


def memory(f, *args):
    "The most memory that a call held at once, in bytes, whether it fails or not."
    tracemalloc.start()
    try:
        f(*args)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "start",
    [header(8, 2**32 - 1), header(14, *(2**32 - 1,) * 32), header(13, 60_000, 28_000, 28_000)],
)
def test_a_false_size_allocates_nothing(start, pack):
    assert memory(read_idx, pack(start + bytes(100))) < 3 << 20  # a piece is one megabyte


def test_what_follows_the_values_is_not_unpacked():
    bomb = gzip.compress(TINY + bytes(1 << 26))
    assert len(bomb) < 1 << 17 and memory(read_idx, bomb) < 3 << 20


@settings(deadline=None, max_examples=400)
@given(data=st.data(), packed=st.booleans())
def test_mutated_files_are_read_or_refused(data, packed):
    content = idx(data.draw(some_arrays()))
    content = bytearray(gzip.compress(content) if packed else content)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(content)))
        if data.draw(st.booleans()):
            where = min(where, 20)  # the header more often than the rest
        piece = data.draw(st.binary(max_size=8))
        content[where : where + data.draw(st.sampled_from([0, len(piece), 1, 1000]))] = piece
    try:
        array = read_idx(bytes(content))
    except ValueError as e:
        assert str(e).startswith("source: ") and "expected" in str(e) and "got" in str(e)
    else:
        assert packed or array.nbytes == len(content) - 4 - 4 * array.ndim


@given(content=st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(content):
    for start in (b"", b"\0\0", b"\x1f\x8b\x08\0", TINY[:4]):
        try:
            assert read_idx(start + content).size > 0
        except ValueError as e:
            assert str(e).startswith("source: ")


@pytest.mark.parametrize("wrong", [None, 3, 1.5, ["a"], np.zeros(3, np.uint8)])
def test_what_is_not_a_source_is_refused(wrong):
    with pytest.raises(TypeError, match="^source: expected a path or bytes, got "):
        read_idx(wrong)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(OSError):
        read_idx(tmp_path)


# ---- images for a network


@given(
    images=npst.arrays(np.uint8, npst.array_shapes(min_dims=3, max_dims=3)),
    dtype=st.sampled_from([np.float32, np.float64, "f4", "f8"]),
    flip=st.booleans(),
)
def test_as_images(images, dtype, flip):
    images = images[::-1].T if flip else images
    before = images.copy()
    out = as_images(images, dtype)
    assert out.dtype == dtype and out.shape == (len(images), 1, *images.shape[1:])
    assert out.flags.c_contiguous and not np.shares_memory(out, images)
    np.testing.assert_allclose(out[:, 0], images / 255, rtol=np.finfo(dtype).eps)  # one rounding
    assert (images == before).all()


@pytest.mark.parametrize(
    ("images", "dtype", "error", "words"),
    [
        (
            np.zeros((1, 2, 2)),
            "f4",
            TypeError,
            "images: expected an array of dtype uint8, got float64",
        ),
        ([[[0]]], "f4", TypeError, "images: expected an array of dtype uint8, got list"),
        (None, "f4", TypeError, "images: expected an array of dtype uint8, got NoneType"),
        (
            np.ma.masked_equal(np.eye(2, dtype="u1")[None], 1),
            "f4",
            TypeError,
            "images: expected no ma",
        ),
        (np.zeros((2, 2), "u1"), "f4", ValueError, r"images: expected shape .*got \(2, 2\)"),
        (
            np.zeros((1, 1, 2, 2), "u1"),
            "f4",
            ValueError,
            r"images: expected shape .*got \(1, 1, 2, 2",
        ),
        (
            np.zeros((0, 2, 2), "u1"),
            "f4",
            ValueError,
            r"images: expected at least one .*\(0, 2, 2\)",
        ),
        (
            np.zeros((1, 2, 2), "u1"),
            "f2",
            TypeError,
            "dtype: expected float32 or float64, got float16",
        ),
        (
            np.zeros((1, 2, 2), "u1"),
            "i4",
            TypeError,
            "dtype: expected float32 or float64, got int32",
        ),
    ],
)
def test_as_images_refuses(images, dtype, error, words):
    with pytest.raises(error, match=f"^{words}"):
        as_images(images, dtype)


# ---- fetching

rng = np.random.default_rng(0)
ARRAYS = [
    rng.integers(0, high, shape).astype(np.uint8)
    for high, shape in ((256, (9, 28, 28)), (10, 9), (256, (4, 28, 28)), (10, 4))
]
CONTENT = {name: gzip.compress(idx(a), mtime=0) for name, a in zip(FILES, ARRAYS)}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


class Handler(BaseHTTPRequestHandler):
    "Answers to /MANNER/FILE in the manner asked for."

    def do_GET(self):
        _, manner, name = self.path.split("/")
        self.server.requests.append((manner, name))
        getattr(self, manner)(name)

    def answer(self, content, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def good(self, name):
        self.answer(CONTENT[name])

    def missing(self, name):
        self.answer(b"<html>404</html>", 404)

    def broken(self, name):
        self.answer(b"", 503)

    def page(self, name):
        self.answer(b"<html>We have moved.</html>", Content_Type="text/html")

    def short(self, name):
        self.answer(CONTENT[name][:-9], length=len(CONTENT[name]))
        self.close_connection = True

    def shorter(self, name):
        self.answer(CONTENT[name][:-9])

    def empty(self, name):
        self.answer(b"")

    def flipped(self, name):
        content = bytearray(CONTENT[name])
        content[len(content) // 2] ^= 1
        self.answer(bytes(content))

    def hangup(self, name):
        self.close_connection = True

    def silent(self, name):
        "Answers later than anybody waits."
        if not self.server.finished.wait(10):
            self.good(name)

    def moved(self, name):
        self.answer(b"", 302, Location=f"/good/{name}")

    def unpacking(self, name):
        "As servers do that take .gz for an encoding, if the client lets them."
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            self.answer(CONTENT[name], Content_Encoding="gzip")
        else:
            self.good(name)

    def slow(self, name):
        self.server.together.wait(20)  # until the other process asks too
        self.good(name)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    "A server on this machine, in place of the mirrors; without proxies and quiet."
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "DLNOTES_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(data, "_TIMEOUT", 5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.finished = [], threading.Event()
        server.together = threading.Barrier(2)
        server.url = f"http://127.0.0.1:{server.server_port}/"

        def mirrors(*manners, name="_MNIST", sha256=SHA256):
            urls = tuple(m if ":" in m else f"{server.url}{m}/" for m in manners)
            source = getattr(data, name)._replace(mirrors=urls, sha256=sha256)
            monkeypatch.setattr(data, name, source)

        server.mirrors = mirrors
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.finished.set()
        server.shutdown()
        thread.join()


def assert_right(got):
    assert isinstance(got, ImageData) and len(got.classes) == len(set(got.classes)) == 10
    for ours, theirs in zip(got, ARRAYS):
        assert ours.dtype == np.uint8 and (ours == theirs).all()


def nothing_listens():
    "An address on which no server answers."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("load", "name", "folder"),
    [(mnist, "_MNIST", "mnist"), (fashion_mnist, "_FASHION_MNIST", "fashion-mnist")],
)
def test_a_set_is_fetched_once(load, name, folder, server, tmp_path):
    server.mirrors("good", name=name)
    assert_right(load(tmp_path))
    assert server.requests == [("good", file) for file in FILES]
    assert sorted(p.name for p in (tmp_path / folder).iterdir()) == sorted(FILES)
    assert_right(load(str(tmp_path)))
    assert len(server.requests) == 4


@pytest.mark.parametrize("manner", ["moved", "unpacking"])
def test_servers_of_other_habits(manner, server, tmp_path):
    server.mirrors(manner)
    assert_right(mnist(tmp_path))


@pytest.mark.parametrize(
    "manner",
    [
        "missing",
        "broken",
        "page",
        "short",
        "shorter",
        "empty",
        "flipped",
        "hangup",
        "silent",
        "nobody",
    ],
)
def test_the_next_mirror_is_asked(manner, server, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_TIMEOUT", 0.5 if manner == "silent" else 5)
    server.mirrors(nothing_listens() if manner == "nobody" else manner, "good")
    assert_right(mnist(tmp_path))
    expected = [(m, file) for file in FILES for m in (manner, "good") if m != "nobody"]
    assert server.requests == expected
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ("missing", "404"),
        ("broken", "503"),
        ("page", "hash"),
        ("flipped", "hash"),
        ("short", "IncompleteRead|hash"),
        ("nobody", "refused|Max retries"),
    ],
)
def test_no_mirror_helps(manner, words, server, tmp_path):
    server.mirrors(nothing_listens() if manner == "nobody" else manner)
    with pytest.raises(OSError, match=words) as caught:
        mnist(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"mnist: could not fetch {FILES[0]}; there is no such file in")
    assert told.endswith(
        f"put it into {tmp_path / 'mnist'}; its SHA256 has to be {SHA256[FILES[0]]}"
    )
    assert list((tmp_path / "mnist").iterdir()) == []


def put(folder, files=FILES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_bytes(CONTENT[name])


def test_files_put_there_by_hand(server, tmp_path):
    server.mirrors("missing")
    put(tmp_path / "mnist")
    assert_right(mnist(tmp_path))
    assert server.requests == []


def test_only_what_is_missing_is_fetched(server, tmp_path):
    server.mirrors("good")
    put(tmp_path / "mnist", FILES[1:])
    assert_right(mnist(tmp_path))
    assert server.requests == [("good", FILES[0])]


def test_a_damaged_file_in_the_cache_is_replaced_or_told_of(server, tmp_path):
    put(tmp_path / "mnist")
    damaged = tmp_path / "mnist" / FILES[2]
    damaged.write_bytes(CONTENT[FILES[2]][:-1])
    server.mirrors("missing")
    with pytest.raises(OSError, match=f"fetch {FILES[2]}; there is a file with another checksum"):
        mnist(tmp_path)
    server.mirrors("good")
    assert_right(mnist(tmp_path))
    assert damaged.read_bytes() == CONTENT[FILES[2]]


def test_a_file_with_the_right_checksum_but_no_idx_is_refused(server, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / FILES[0]).write_bytes(b"text")
    server.mirrors("good", sha256=SHA256 | {FILES[0]: hashlib.sha256(b"text").hexdigest()})
    with pytest.raises(ValueError, match=f"{FILES[0]}: expected gzip"):
        mnist(tmp_path)


def test_where_the_files_are_kept(server, tmp_path, monkeypatch):
    server.mirrors("good")
    monkeypatch.setenv("DLNOTES_DATA", str(tmp_path / "chosen"))
    assert_right(mnist())
    assert (tmp_path / "chosen" / "mnist" / FILES[0]).exists()
    assert_right(mnist(tmp_path / "given"))
    assert (tmp_path / "given" / "mnist" / FILES[0]).exists()
    monkeypatch.setenv("DLNOTES_DATA", "")
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    assert_right(mnist())
    assert (tmp_path / "cache" / "dlnotes" / "mnist" / FILES[0]).exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert_right(mnist("~/sets"))
    assert (tmp_path / "home" / "sets" / "mnist" / FILES[0]).exists()


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
@pytest.mark.parametrize("root", [3, b"a", ["a"], True])
def test_a_root_that_is_no_path_is_refused(load, root):
    with pytest.raises(TypeError, match="^root: expected a path or None, got "):
        load(root)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    server.mirrors("good")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        OSError,
        match=r"file.mnist: expected a folder to keep train-images.*"
        "DLNOTES_DATA may name another",
    ):
        mnist(tmp_path / "file")


def test_a_cache_that_can_only_be_read(server, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)  # modes do not stop root
    server.mirrors("good")
    put(tmp_path / "mnist", FILES[:3])
    with pytest.raises(OSError, match=f"expected a folder to keep {FILES[3]} in, got .*denied"):
        mnist(tmp_path)
    put(tmp_path / "mnist", FILES[3:])
    assert_right(mnist(tmp_path))
    assert server.requests == []


def test_two_processes_at_once(server, tmp_path):
    code = (
        "import sys, json; from dlnotes.datasets import images as data\n"
        "url, folder, sha256 = sys.argv[1:]\n"
        "data._MNIST = data._MNIST._replace(mirrors=(url,), sha256=json.loads(sha256))\n"
        "print([int(a.sum()) for a in data.mnist(folder)[:4]])"
    )
    command = [sys.executable, "-c", code, server.url + "slow/", str(tmp_path), json.dumps(SHA256)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert out.strip() == str([int(a.sum()) for a in ARRAYS]), err
    assert len(server.requests) == 8
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == sorted(FILES)


def test_without_pooch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"needs pooch: pip install 'dlnotes\[data\]'"):
        mnist(tmp_path)


def test_the_registries():
    for source in (data._MNIST, data._FASHION_MNIST):
        assert tuple(source.sha256) == FILES and len(source.classes) == 10
        assert len(set(source.sha256.values())) == 4
        assert all(len(bytes.fromhex(sha)) == 32 for sha in source.sha256.values())
        assert len(source.mirrors) >= 2 and all(url.endswith("/") for url in source.mirrors)
    assert not {*data._MNIST.sha256.values()} & {*data._FASHION_MNIST.sha256.values()}
    assert fashion_mnist.__annotations__ == mnist.__annotations__
