"""What a drive does where the way is the user's, where it is in doubt, and where there is none."""

import re
import textwrap

import pytest
import torch

from builders.driven import forgotten, greedy, run_file
from builders.people import HERE
from kvtrace.errors import ModelError
from kvtrace.live.recording import wish_of
from kvtrace.models import LoadRequest, load
from kvtrace.record.driving import choose_drive
from kvtrace.record.driving.trying.private import private_copy

CORE = f"""
import sys
sys.path.append({str(HERE)!r})
import torch
from parts import LAYERS, Core, length
"""


@pytest.fixture
def mine(tmp_path):
    """Runs a user's file that stands on the common weights."""

    def run(code, factory="build", **options):
        (tmp_path / "mine.py").write_text(CORE + textwrap.dedent(code))
        return run_file(f"{tmp_path / 'mine.py'}:{factory}", **options)

    return run


@pytest.fixture(scope="module")
def expected():
    with forgotten():
        loaded = load(
            LoadRequest(f"{HERE}/parts.py:Core", prompt="hello"), lambda text, share: None
        )
        return greedy(loaded.model.full, b"hello", 6)


# -- the user's own functions ------------------------------------------------------------------

STRANGE = """
class Strange(Core):
    def begin(self, room): return {"rows": None, "room": room}
    def feed(self, ids, memo):
        logits, memo["rows"] = self.grown(ids, memo["rows"], length(memo["rows"]))
        return logits
def build(): return Strange()
"""
STEP = """
def make_cache(model, batch, max_len): return model.begin(max_len)
def step(model, ids, cache, pos):
    assert cache["room"] == 11 and pos == length(cache["rows"])
    return model.feed(ids, cache)
"""


def test_the_strangest_model_is_driven_by_two_functions(mine, expected):
    run = mine(STRANGE + STEP)
    assert run.tokens == expected
    assert run.driven.call == "your step(model, ids, cache, pos) with the cache of your make_cache"


def test_step_may_return_the_cache(mine, expected):
    run = mine(
        """
        build = Core
        def step(model, ids, cache, pos):
            return model.grown(ids, cache, pos)
        """
    )
    assert run.tokens == expected


def test_step_drives_a_model_that_refuses_to_be_called(mine, expected):
    run = mine(
        """
        class Refuses(Core):
            forward = None
            def __call__(self, *_): raise RuntimeError("use grown")
        def build(): return Refuses()
        def step(model, ids, cache, pos): return model.grown(ids, cache, pos)
        """
    )
    assert run.tokens == expected


def test_an_adapter_object_brings_its_methods(mine, expected):
    run = mine(
        """
        class Adapter:
            def __init__(self): self.model = Core()
            def step(self, ids, cache, pos): return self.model.grown(ids, cache, pos)
        def build(): return Adapter()
        """
    )
    assert run.tokens == expected


def test_make_cache_alone_begins_the_cache_that_is_passed(mine, expected):
    run = mine(
        """
        class Odd(Core):
            def forward(self, ids, cache):
                logits, cache["layers"] = self.grown(ids, cache["layers"], cache["count"])
                cache["count"] += ids.shape[1]
                return logits
        def make_cache(model, batch, max_len): return {"layers": None, "count": 0}
        def build(): return Odd()
        """
    )
    assert run.tokens == expected
    assert "the cache begins as your make_cache" in run.driven.said[0]


def test_a_step_without_logits_is_told_what_to_return(mine):
    with pytest.raises(ModelError, match=r"step\(model.*\): it returned .* or \(logits, cache\)"):
        mine("build = Core\ndef step(model, ids, cache, pos): return 'text'\n")


# -- in doubt ----------------------------------------------------------------------------------

