"""Files made to hurt, their checksums repaired: data or one TraceError, in bounded memory."""

import json
import random
import signal
import tracemalloc
from zlib import crc32

import pytest
from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.hostile import NUMBERS, SECONDS, bounded, changed, following, put, survive, with_json
from builders.raw_frames import RawFrame, joined, pointed, split
from builders.written import write_trace
from kvtrace.errors import TraceError, VersionError
from kvtrace.files import open_trace
from kvtrace.files.describe import describe
from kvtrace.files.layout import Kind, pack_header, pack_slot
from kvtrace.files.recover import recover
from kvtrace.trace import Note, Tensor


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    trace = synthetic_trace(Shape(layers=2, heads=2, kv_heads=1, dim=2, prompt=9, decode=2))
    trace.source.notes.append(Note("chosen", "3", step=2))
    path = write_trace(tmp_path_factory.mktemp("hostile") / "a.kvt", trace)
    return split(path)


@pytest.mark.parametrize("closed", [True, False])
def test_numbers_made_up_in_json_end_in_data_or_one_error(tmp_path, reference, closed):
    chance = random.Random(11 + closed)
    header, frames = reference
    path, opened = tmp_path / "a.kvt", 0
    keep = frames if closed else [f for f in frames if f.kind != Kind.INDEX]
    start = header if closed else pack_header(1)
    with bounded():
        for _ in range(450):
            place = chance.randrange(len(keep))
            value = json.loads(keep[place].json)
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                value = changed(value, chance)
            made = [*keep[:place], with_json(keep[place], value), *keep[place + 1 :]]
            opened += survive(path, pointed(start, made) if closed else joined(start, made))
    assert opened > 150


def test_numbers_made_up_in_heads_end_in_data_or_one_error(tmp_path, reference):
    chance = random.Random(5)
    header, frames = reference
    names = ("kind", "flags", "sequence", "json_bytes", "units", "payload_bytes")
    limits = (16, 16, 64, 32, 32, 64)
    with bounded():
        for _ in range(600):
            place, name = chance.randrange(len(frames)), chance.randrange(len(names))
            number = chance.choice(NUMBERS) & ((1 << limits[name]) - 1)
            parts = [frame.packed() for frame in frames]
            parts[place] = frames[place].packed(**{names[name]: number})
            survive(tmp_path / "a.kvt", chance.choice((header, pack_header(1))) + b"".join(parts))


def test_tables_made_up_in_the_index_end_in_data_or_one_error(tmp_path, reference):
    chance = random.Random(9)
    header, frames = reference
    place = next(n for n, frame in enumerate(frames) if frame.kind == Kind.INDEX)
    index = frames[place]
    with bounded():
        for _ in range(600):
            units = [bytearray(unit) for unit in index.units]
            for _ in range(chance.choice((1, 1, 3))):
                unit = chance.choice(units)
                at = chance.randrange(0, len(unit) - 7, 1)
                number = chance.choice(NUMBERS) & (2**64 - 1)
                unit[at : at + 8] = number.to_bytes(8, "little")
            made = replace(index, units=tuple(map(bytes, units)))
            survive(tmp_path / "a.kvt", pointed(header, [*frames[:place], made]))


def test_random_damage_of_many_bytes_ends_in_data_or_one_error(tmp_path, reference):
    chance = random.Random(3)
    good = joined(*reference)
    path, opened = tmp_path / "a.kvt", 0
    with bounded():
        for _ in range(8_000):
            raw = bytearray(good)
            for _ in range(chance.choice((1, 2, 8, 64))):
                start, size = chance.randrange(len(raw)), chance.choice((1, 1, 2, 8, 200))
                what = chance.random()
                if what < 0.5:
                    raw[start : start + size] = chance.randbytes(size)
                elif what < 0.7:
                    del raw[start : start + size]
                else:
                    raw[start:start] = raw[chance.randrange(len(raw)) :][:size]
                raw = raw or bytearray(b"\0")
            raw[: len(pack_header(1))] = pack_header(1) if chance.random() < 0.5 else good[:64]
            put(path, raw)
            try:
                trace = open_trace(path)
                opened += 1
                for number in trace.numbers[:1]:
                    trace.step(number)
                    trace.cache(number, 0)
            except TraceError:
                continue
    assert opened > 1000


