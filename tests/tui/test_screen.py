import pytest
from msgspec.structs import replace
from textual import events
from textual.command import CommandList

from builders.screens import app_of, press, shown, until
from kvtrace.files import open_trace
from kvtrace.files.writer import TraceWriter
from kvtrace.trace import Note
from kvtrace_tui.screens.main import MainScreen

pytestmark = pytest.mark.usefixtures("truecolor")


async def test_the_screen_says_where_we_are_and_what_the_step_saved(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await until(pilot, lambda: "step 1 computed" in shown(app)[1])
        lines = shown(app)
        assert "memory.kvt" in lines[0]
        assert "3L×4H(2kv) d8 f32" in lines[0]
        assert "step 1/6 decode" in lines[0]
        assert "L0 H0" in lines[0]
        assert "■ recorded" in lines[0]
        assert "step 1 computed 1 row of Q, K, V instead of 6" in lines[1]
        assert "n Next" in lines[-1]
        await press(pilot, "n", "right_square_bracket", "right_curly_bracket")
        assert "step 2/6" in shown(app)[0]
        assert "L1 H1" in shown(app)[0]
        await press(pilot, "N", "N")
        assert "step 0/6 prefill" in shown(app)[0]


async def test_the_number_under_the_crosshair_is_the_exact_one(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "left", "down", "down")
        value = float(trace.cache(1, 0, head=0).keys[0, 4, 2])
        assert any(f"{value:+.9g}" in line for line in shown(app))


async def test_a_compact_screen_shows_the_pane_that_is_asked_for(trace):
    app = app_of(trace)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert any("K cache" in line for line in shown(app))
        for key, words in (("1", "heads"), ("3", "V cache"), ("5", "attention"), ("7", "cost")):
            await press(pilot, key)
            assert any(words in line for line in shown(app)[8:]), key
            assert not any("K cache" in line for line in shown(app)[8:]), key


async def test_tabs_that_do_not_fit_are_numbers_and_the_shown_one_has_its_name(trace):
    app = app_of(trace)
    async with app.run_test(size=(40, 14)) as pilot:
        await press(pilot, "6")
        (tabs,) = [line for line in shown(app) if line.startswith(" 1 ")]
        assert tabs.split() == ["1", "2", "3", "4", "5", "6", "inspect", "7"]
        await pilot.click("#tabs", offset=(tabs.index("7"), 0))
        await until(pilot, lambda: any(" 7 cost " in line for line in shown(app)))


async def test_a_refused_key_says_why(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "end", "n")
        assert "this is the last step" in shown(app)[-1]
        await press(pilot, "r")
        assert "no recorder is running" in shown(app)[-1]
        await press(pilot, "N")
        assert "n Next" in shown(app)[-1]


async def test_what_a_key_led_to_is_said_whole_on_as_many_lines_as_it_takes(trace):
    app = app_of(trace)
    async with app.run_test(size=(80, 24)) as pilot:
        await press(pilot, "D")
        said = app.screen.desk.message
        assert len(said) > 72
        assert said in " ".join(line.strip() for line in shown(app)[-2:])
        await press(pilot, "N")
        await pilot.pause()
        assert "n Next" in shown(app)[-1]
        assert "dim" in shown(app)[-2]


async def test_the_widest_footer_names_the_help_once(trace):
    app = app_of(trace)
    async with app.run_test(size=(300, 45)) as pilot:
        await pilot.pause()
        assert shown(app)[-1].lower().count("help") == 1
        assert "q Quit" in shown(app)[-1]


async def test_maximise_and_back(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "1", "z")
        text = "\n".join(shown(app))
        assert "heads" in text
        assert "K cache" not in text
        await press(pilot, "escape")
        assert "K cache" in "\n".join(shown(app))


async def test_diff_mode_shows_the_lanes_differences(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "d", "d")
        assert "|cached − recomputed|" in shown(app)[0]
        assert app.screen.desk.cursor.view.value == "absolute"


async def test_go_to_is_typed_and_a_wrong_place_is_explained(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "g", "4", "enter")
        assert "step 4/6" in shown(app)[0]
        await press(pilot, "g", "9", "9", "enter")
        assert "steps 0 to 6" in shown(app)[-1]
        await press(pilot, "g", "escape")
        assert isinstance(app.screen, MainScreen)
        assert "step 4/6" in shown(app)[0]


async def test_what_is_typed_ahead_of_a_prompt_is_not_lost(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        for key in ("g", "4", "enter"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        await until(pilot, lambda: "step 4/6" in shown(app)[0])


async def test_help_shows_every_key_and_goes_away(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 110)) as pilot:
        await press(pilot, "question_mark")
        text = "\n".join(shown(app))
        for words in ("Go to the next step", "Jump to the largest difference", "Quit"):
            assert words in text
        await press(pilot, "escape")
        assert isinstance(app.screen, MainScreen)


async def test_the_palette_finds_actions_by_name(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "colon")
        await press(pilot, *"last")
        await until(pilot, lambda: "Last" in "\n".join(shown(app)))
        await press(pilot, "down", "enter")
        await pilot.pause()
        assert app.screen.desk.cursor.step == 6


async def test_breakpoints_and_findings_are_marked_and_reached(trace):
    trace.source.notes.append(Note("finding", "divergence: planted", step=4, site=1))
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await until(pilot, lambda: app.screen.desk.answer.verdict not in ("", "checking"))
        assert [one.said for one in app.screen.desk.found] == ["divergence: planted"]
        assert "✓ lanes equal" in shown(app)[0]
        await press(pilot, "end", "C")
        assert "step 4/6" in shown(app)[0]
        assert "L1" in shown(app)[0]
        assert "planted" in shown(app)[1]


async def test_copy_reaches_the_clipboard(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "Y")
        assert app.clipboard == "kvtrace.open('memory.kvt').cache(1, 0).keys[0, 5, 0]"


async def test_export_writes_one_picture_without_network(trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "e", "e")
        assert "memory-step1-2.svg" in shown(app)[-1]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["memory-step1-2.svg", "memory-step1.svg"]
    svg = (tmp_path / "memory-step1.svg").read_text()
    assert "@font-face" not in svg
    assert "url(http" not in svg


async def test_a_click_gives_a_pane_the_arrows_and_moves_the_crosshair(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await until(pilot, lambda: any(one.region for one in app.screen.query("#attention")))
        await pilot.click("#attention", offset=(4, 4))
        await until(pilot, lambda: app.screen.desk.focus == "attention")
        await pilot.click("#grid", offset=(6, 3))
        await pilot.pause()
        assert app.screen.desk.focus == "grid"
        assert app.screen.desk.cursor.layer == 1
        await pilot.click("#sentence", offset=(4, 0))
        await press(pilot, "y")  # of what the arrows move
        assert app.screen.desk.focus == "grid"


async def test_ctrl_z_lends_the_terminal_to_the_shell(trace, monkeypatch):
    app, asked = app_of(trace), []
    monkeypatch.setattr(app, "action_suspend_process", lambda: asked.append("stop"))
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "ctrl+z")
        assert asked == ["stop"]


async def test_the_wheel_goes_through_time(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await pilot.pause()
        app.screen.action_act("next_step")
        assert app.screen.desk.cursor.step == 2


async def test_play_goes_on_to_the_end_and_stops(trace, monkeypatch):
    monkeypatch.setattr("kvtrace_tui.screens.main.PLAY_S", 3600)
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "space")
        assert "playing" in shown(app)[0]
        for _ in range(6):
            app.screen._play()
        await pilot.pause()
        assert app.screen.desk.cursor.step == 6
        assert "playing" not in shown(app)[0]


async def test_an_empty_trace_opens(tmp_path, trace):
    with TraceWriter(tmp_path / "a.kvt", trace.meta):
        pass
    empty = open_trace(tmp_path / "a.kvt")
    app = app_of(empty)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, *"nNdDtc123", "left", "up", "space", "end", "y", "Y")
        assert "this trace has no steps: nothing was recorded" in shown(app)[-1]


async def test_a_batch_has_a_sequence_to_choose(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "right_parenthesis")
        assert "one sequence only" in shown(app)[-1]


async def test_every_size_is_laid_out(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        for size in [(1, 1), (39, 12), (40, 12), (80, 24), (100, 30), (181, 31), (500, 120)]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
            lines = shown(app)
            assert len(lines) == size[1]
            assert all(len(line) <= size[0] for line in lines)


async def test_keys_that_reach_the_palette_before_its_list_is_there_do_nothing(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "ctrl+p")
        commands = app.screen.query_one(CommandList)
        await until(pilot, lambda: commands.option_count > 0)
        commands.display = False
        await until(pilot, lambda: not commands.size.height)
        commands.set_options(list(commands.options))
        await press(pilot, "pageup", "pagedown")
        await press(pilot, "escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen))


@pytest.mark.parametrize("page", ["f", "w", "o", "u", "question_mark", "g", "ctrl+p"])
async def test_a_page_that_is_left_twice_takes_no_other_screen_with_it(trace, page):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, page)
        over = app.screen
        assert not isinstance(over, MainScreen)
        over.dismiss(None)
        over.dismiss(None)
        await until(pilot, lambda: isinstance(app.screen, MainScreen))
        await press(pilot, "n")
        assert "step 2/6" in shown(app)[0]


async def test_an_error_in_a_pane_ends_the_app_with_that_error(trace, monkeypatch):
    app = app_of(trace)

    def broken(*_):
        raise RuntimeError("planted")

    async def look():
        async with app.run_test(size=(120, 40)) as pilot:
            monkeypatch.setattr(app.screen.pane("keys"), "draw", broken)
            await press(pilot, "n")
            await until(pilot, lambda: app.failure)

    with pytest.raises(RuntimeError, match="planted"):
        await look()
    assert str(app.failure) == "planted"


async def test_the_banner_of_a_model_is_always_in_sight(trace):
    meta = trace.source.meta
    trace.source.meta = replace(meta, model=replace(meta.model, banner="3 weights are random"))
    app = app_of(trace)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        assert "3 weights are random" in shown(app)[0]
