"""Recurrent states as values, and files that are whole or absent."""

from __future__ import annotations

import os
import signal
import stat
import struct

import numpy as np
import pytest

from textlstm import files
from textlstm.config import ModelConfig
from textlstm.errors import ModelFileError
from textlstm.files import write_atomically
from textlstm.state import State


def make_state(B, offset=0, L=2, H=3):
    h = np.arange(L * B * H, dtype=np.float32).reshape(L, B, H) + offset
    return State(h, -h)


def as_torch(state):
    torch = pytest.importorskip("torch")
    return State(torch.from_numpy(state.h_LBH.copy()), torch.from_numpy(state.c_LBH.copy()))


@pytest.fixture(params=["numpy", "torch"])
def convert(request):
    return as_torch if request.param == "torch" else lambda state: state


def test_zeros():
    state = State.zeros(ModelConfig(num_layers=3, hidden_size=5), 4)
    for array in (state.h_LBH, state.c_LBH):
        assert array.shape == (3, 4, 5)
        assert array.dtype == np.float32
        assert not array.any()
    assert state.h_LBH is not state.c_LBH
    assert state.rows == 4


def test_select_takes_rows_in_the_order_given(convert):
    state = make_state(4)
    taken = convert(state).select([2, 0, 2])
    assert type(taken.h_LBH) is type(convert(state).h_LBH)
    assert taken.rows == 3
    for layer in range(2):
        for place, row in enumerate([2, 0, 2]):
            assert taken.h_LBH[layer, place].tolist() == state.h_LBH[layer, row].tolist()
            assert taken.c_LBH[layer, place].tolist() == state.c_LBH[layer, row].tolist()
    assert convert(state).select([]).rows == 0


def test_selected_rows_are_a_copy(convert):
    state = convert(make_state(2))
    taken = state.select(range(2))
    taken.h_LBH[:] = 99
    assert state.h_LBH.tolist() == make_state(2).h_LBH.tolist()


def test_stack_puts_rows_one_after_the_other(convert):
    parts = [make_state(2), make_state(1, 100), make_state(3, 200)]
    stacked = State.stack([convert(p) for p in parts])
    assert type(stacked.h_LBH) is type(convert(parts[0]).h_LBH)
    assert stacked.rows == 6
    for layer in range(2):
        assert stacked.h_LBH[layer].tolist() == [row for p in parts for row in p.h_LBH[layer].tolist()]
        assert stacked.c_LBH[layer].tolist() == [row for p in parts for row in p.c_LBH[layer].tolist()]
    assert stacked.select([3, 4, 5]).h_LBH.tolist() == parts[2].h_LBH.tolist()


def test_save_and_load(convert, tmp_path):
    state = make_state(3, 0.1)
    convert(state).save(tmp_path / "state.safetensors")
    loaded = State.load(str(tmp_path / "state.safetensors"))
    assert loaded.h_LBH.dtype == np.float32
    assert loaded.h_LBH.tobytes() == state.h_LBH.tobytes()
    assert loaded.c_LBH.tobytes() == state.c_LBH.tobytes()


def test_views_are_saved_in_their_own_order(convert, tmp_path):
    state = make_state(3)
    swapped = State(convert(state).h_LBH.swapaxes(0, 2), convert(state).c_LBH.swapaxes(0, 2))
    swapped.save(tmp_path / "s")
    assert State.load(tmp_path / "s").h_LBH.tolist() == state.h_LBH.swapaxes(0, 2).tolist()


def container(header, body=b""):
    data = header.encode()
    return struct.pack("<Q", len(data)) + data + body


def entry(name, shape, start, dtype="F32"):
    size = int(np.prod(shape)) * {"F32": 4, "BF16": 2, "F8_E4M3": 1}[dtype]
    return f'"{name}":{{"dtype":"{dtype}","shape":{list(shape)},"data_offsets":[{start},{start + size}]}}'


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", b"\xff" * 100, container("{}"), container("{"), container("[]"),
        struct.pack("<Q", 1 << 60) + b"{}",
        container("{" + entry("h", (1, 1, 1), 0) + "}", bytes(4)),
        container("{" + entry("h", (1, 1, 1), 0) + "," + entry("c", (1, 1, 2), 4) + "}", bytes(12)),
        container("{" + entry("h", (1, 2), 0) + "," + entry("c", (1, 2), 8) + "}", bytes(16)),
        container("{" + entry("h", (1,), 0) + "," + entry("c", (1,), 4) + "," + entry("x", (1,), 8) + "}", bytes(12)),
        container("{" + entry("h", (1, 1, 1), 0) + "," + entry("c", (1, 1, 1), 4) + "}", bytes(7)),
        container("{" + entry("h", (1, 1, 2), 0, "BF16") + "," + entry("c", (1, 1, 2), 4, "BF16") + "}", bytes(8)),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "state"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="state"):
        State.load(path)


def test_missing_files_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelFileError):
            State.load(path)


def test_every_truncation_and_every_damaged_header_byte(tmp_path):
    path = tmp_path / "state"
    make_state(1, L=1, H=2).save(path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError):
            State.load(path)
    header = len(data) - 16
    for place in range(header):
        for value in (0, 0x20, 0x31, 0x36, 0xFF):
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            try:
                state = State.load(path)
            except ModelFileError:
                continue
            assert state.h_LBH.shape == state.c_LBH.shape
            assert state.h_LBH.dtype == np.float32


# Files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"first", b"", b"x" * 100_000):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX limits")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    import resource

    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            write_atomically(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a.bin", b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a.bin", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == mode
