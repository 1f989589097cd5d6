from contextlib import suppress

import pytest
from msgspec.structs import replace

from builders import MemorySource, Shape, synthetic_trace
from builders.latents import latent_trace
from kvtrace.errors import KvtraceError, UsageError
from kvtrace.trace import Meta, ModelCard, Trace
from kvtrace_tui.actions import ACTIONS, BY_ID, footer
from kvtrace_tui.desk import moves
from kvtrace_tui.desk.cursor import View
from kvtrace_tui.desk.desk import TRAITS, Desk, Recording
from kvtrace_tui.found import Answer, Found


class Stage:
    """Answers every question with what was prepared, and keeps what it was asked."""

    def __init__(self):
        self.answer, self.asked, self.copied, self.opened, self.sent = None, [], [], [], []

    def ask(self, question, text, then):
        self.asked.append((question, text))
        if self.answer is not None:
            then(self.answer)

    def copy(self, text):
        self.copied.append(text)

    def open(self, name):
        self.opened.append(name)

    def export(self):
        self.opened.append("export")

    def next_measure(self):
        return "entropy"

    def send(self, name, token=-1):
        self.sent.append((name, token))


@pytest.fixture
def desk():
    trace = synthetic_trace(Shape(layers=3, heads=4, prompt=5, decode=6))
    return Desk(Stage(), trace, moves.start(trace))


def press(desk, *ids):
    for id_ in ids:
        action = BY_ID[id_]
        reason = action.why_not(desk)
        if reason:
            desk.say(reason)
        else:
            action.do(desk)
    return desk


def test_every_key_belongs_to_one_action():
    keys = [key for action in ACTIONS for key in action.keys]
    assert len(keys) == len(set(keys))
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)


def test_no_key_is_swallowed_by_terminals_or_editors():
    keys = [key for action in ACTIONS for key in action.keys]
    assert not [key for key in keys if key.startswith("alt+")]
    assert not {"ctrl+enter", "ctrl+s", "ctrl+o", "ctrl+k"} & set(keys)


def test_every_action_works_or_says_why_not_on_any_trace(desk):
    empty = Trace(MemorySource(Meta(ModelCard("empty", "Empty"))))
    single = synthetic_trace(Shape(layers=1, heads=1, kv_heads=1, prompt=1, decode=0))
    for trace in (None, empty, single, desk.trace):
        for focus in TRAITS:
            for action in ACTIONS:
                cursor = moves.start(trace) if trace is not None else desk.cursor
                fresh = Desk(Stage(), trace, cursor, focus=focus)
                reason = action.why_not(fresh)
                if reason is None:
                    with suppress(KvtraceError):
                        action.do(fresh)
                else:
                    assert len(reason) > 10
                if trace is not None:
                    assert moves.clamp(fresh.cursor, trace) == fresh.cursor


def test_n_stops_at_the_end_and_says_so(desk):
    press(desk, *["next_step"] * 9)
    assert desk.cursor.step == 6
    assert desk.message == "this is the last step: the recording ends here"
    press(desk, "first_step", "previous_step")
    assert desk.message == "this is the first step"


def test_a_key_that_leads_no_further_says_so(desk):
    for key, last in (("layer_down", "last layer"), ("layer_up", "first layer"),
                      ("head_down", "last head"), ("head_up", "first head"),
                      ("far_right", "last row"), ("up", "first feature")):  # fmt: skip
        before = press(desk, *[key] * 9).cursor
        assert desk.message == f"this is the {last}"
        assert press(desk, key).cursor == before


def test_at_the_end_of_a_whole_recording_nothing_plays_on_and_that_is_said(desk):
    for key in ("play", "last_step"):
        desk.message = ""
        press(desk, "last_step", key)
        assert desk.message == "this is the last step: the recording ends here"
        assert not desk.playing
    desk.recording = Recording.GROWING
    press(desk, "last_step")
    assert desk.following


def test_n_at_the_end_of_a_paused_run_computes_a_step(desk):
    press(desk, "last_step")
    desk.recording = Recording.PAUSED
    press(desk, "next_step")
    assert desk.stage.sent == [("step", -1)]
    assert desk.following


@pytest.mark.parametrize("recording", [Recording.RUNNING, Recording.GROWING])
def test_going_back_ends_following(desk, recording):
    desk.recording = recording
    press(desk, "last_step")
    assert desk.following
    press(desk, "previous_step")
    assert not desk.following


def test_space_pauses_a_live_run_that_is_followed_and_plays_otherwise(desk):
    desk.recording = Recording.RUNNING
    press(desk, "last_step", "play")
    assert desk.stage.sent == [("pause", -1)]
    desk.recording = Recording.RECORDED
    press(desk, "first_step", "play")
    assert desk.playing
    press(desk, "back")
    assert not desk.playing