BUGS = {
    "positions start at zero in every step": ("self.grown(ids, past, 0)", "differ from a pass"),
    "the past is dropped": ("self.grown(ids, None, length(past))", "see nothing of the tokens"),
    "the newest row of the past is lost": (
        "self.grown(ids, past and [(k[:, :, :-1], v[:, :, :-1]) for k, v in past], length(past))",
        "differ from a pass",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_cache_with_a_bug_is_used_all_the_same_and_the_difference_is_said(mine, bug):
    grown, told = BUGS[bug]
    run = mine(
        f"""
        class Buggy(Core):
            def forward(self, ids, past=None):
                return {grown}
        def build(): return Buggy()
        """
    )
    assert run.driven.call == "model(ids [1, new], past=cache)"
    assert told in run.driven.said[1]
    assert "its cache has a bug, or it wants to be called otherwise" in run.driven.said[1]


OWN_LOOP = """
class Own(Core):
    def forward(self, ids, past=None, start=None):
        # a start that is given is counted from the end of the past: twice
        begin = length(past) if start is None else start + length(past)
        return self.grown(ids, past, min(begin, 60))
    def generate(self, ids, max_new_tokens):
        past = None
        for n in range(max_new_tokens):
            logits, past = self(ids if past is None else ids[:, -1:], past, START)
            ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
        return ids
def build(): return Own()
"""


def test_their_own_generation_says_how_even_where_it_is_wrong(mine):
    wrong = mine(OWN_LOOP.replace("START", "0 if past is None else length(past)"))
    assert wrong.driven.call == "model(ids [1, new], past=cache, start=start)"
    assert "as its own code does" in wrong.driven.said[0]
    assert "differ from a pass" in wrong.driven.said[1]
    right = mine(OWN_LOOP.replace("START", "None"))
    assert right.driven.call == "model(ids [1, new], past=cache)"
    assert len(right.driven.said) == 1


def test_a_generation_outside_of_the_model_counts_too(mine):
    run = mine(
        OWN_LOOP.replace("    def generate(self,", "def generate(self,").replace(
            "START", "0 if past is None else length(past)"
        )
    )
    assert run.driven.call == "model(ids [1, new], past=cache, start=start)"


def test_a_likelier_way_that_differs_is_not_passed_over_in_silence(mine):
    run = mine(
        """
        class Twice(Core):
            def forward(self, ids, past=None, start=0):
                return self.grown(ids, past, min(start + length(past), 60))
        def build(): return Twice()
        """
    )
    assert run.driven.call == "model(ids [1, new], past=cache)"
    assert "called as model(ids [1, new], past=cache, start=start)" in run.driven.said[1]
    assert "if that is how you call it, there is a bug" in run.driven.said[1]


def test_a_model_that_is_not_causal_is_said_to_be_none(mine):
    run = mine(
        """
        class Both(Core):
            def forward(self, ids):
                x = self.embed(ids, torch.arange(ids.shape[1]))
                everything = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool)
                for n in range(LAYERS):
                    x = self.mix(n, x, *self.project(n, x), everything)
                return self.head(x)
        def build(): return Both()
        """
    )
    assert "it is not causal" in run.driven.said[1]


# -- nothing works -----------------------------------------------------------------------------

HOPELESS = {
    "hidden rows": ("return self.embed(ids, torch.arange(ids.shape[1]))", "hidden rows .* no log"),
    "a loss": ("return self.full(ids).mean()", "a single number, a loss perhaps"),
    "its own error": ("raise ValueError('wrong phase of the moon')", "wrong phase of the moon"),
    "text": ("return 'hello'", "it returned str without a tensor of floats"),
    "nothing": ("self.full(ids)", r"it returned None: is a return missing\?"),
    "ids": (
        "return self.full(ids).argmax(-1)",
        r"it returned int64 \[1, \d+\]; expected logits, of which ids are chosen",
    ),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_where_no_way_works_it_says_what_was_tried_and_what_to_add(mine, kind):
    line, told = HOPELESS[kind]
    code = f"class Bad(Core):\n    def forward(self, ids, extra=1):\n        {line}\nbuild = Bad\n"
    with pytest.raises(ModelError, match=told) as caught:
        mine(code)
    text = str(caught.value)
    assert text.startswith(
        "no way to call Bad.forward(ids, extra=…) was found (model(ids [1, all])"
    )
    assert "def step(model, ids, cache, pos)" in text
    assert re.search(r"It is written in mine\.py:\d+\.", text)
    assert "\n" not in text


# -- nothing is left ---------------------------------------------------------------------------


def test_trying_leaves_the_model_and_the_file_as_they_were(tmp_path):
    (tmp_path / "mine.py").write_text(
        CORE
        + textwrap.dedent(
            """
            SEEN, HELD = [], {"rows": None}
            class Global(Core):
                count = 0
                def __init__(self):
                    super().__init__()
                    self.register_buffer("rows", torch.zeros(1))
                    self.kept = []
                def forward(self, ids, past=None, memo={}):
                    SEEN.append(ids.shape[1]); memo["n"] = len(SEEN); HELD["rows"] = SEEN
                    self.count += 1; self.kept.append(ids); self.rows += 1
                    return self.grown(ids, past, length(past))
            """
        )
    )
    with forgotten():
        spec = f"{tmp_path / 'mine.py'}:Global"
        loaded = load(LoadRequest(spec, prompt="hello"), lambda text, share: None)
        torch.manual_seed(4)
        drawn = torch.rand(1)
        torch.manual_seed(4)
        choose_drive(loaded.model, wish_of(loaded))
        model, script = loaded.model, loaded.script
        assert (model.count, model.kept, float(model.rows)) == (0, [], 0.0)
        assert (script.SEEN, script.HELD) == ([], {"rows": None})
        assert type(model).forward.__defaults__ == (None, {})
        assert torch.equal(torch.rand(1), drawn)


def test_a_private_copy_shares_parameters_and_nothing_else():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.kept = torch.ones(1)
    seen = {}
    model.register_forward_hook(lambda module, args, out: seen.update(n=id(module)))
    made = private_copy(model)
    assert all(
        one is other for one, other in zip(model.parameters(), made.parameters(), strict=True)
    )
    assert made[1].running_mean.data_ptr() != model[1].running_mean.data_ptr()
    assert made.kept.data_ptr() != model.kept.data_ptr()
    made(torch.ones(2, 2))
    assert not seen  # the copy's hook fills the copy's dictionary


def test_a_model_that_can_not_be_copied_is_made_again_to_be_tried(mine, expected):
    run = mine(
        """
        import threading
        MADE = []
        class Locked(Core):
            def __init__(self):
                super().__init__()
                self.lock = threading.Lock()
                MADE.append(1)
            def forward(self, ids, past=None):
                return self.grown(ids, past, length(past))
        build = Locked
        """
    )
    assert run.tokens == expected
    assert run.driven.call == "model(ids [1, new], past=cache)"


def test_the_same_complaint_is_made_once(mine):
    with pytest.raises(ModelError) as caught:
        mine("class Bad(Core):\n    def forward(self, ids): return self.wte(ids)\nbuild = Bad\n")
    assert str(caught.value).count("hidden rows") == 1


def test_trying_out_leaves_no_line_in_their_log(mine, caplog):
    mine(
        """
        import logging
        class Talks(Core):
            def forward(self, ids, cache=None):
                logging.getLogger("mine").warning("called")
                return self.grown(ids, cache, length(cache))
        def build(): return Talks()
        """
    )
    assert len(caplog.messages) == 6  # its steps, and none of the calls before


def test_a_decoder_that_reads_its_own_text_for_want_of_another_is_not_driven(mine):
    code = """
    class Reads(Core):
        def forward(self, ids, memory):
            x = self.embed(ids, torch.arange(ids.shape[1]))
            memory = x if memory is None else memory
            x = x + torch.softmax(x @ memory.mT, -1) @ memory
            return self.head(x)
    build = Reads
    """
    told = r"called as model\(ids \[1, all\], memory=None\), its rows change when tokens are added"
    with pytest.raises(ModelError, match=told):
        mine(textwrap.dedent(code))
