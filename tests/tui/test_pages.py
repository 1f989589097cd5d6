"""Pages over the main screen: findings, memory, code."""

from msgspec.structs import replace

from builders.screens import app_of, press, shown, until
from kvtrace.trace import Note
from kvtrace_tui.actions import ACTIONS
from kvtrace_tui.drawing import ink
from kvtrace_tui.found import Answer
from kvtrace_tui.panes.cost import CostPane
from kvtrace_tui.screens.pages.choices import ChoiceScreen
from kvtrace_tui.screens.pages.page import Lines, PageScreen, text_rows


async def test_the_list_of_findings_goes_to_the_one_that_is_chosen(trace):
    for step in (2, 5):
        trace.source.notes.append(Note("finding", f"planted {step}", step=step, site=1))
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        await press(pilot, "f")
        await until(pilot, lambda: "equal within rounding" in "\n".join(shown(app)))
        lines = "\n".join(shown(app))
        assert "✓ equal within rounding · 2 findings" in lines
        assert "planted 2" in lines
        await press(pilot, "down", "enter")
        assert app.screen.desk.cursor.step == 5
        assert "planted 5" in shown(app)[1]
        await press(pilot, "f", "escape")
        assert app.screen.desk.cursor.step == 5


async def test_a_page_opened_before_the_first_picture_holds_no_search_up(trace):
    app = app_of(trace)
    async with app.run_test(size=(160, 45)) as pilot:
        screen = app.screen
        screen._making = iter([[CostPane()]])  # as if the first picture were still to come
        screen.desk.answer = Answer()
        app.push_screen(ChoiceScreen("findings", lambda width, chosen: [], 0))
        await pilot.pause()
        assert screen.query(CostPane).last() is screen.pane("")
        assert screen.desk.answer.verdict


async def test_memory_and_code_have_pages_of_their_own(trace):
    app = app_of(trace)
    async with app.run_test(size=(120, 40)) as pilot:
        await press(pilot, "u")
        await until(pilot, lambda: "After step 1 the cache holds" in "\n".join(shown(app)))
        await press(pilot, "escape", "i")
        words = "where this attention is written was not seen"
        await until(pilot, lambda: words in "\n".join(shown(app)))
        await press(pilot, "q")
        assert "K cache" in "\n".join(shown(app))


async def test_the_lines_that_are_meant_are_in_sight_in_a_small_terminal(
    trace, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    lines = [f"line_{number} = {number}" for number in range(1, 90)]
    (tmp_path / "model.py").write_text("\n".join(lines))
    site = replace(trace.meta.sites[0], code="model.py:37", scores_code="model.py:33")
    trace.source.meta = replace(trace.meta, sites=(site, *trace.meta.sites[1:]))
    app = app_of(trace)
    async with app.run_test(size=(80, 24)) as pilot:
        await press(pilot, "i")
        await until(pilot, lambda: "▸" in "\n".join(shown(app)))
        meant = [line.split()[1] for line in shown(app) if line.strip().startswith("▸")]
        assert meant == ["33", "37"]


async def test_the_last_column_of_a_page_is_the_scroll_bars(trace):
    words = "0123456789" * 8
    app = app_of(trace)
    async with app.run_test(size=(80, 24)) as pilot:
        rows = [[(words[:79], ink.TEXT)] for _ in range(40)]
        app.push_screen(PageScreen("many", lambda width: [[(str(width), ink.TEXT)], *rows]))
        await until(pilot, lambda: "many" in shown(app)[0])
        await pilot.pause()
        lines = shown(app)
    assert lines[1].split() == ["79"]
    assert all(line[:79] == words[:79] for line in lines[2:24])


async def test_help_breaks_between_words_in_a_small_terminal(trace):
    app = app_of(trace)
    async with app.run_test(size=(80, 24)) as pilot:
        await press(pilot, "question_mark")
        await until(pilot, lambda: "keys" in shown(app)[0])
        page = app.screen.query_one(Lines)
        said = ["".join(words for words, _ in row) for row in page._make(page.room)]
    assert max(map(len, said)) <= 79
    told = " ".join(" ".join(said).split())
    for action in ACTIONS:
        assert " ".join(action.help.split()) in told, action.id


def test_the_log_breaks_long_lines_between_words():
    said = ["Loading weights", "a warning that " + "goes on and on " * 9 + "to its end"]
    rows = ["".join(words for words, _ in row) for row in text_rows(said, "nothing", 79)]
    assert max(map(len, rows)) <= 79
    assert rows[0] == " Loading weights"
    assert " ".join(" ".join(rows[1:]).split()) == said[1]
    assert len(text_rows([], "nothing", 79)) == 1