def test_arrows_mean_what_the_focused_pane_says(desk):
    desk.cursor = replace(desk.cursor, row=2, dim=3)
    press(desk, "right", "down")
    assert (desk.cursor.row, desk.cursor.dim) == (3, 4)
    desk.focus_on("grid")
    press(desk, "right", "right", "down")
    assert (desk.cursor.head, desk.cursor.layer, desk.cursor.row) == (2, 1, 3)
    desk.focus_on("timeline")
    press(desk, "right")
    assert desk.cursor.step == 2
    press(desk, "down")
    assert desk.message == "timeline moves left and right only"


def test_the_timeline_does_not_take_the_place_of_a_pane(desk):
    desk.focus_on("attention")
    desk.focus_on("timeline")
    assert (desk.focus, desk.shown) == ("timeline", "attention")


def test_diff_needs_another_lane(desk):
    press(desk, "diff", "diff")
    assert desk.cursor.view is View.ABSOLUTE
    source = desk.trace.source
    source.meta = replace(source.meta, lanes=())
    press(desk, "diff")
    assert "--recompute once" in desk.message
    source.ending = None
    press(desk, "diff")
    assert "when the run is over" in desk.message


def test_the_largest_difference_is_found_and_shown(desk):
    compared = desk.trace.source.lane_steps["recomputed", 4]
    compared.max_abs[2, 1, 1] = 5.0  # keys of kv head 1 in layer 2
    compared.row[2, 1, 1], compared.dim[2, 1, 1] = 0, 6
    press(desk, "largest")
    cursor = desk.cursor
    assert (cursor.step, cursor.layer, cursor.head, cursor.dim) == (4, 2, 2, 6)
    assert cursor.row == 8  # the row that step 4 wrote, after 5 of the prompt and 3 steps
    assert cursor.view is View.ABSOLUTE
    assert desk.focus == "keys"


def test_c_goes_to_breakpoints_and_findings(desk):
    desk.found = (Found(5, "DTYPE", "by 2e-3", 1, None, "k", row=3, means="rounded", grave=True),)
    press(desk, "next_step", "break", "first_step", "next_stop")
    assert desk.cursor.step == 2
    press(desk, "next_stop")
    assert (desk.cursor.step, desk.cursor.layer, desk.cursor.row) == (5, 1, 3)
    assert desk.cursor.view is View.ABSOLUTE
    assert desk.focus == "keys"
    assert desk.message.startswith("✗ DTYPE at step 5, layer 1, k")
    press(desk, "next_stop")
    assert desk.message == "no breakpoint or finding after step 5: C goes back to step 2"
    press(desk, "previous_stop")
    assert desk.cursor.step == 2
    press(desk, "break", "last_step", "previous_stop", "previous_stop")
    assert (
        desk.message
        == "no breakpoint or finding before step 5: b sets one here, B edits conditions"
    )


def test_while_the_check_goes_on_c_does_not_claim_that_nothing_is_left(desk):
    desk.answer = Answer("checking")
    press(desk, "next_stop")
    assert "step 1: the trace is still being checked; b sets one here" in desk.message


def test_conditions_are_edited_as_text(desk):
    desk.stage.answer = "step 3"
    press(desk, "edit_breaks", "next_stop")
    assert desk.cursor.step == 3
    assert desk.stage.asked[0][1] == "finding"


def test_go_to_and_find_move_the_cursor(desk):
    desk.stage.answer = "4 L2"
    press(desk, "go_to")
    assert (desk.cursor.step, desk.cursor.layer) == (4, 2)
    desk.stage.answer = "no such token"
    press(desk, "find")
    assert desk.message.startswith("no token of this step")


def test_an_empty_answer_finds_the_same_again_and_goes_nowhere(desk):
    before = desk.cursor
    desk.stage.answer = ""
    press(desk, "find", "go_to")
    assert (desk.cursor, desk.message) == (before, "")
    desk.stage.answer = desk.trace.token_text(desk.trace.step(1).tokens[0][0])
    press(desk, "find")
    said = desk.message.partition(": ")[2]
    desk.stage.answer = ""
    press(desk, "find")
    assert desk.message.partition(": ")[2] == said
    assert desk.stage.asked[-1] == (f"find a token (nothing: {desk.searched!r} again)", "")


def test_copying_gives_the_exact_value_and_code_for_it(desk):
    press(desk, "copy", "copy_code")
    value, code = desk.stage.copied
    rows = desk.trace.cache(1, 0, head=0).keys[0]
    assert float(value) == float(rows[desk.cursor.row, desk.cursor.dim])
    assert code == "kvtrace.open('memory.kvt').cache(1, 0).keys[0, 5, 0]"


