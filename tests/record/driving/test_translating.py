"""Translators without a loop of their own, driven by their methods as a prompt and steps are."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import DIVERGED, EQUAL
from kvtrace.record.driving import Wish, choose_drive

PROMPT = [5, 9, 3, 7, 2, 4]


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def split(self, x):
        return x.unflatten(-1, (2, 8)).transpose(1, 2)

    def forward(self, x, read, held=None, *, causal=False):
        q, k, v = (self.split(mix(one)) for mix, one in self.given(x, read))
        if held:
            k, v = torch.cat((held[0], k), 2), torch.cat((held[1], v), 2)
        new = q.shape[2]
        shown = torch.ones(new, k.shape[2], dtype=torch.bool)
        shown = shown.tril(k.shape[2] - new) if causal else shown
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        return out.transpose(1, 2).flatten(2), (k, v)

    def given(self, x, read):
        return (self.q, x), (self.k, read), (self.v, read)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = Mixing(), Mixing()

    def forward(self, x, memory, held):
        own, held = self.self_attn(x, x, held, causal=True)
        x = x + own
        return x + self.cross_attn(x, memory)[0], held


class Translator(nn.Module):
    """Its forward has both texts and no cache."""

    further = 1

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.src_embed, self.tgt_embed = nn.Embedding(20, 16), nn.Embedding(20, 16)
            self.places, self.head = nn.Embedding(64, 16), nn.Linear(16, 20)
            self.encoder = nn.ModuleList([Mixing()])
            self.decoder = nn.ModuleList([Layer()])

    def forward(self, src, tgt):
        return self.head(self.decoded(tgt, self.encode(src), None, 0)[0])

    def encode(self, src):
        x = self.src_embed(src) + self.places.weight[: src.shape[1]]
        return x + self.encoder[0](x, x)[0]

    def decoded(self, tgt, memory, held, at):
        x = self.tgt_embed(tgt) + self.places.weight[at : at + tgt.shape[1]]
        return self.decoder[0](x, memory, held)


class Stated(Translator):
    """The state holds all, tokens come flat, and the state comes back."""

    def init_state(self, memory):
        return {"memory": memory, "held": None, "at": 0}

    def decode_step(self, token, state):
        x, held = self.decoded(token[:, None], state["memory"], state["held"], state["at"])
        return self.head(x)[:, -1], state | {"held": held, "at": state["at"] + self.further}


class Written(Stated):
    """The state is written to, made of the source, and logits alone come back."""

    def start_decode(self, src):
        return super().init_state(self.encode(src))

    init_state = None

    def decode_step(self, token, state):
        logits, after = super().decode_step(token, state)
        state.update(after)
        return logits


class Named(Stated):
    """Its forward calls the texts as those of transformers do."""

    def forward(self, input_ids, decoder_input_ids):
        return super().forward(input_ids, decoder_input_ids)


class Beside(Translator):
    """What was encoded is given to every step, with the cache and the place beside it."""

    def decode_step(self, token, memory, cache, pos):
        x, cache = self.decoded(token, memory, cache, pos * self.further)
        return self.head(x), cache


def skipping(kind):
    return type("Skipping", (kind,), {"further": 2})()


@pytest.mark.parametrize("kind", [Stated, Written, Named, Beside])
def test_a_translator_is_driven_by_its_methods_and_held_against_its_forward(kind):
    driven = choose_drive(kind(), Wish(PROMPT, 4))
    assert driven.call.startswith("model.encode, ")
    assert "then model.decode_step(" in driven.call
    assert "=prompt[:-1], " in driven.call
    report = kvtrace.check(kind(), [PROMPT], new_tokens=4)
    assert report.verdict == EQUAL
    assert [one.report.verdict for one in report.trials[:2]] == [EQUAL, EQUAL]


@pytest.mark.parametrize("kind", [Stated, Written, Named, Beside])
def test_a_place_that_its_steps_count_wrongly_is_found(kind):
    report = kvtrace.check(skipping(kind), [PROMPT], new_tokens=4, ways=["again"])
    found = report.findings[0]
    assert (report.verdict, found.name, found.step) == (DIVERGED, "POSITION-EMBEDDING", 1)


def test_an_encoder_reads_its_text_once(tmp_path):
    model = Stated()
    driven = choose_drive(model, Wish(PROMPT, 4))
    with kvtrace.record(driven.model, tmp_path / "a.kvt"):
        for end in range(1, 8):
            driven.drive.step([*PROMPT, 8][:end])
    trace = kvtrace.open(tmp_path / "a.kvt")
    kinds = [one.kind for one in trace.meta.sites]
    assert kinds == ["encoder", "self", "cross"]
    assert [len(step.attending) for step in trace] == [3, *[2] * 6]