@pytest.mark.parametrize("text", ["[],", "[" * 1000 + "]" * 1000 + ",", '{"a":{}},', '"",', "1e1,"])
def test_json_that_would_fill_memory_is_refused_before_it_is_parsed(tmp_path, text):
    bomb = b'{"x":[' + (text * (12_000_000 // len(text))).encode() + b"0]}"
    meta = RawFrame(Kind.META, 1, 0, bomb, ())
    path = tmp_path / "a.kvt"
    path.write_bytes(pack_header(1) + meta.packed())
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(TraceError):
            open_trace(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * size + (64 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("parent", [2, 3, -1])
def test_a_step_that_goes_on_with_itself_or_a_later_one_is_damage(tmp_path, reference, parent):
    header, frames = reference
    numbers = [json.loads(one.json)["number"] if one.kind == Kind.STEP else -1 for one in frames]
    at = numbers.index(2)
    made_up = with_json(frames[at], {**json.loads(frames[at].json), "parent": parent})
    frames = [made_up if one is frames[at] else one for one in frames if one.kind != Kind.INDEX]
    put(tmp_path / "x.kvt", joined(header[:16] + bytes(48), frames))
    trace = open_trace(tmp_path / "x.kvt")
    assert (trace.numbers, trace.ending is not None) == ([0, 1], True)
    assert f"step 2 goes on with step {parent}, which is not before it" in trace.damage[0].text


def test_sizes_far_beyond_the_file_are_refused_before_memory_is_taken(tmp_path, reference):
    _, frames = reference
    keep = [frame for frame in frames if frame.kind in (Kind.META, Kind.STEP)]
    meta = json.loads(keep[0].json)
    for layer in meta["cache_layers"]:
        layer.update(num_kv_heads=1 << 18, key_dim=1 << 20, value_dim=1 << 20)
    for site in meta["sites"]:
        site.update(num_heads=1 << 18, num_kv_heads=1 << 18, key_dim=1 << 20, value_dim=1 << 20)
    path = tmp_path / "a.kvt"
    put(path, joined(pack_header(1), [with_json(keep[0], meta), *keep[2:]]))
    trace = open_trace(path)
    first = int(trace.source.writes(0)["first_cell"][0])
    tracemalloc.start()
    try:
        for read in (
            lambda: trace.source.cells(0, Tensor.KEYS, first, 1, None),
            lambda: trace.queries(1, 0),
        ):
            with pytest.raises(TraceError):
                read()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_nesting_without_end_is_an_error(tmp_path):
    meta = RawFrame(Kind.META, 1, 0, b'{"model":' + b"[" * 500_000 + b"]" * 500_000 + b"}", ())
    (tmp_path / "a.kvt").write_bytes(pack_header(1) + meta.packed())
    with pytest.raises(TraceError):
        open_trace(tmp_path / "a.kvt")


def test_heads_that_claim_each_others_bytes_are_read_in_linear_time(tmp_path, reference):
    _, frames = reference
    count = 20_000
    heads = [
        replace(frames[0], kind=99, flags=0, sequence=n, json=b"").packed(
            json_bytes=64 * (count - n - 1), body_crc=1
        )
        for n in range(1, count)
    ]
    path = tmp_path / "a.kvt"
    path.write_bytes(pack_header(1) + frames[0].packed() + b"".join(heads))
    signal.alarm(SECONDS)
    try:
        assert len(open_trace(path)) == 0
    finally:
        signal.alarm(0)


def test_an_index_that_points_at_itself_or_at_no_index_costs_only_time(tmp_path, reference):
    header, frames = reference
    truth = len([frame for frame in frames if frame.kind == Kind.STEP])
    for offset in (64, frames[2].offset, frames[-1].offset + 64, 2**60):
        path = tmp_path / "a.kvt"
        path.write_bytes(header[:16] + pack_slot(offset, 1) + bytes(24) + joined(b"", frames))
        assert len(open_trace(path)) == truth


def test_unknown_frames_are_skipped_unless_they_must_be_understood(tmp_path, reference):
    header, frames = reference
    path = tmp_path / "a.kvt"
    new = following(frames, 77, b'{"text":"from the future"}', units=(b"12345",))
    path.write_bytes(header + joined(b"", [*frames, new]))
    assert len(open_trace(path)) == 3
    assert describe(path).frames["kind 77"][0] == 1
    must = replace(new, flags=1)
    path.write_bytes(header + joined(b"", [*frames, must]))
    with pytest.raises(VersionError, match=r"kind 77 .* kinds up to 9\. Upgrade"):
        open_trace(path)


@pytest.mark.parametrize("name", ["\u202eabc", "\x1b[2J", "a\nb", "", "cached", "x" * 41])
def test_a_lane_whose_name_is_no_word_never_reaches_a_terminal(tmp_path, reference, name):
    _, frames = reference
    meta = json.loads(frames[0].json)
    meta["lanes"][0]["name"] = name
    made = [with_json(one, meta) if one.kind == Kind.META else one for one in frames]
    path = tmp_path / "a.kvt"
    path.write_bytes(joined(pack_header(1), made))
    with pytest.raises(TraceError, match="no META could be read"):
        open_trace(path)


def test_a_later_meta_may_add_sites_and_never_change_one(tmp_path, reference):
    _, frames = reference
    meta = json.loads(frames[0].json)
    meta["sites"][0]["num_heads"] = 1
    later = following(frames, Kind.META, json.dumps(meta).encode(), flags=1)
    path = tmp_path / "a.kvt"
    path.write_bytes(pack_header(1) + joined(b"", [*frames, later]))
    trace = open_trace(path)
    assert trace.meta.sites[0].num_heads == 2
    assert "changes an earlier one" in trace.damage[0].text


def test_a_later_meta_may_say_what_was_not_known_of_a_cache_layer_at_first(tmp_path, reference):
    _, frames = reference
    meta = json.loads(frames[0].json)
    meta["sites"][0]["source"] = "uncached"
    meta["cache_layers"][0] |= {"kind": "static", "capacity": 40, "where": "attn.k [40, 4]"}
    later = following(frames, Kind.META, json.dumps(meta).encode(), flags=1)
    path = tmp_path / "a.kvt"
    path.write_bytes(pack_header(1) + joined(b"", [*frames, later]))
    trace = open_trace(path)
    assert trace.damage == []
    layer = trace.meta.cache_layers[0]
    assert (layer.kind, layer.capacity, layer.where) == ("static", 40, "attn.k [40, 4]")
    assert trace.meta.sites[0].source == "uncached"


def test_hostile_traces_are_recovered_or_refused(tmp_path, reference):
    chance = random.Random(21)
    _, frames = reference
    keep = [frame for frame in frames if frame.kind != Kind.INDEX]
    with bounded():
        for case in range(300):
            place = chance.randrange(len(keep))
            value = json.loads(keep[place].json)
            made = [
                *keep[:place],
                with_json(keep[place], changed(value, chance)),
                *keep[place + 1 :],
            ]
            path, output = tmp_path / "a.kvt", tmp_path / f"{case}.kvt"
            path.write_bytes(joined(pack_header(1), made))
            try:
                done = recover(path, output)
            except TraceError:
                assert not output.exists()
                continue
            trace = open_trace(output)
            assert len(trace) == done.steps
            assert trace.damage == []
            output.unlink()


def test_the_checksum_of_a_made_up_head_is_good(reference):
    _, frames = reference
    raw = frames[0].packed(payload_bytes=2**40)
    assert crc32(raw[:60]) == int.from_bytes(raw[60:64], "little")