def test_in_the_list_of_weights_a_weight_is_copied(desk):
    desk.focus = "attention"
    press(desk, "copy")
    weights = desk.trace.weights(1, 0, 0).weights[0, -1]
    assert float(desk.stage.copied[0]) == float(weights[desk.cursor.row])
    assert desk.message.endswith(f"(weight on row {desk.cursor.row})")
    press(desk, "copy_code")
    assert ".weights(1, 0, 0, 0, 0).weights[0, 0, 5]" in desk.stage.copied[1]


def test_recorder_keys_are_refused_without_a_recorder(desk):
    for id_ in ("run", "stop", "choose"):
        press(desk, id_)
        assert desk.message == "no recorder is running: this is what was recorded"
    assert not [action for action in footer(desk) if action.group == "recorder"]


def test_while_something_records_its_keys_stand_beside_play(desk):
    for recording in (Recording.PAUSED, Recording.RUNNING):
        desk.recording = recording
        assert [one.id for one in footer(desk)][2:5] == ["play", "run", "stop"]
    desk.following = True
    press(desk, "run")
    assert desk.message == "the recorder is running: space pauses it"
    assert desk.stage.sent == []


def test_another_token_is_chosen_by_its_text_or_id(desk):
    desk.recording = Recording.PAUSED
    press(desk, "last_step")
    rivals = desk.trace.step(6).top[0].ids
    desk.stage.answer = str(rivals[2])
    press(desk, "choose")
    assert desk.stage.sent == [("choose", rivals[2])]


def test_a_token_of_the_prompt_may_be_typed_as_it_is_shown_or_with_its_space(desk):
    desk.recording = Recording.PAUSED
    press(desk, "last_step")
    rivals = desk.trace.step(6).top[0].ids
    token = next(one for one in desk.trace.step(0).tokens[0] if one not in rivals[:5])
    words = desk.trace.token_text(token)
    for typed in (words, words.replace(" ", "·")):
        desk.stage.answer = typed
        press(desk, "choose")
    assert desk.stage.sent == [("choose", token)] * 2


def test_a_word_that_is_no_token_is_refused_and_nothing_is_sent(desk):
    desk.recording = Recording.PAUSED
    press(desk, "last_step")
    desk.stage.answer = "no such\x1b[2Jtoken"
    with pytest.raises(UsageError, match=r"'no such␛\[2Jtoken' is no rival, token of the prompt"):
        press(desk, "choose")
    assert desk.stage.sent == []


def test_a_paused_recorder_that_runs_on_is_followed(desk):
    desk.recording = Recording.PAUSED
    press(desk, "run")
    assert (desk.stage.sent, desk.following) == ([("run", -1)], True)


def test_what_was_ordered_is_said_until_it_is_done(desk):
    press(desk, "last_step")
    for order, done in (
        ("next_step", Recording.PAUSED), ("play", Recording.PAUSED), ("stop", Recording.RECORDED)
    ):  # fmt: skip
        desk.recording = Recording.RUNNING if order == "play" else Recording.PAUSED
        press(desk, order)
        said = desk.message
        desk.hear(Recording.RUNNING)
        assert desk.message == said
        assert said
        desk.hear(done)
        assert desk.message == ""
    press(desk, "copy")
    desk.hear(Recording.RECORDED)
    assert desk.message.startswith("copied")


def test_escape_undoes_one_thing_at_a_time(desk):
    press(desk, "maximise", "play", "back")
    assert (desk.maximised, desk.playing) == (False, True)
    press(desk, "back")
    assert not desk.playing
    press(desk, "back")
    assert desk.message == "nothing to go back from: q quits"


def test_walking_shows_that_we_are_inside_a_step(desk):
    press(desk, "walk", "walk")
    assert (desk.cursor.inside, desk.cursor.layer) == (True, 1)
    press(desk, "walk_back")
    assert desk.cursor.layer == 0


def test_zoom_says_when_it_can_go_no_further(desk):
    press(desk, "zoom_out")
    assert desk.message == "all of it is shown already"
    press(desk, "zoom_in", "zoom_fit")
    assert desk.cursor.zoom == 0


@pytest.mark.parametrize(
    ("focus", "axis"), [("timeline", "step"), ("grid", "head"), ("keys", "row"), ("cost", "step")]
)
def test_page_keys_move_along_what_a_pane_is_about(desk, focus, axis):
    desk.focus_on(focus)
    press(desk, "first_step", "page_on")
    assert getattr(desk.cursor, axis) > 0


def test_of_latents_it_is_said_that_they_and_not_k_and_v_are_kept(desk):
    press(desk, "kept")
    assert desk.message == "K and V as the cache keeps them after the step"
    press(desk, "kept")
    assert desk.message == "K and V as they were attended to"
    trace = latent_trace()
    latents = Desk(Stage(), trace, moves.start(trace))
    press(latents, "kept")
    assert latents.message.startswith("latents and rotary keys")
