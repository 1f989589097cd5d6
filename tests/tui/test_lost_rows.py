"""Steps that speak of rows which the file does not hold."""

import json

from msgspec.structs import replace

from builders import Shape, synthetic_trace
from builders.raw_frames import pointed, split
from builders.screens import app_of, press, shown
from builders.written import write_trace
from kvtrace.files import open_trace
from kvtrace.files.layout import Kind


def without_the_last_layer(path):
    """The file, its INDEX not knowing where the last cache layer's rows are."""
    header, frames = split(path)
    made = []
    for frame in frames:
        text = frame.json
        if frame.kind == Kind.INDEX:
            value = json.loads(text)
            value["groups"][0][-1] = 2**32
            text = json.dumps(value).encode()
        made.append(replace(frame, json=text))
    path.write_bytes(pointed(header, made))
    return open_trace(path)


async def test_a_layer_whose_rows_are_not_in_the_file_is_named_and_the_others_shown(tmp_path):
    path = write_trace(tmp_path / "a.kvt", synthetic_trace(Shape(layers=2, prompt=5, decode=3)))
    app = app_of(without_the_last_layer(path))
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "n", "n")
        assert any("dim 0" in line for line in shown(app))
        assert not any("the trace has 0" in line for line in shown(app))
        await press(pilot, "right_square_bracket", "d", "n")
        assert "step 3/3 decode" in shown(app)[0]
        assert any("the trace has 0" in line for line in shown(app))
