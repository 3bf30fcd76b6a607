"""Corrupt records cost themselves and no other; the log has each once."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from vise_jax.data import records
from vise_jax.data.records import CHECKSUM, CUT_OFF, CorruptExamples, read_index, read_records
from vise_jax.errors import UserError

DATA = [bytes([number]) * (20 + 7 * number) for number in range(9)]
ALL = range(len(DATA))


@pytest.fixture
def shard(tmp_path) -> Path:
    """Nine records, written by TensorFlow."""
    path = tmp_path / "s.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for data in DATA:
            writer.write(data)
    return path


def read_shard(path: Path, examples: int, wanted: range):
    return read_records(path, read_index(path, examples), wanted)


def offset_of(record: int) -> int:
    return sum(len(data) + 16 for data in DATA[:record])


def flip(path: Path, *offsets: int) -> None:
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("wanted", [ALL, range(3, 6), range(8, 9), range(0)])
def test_whole_shards_are_read_as_tensorflow_wrote_them(shard, wanted):
    assert read_shard(shard, 9, wanted) == ([DATA[number] for number in wanted], {})


def test_runs_of_a_shard_in_an_object_store_are_requested_before_the_first_is_awaited(shard, monkeypatch):
    events: list[str] = []

    def begin_range(path, offset, length):
        events.append("begin")

        def wait():
            events.append("wait")
            return path.read_bytes()[offset : offset + length]

        return wait

    index = read_index(shard, 9)
    monkeypatch.setattr(records.artifact, "is_remote", lambda path: True)
    monkeypatch.setattr(records.artifact, "begin_range", begin_range)
    monkeypatch.setattr(records, "_LARGEST_GAP", 16)
    assert read_records(shard, index, [0, 3, 4, 8]) == ([DATA[number] for number in (0, 3, 4, 8)], {})
    assert events == ["begin"] * 3 + ["wait"] * 3


@pytest.mark.parametrize("place", [12, 12 + 47, 12 + 48])
def test_a_flipped_bit_costs_its_record(shard, place):
    # Of record 4, the first and the last of its 48 bytes, and the checksum behind them.
    flip(shard, offset_of(4) + place)
    data, bad = read_shard(shard, 9, ALL)
    assert bad == {4: CHECKSUM}
    assert data == [b"" if number == 4 else DATA[number] for number in ALL]
    assert read_shard(shard, 9, range(5, 9)) == (DATA[5:], {})


@pytest.mark.parametrize("record", [0, 4, 8])
@pytest.mark.parametrize("place", [0, 6, 9])
def test_a_wrong_length_costs_its_record(shard, record, place):
    flip(shard, offset_of(record) + place)
    data, bad = read_shard(shard, 9, ALL)
    assert bad == {record: CUT_OFF}
    assert data == [b"" if number == record else DATA[number] for number in ALL]


@pytest.mark.parametrize(("left", "lost"), [(0, 9), (5, 9), (offset_of(7), 2), (offset_of(7) + 13, 2), (-1, 1)])
def test_what_is_cut_off_is_missing(shard, left, lost):
    shard.write_bytes(shard.read_bytes()[:left])
    data, bad = read_shard(shard, 9, ALL)
    assert bad == dict.fromkeys(range(9 - lost, 9), CUT_OFF)
    assert data[: 9 - lost] == DATA[: 9 - lost]


def test_more_records_than_were_written_are_another_file(shard):
    flip(shard, offset_of(2))
    with pytest.raises(UserError, match="holds 8 records instead of 5"):
        read_shard(shard, 5, range(5))


def test_a_shard_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.tfrecord can't be read"):
        read_shard(tmp_path / "gone.tfrecord", 1, range(1))


def test_an_example_is_logged_once_also_after_a_restart(tmp_path):
    path = tmp_path / "corrupt_examples.jsonl"
    reject_log = CorruptExamples(path)
    for _ in range(2):
        reject_log.add("a", 7, records.CHECKSUM)
    with open(path, "a") as file:
        file.write('{"shard": "a", "rec')  # a kill cut it short
    reject_log = CorruptExamples(path)
    reject_log.add("a", 7, records.CHECKSUM)
    assert ("a", 7) in reject_log
    assert ("a", 8) not in reject_log
    reject_log.add("b", 0, records.CUT_OFF)
    assert [json.loads(line)["record"] for line in path.read_text().splitlines()] == [7, 0]
    assert len(reject_log) == 2


def test_a_length_that_no_file_has(tmp_path):
    header = struct.pack("<Q", 2**64 - 1)
    (tmp_path / "a.tfrecord").write_bytes(header + struct.pack("<I", records._masked_crc(header)) + bytes(100))
    assert records.read_index(tmp_path / "a.tfrecord", 1).shape == (1, 2)


def test_the_next_header_is_found_in_zeros_and_noise(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    record = struct.pack("<Q", 70_000)
    record += struct.pack("<I", records._masked_crc(record))
    # Across the border of two blocks, too.
    for before in (noise, bytes(300_000), bytes((1 << 20) - 5)):
        assert records._next_header(before + record + noise, 0) == len(before)
    assert records._next_header(noise, 0) == len(noise)
    assert records._next_header(b"", 0) == 0
