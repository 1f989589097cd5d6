"""Translators that a loop drives by methods of their own: encode, begin a state, take a step."""

import pytest
import torch
from torch import nn

import kvtrace
from kvtrace.analysis.checks.report import DIVERGED, EQUAL
from kvtrace.analysis.checks.verdict import check
from kvtrace.analysis.course import course

SOURCES = ([5, 9, 3, 7, 2, 4], [8, 1, 13, 17, 6])


class Mixing(nn.Module):
    """Attention to whatever it is given, with a cache that grows, or is filled once."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, read, mask, cache, grows):
        q, k, v = (
            mix(one).unflatten(-1, (2, 8)).transpose(1, 2) for mix, one in self.given(x, read)
        )
        if cache and not grows:
            k, v = cache["k"], cache["v"]
        elif cache:
            k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
        if cache is not None:
            cache |= {"k": k, "v": v}
        scores = q @ k.transpose(-2, -1) * 8**-0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def given(self, x, read):
        return (self.q, x), (self.k, read), (self.v, read)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.src_attn = Mixing(), Mixing()

    def forward(self, x, memory, mask, own=None, other=None):
        x = x + self.self_attn(x, x, mask, own, True)
        return x + self.src_attn(x, memory, None, other, False)


class Translator(nn.Module):
    further = 1
    """Positions that a step goes on by."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.src_embed, self.tgt_embed = nn.Embedding(20, 16), nn.Embedding(20, 16)
        self.places, self.head = nn.Embedding(64, 16), nn.Linear(16, 20)
        self.encoder = nn.ModuleList(Mixing() for _ in range(2))
        self.decoder = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, src, tgt, tgt_mask):
        x, memory = self.tgt_embed(tgt) + self.places.weight[: tgt.shape[1]], self.encode(src)
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask)
        return self.head(x)

    def encode(self, src):
        x = self.src_embed(src) + self.places.weight[: src.shape[1]]
        for layer in self.encoder:
            x = x + layer(x, x, None, None, False)
        return x

    def init_state(self, memory):
        return {"memory": memory, "at": 0, "layers": [({}, {}) for _ in self.decoder]}

    def decode_step(self, token, state):
        x = self.tgt_embed(token)[:, None] + self.places.weight[state["at"]]
        for layer, (own, other) in zip(self.decoder, state["layers"], strict=True):
            x = layer(x, state["memory"], None, own, other)
        state["at"] += self.further
        return self.head(x)[:, -1], state


class Named(Translator):
    """Its forward calls the two texts otherwise, and hides later tokens itself."""

    def forward(self, input_ids, decoder_input_ids):
        new = decoder_input_ids.shape[1]
        return super().forward(input_ids, decoder_input_ids, torch.ones(new, new).tril())


class Looping(Translator):
    """Translates by itself; its forward has no cache."""

    def translate(self, src, max_len=20, start=1):
        return run(self, src, max_len, start)


class Skipping(Looping):
    further = 2


@torch.no_grad()
def run(model, source, steps, token):
    state = model.init_state(model.encode(source))
    for _ in range(steps):
        logits, state = model.decode_step(torch.tensor([token]), state)
        token = int(logits.argmax())


def translated(model, path, sources=SOURCES):
    model = model()
    with kvtrace.record(path):
        for source in sources:
            run(model, torch.tensor([source]), 9, 1)
    return kvtrace.open(path)


@pytest.mark.parametrize("model", [Translator, Named])
def test_steps_are_held_against_the_forward_over_both_texts(tmp_path, model):
    trace = translated(model, tmp_path / "a.kvt")
    assert check(trace).verdict == EQUAL
    assert course(trace) == "encoder over 6, prefill of 1, 8 decode steps, and 1 more start"


def test_a_position_that_a_step_counts_wrongly_is_found(tmp_path):
    first = check(translated(Skipping, tmp_path / "a.kvt", SOURCES[:1])).findings[0]
    assert (first.name, first.step, first.layer) == ("POSITION-EMBEDDING", 2, 2)


def test_every_attention_is_seen_once_in_whichever_text(tmp_path):
    trace = translated(Translator, tmp_path / "a.kvt")
    assert [site.module for site in trace.meta.sites] == [
        *("encoder.0", "encoder.1", "decoder.0.self_attn", "decoder.0.src_attn"),
        *("decoder.1.self_attn", "decoder.1.src_attn"),
    ]
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize(("model", "names"), [(Looping, []), (Skipping, ["POSITION-EMBEDDING"])])
def test_a_translator_is_checked_by_its_own_loop(model, names):
    report = kvtrace.check(model(), [SOURCES[0]], new_tokens=4)
    assert report.verdict == (DIVERGED if names else EQUAL)
    assert sorted({one.name for one in report.findings}) == names


class Inline(Translator):
    """Its method attends by itself, in no module of an encoder."""

    def encode(self, src):
        x = self.src_embed(src)
        q, k, v = (x.unflatten(-1, (2, 8)).transpose(1, 2) for _ in range(3))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_method_that_encodes_by_itself_is_no_text_that_looks_ahead(tmp_path):
    trace = translated(Inline, tmp_path / "a.kvt")
    assert (trace.site(0).module, trace.site(0).kind) == ("Inline.encode", "encoder")
    assert check(trace).findings == ()


class Inner(Translator):
    """All attention is in its own methods."""

    def __init__(self):
        super().__init__()
        del self.encoder, self.decoder
        self.reads, self.writes = (nn.Linear(16, 48) for _ in range(2))
        self.asks, self.hears = nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, src, tgt):
        return self.dec(tgt, self.encode(src), None, 0)[0]

    def encode(self, src):
        x = self.src_embed(src) + self.places.weight[: src.shape[1]]
        q, k, v = split(self.reads(x), 3)
        return x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def dec(self, tgt, mem, held, at):
        x = self.tgt_embed(tgt) + self.places.weight[at : at + tgt.shape[1]]
        q, k, v = split(self.writes(x), 3)
        if held is not None:
            k, v = torch.cat((held[0], k), 2), torch.cat((held[1], v), 2)
        x = x + mixed(q, k, v, causal=held is None)
        (q,), (keys, values) = split(self.asks(x), 1), split(self.hears(mem), 2)
        return self.head(x + mixed(q, keys, values, causal=False)), (k, v)

    def init_state(self, memory):
        return memory, None, 0

    def decode_step(self, token, state):
        memory, held, at = state
        logits, held = self.dec(token[:, None], memory, held, at)
        return logits[:, -1], (memory, held, at + self.further)


class InnerSkipping(Inner):
    further = 2


def split(x, parts):
    return x.unflatten(-1, (parts, 2, 8)).permute(2, 0, 3, 1, 4)


def mixed(q, k, v, *, causal):
    seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return seen.transpose(1, 2).flatten(2)


def test_methods_that_attend_by_themselves_are_held_against_the_forward(tmp_path):
    trace = translated(Inner, tmp_path / "a.kvt")
    assert check(trace).verdict == EQUAL
    assert [one.kind for one in trace.meta.sites] == ["encoder", "self", "cross"]
    first = check(translated(InnerSkipping, tmp_path / "b.kvt", SOURCES[:1])).findings[0]
    assert (first.name, first.step, first.layer) == ("POSITION-EMBEDDING", 2, 1)


class Helped(Inner):
    """Whoever attends calls one helper, which is given a mask or none."""

    def encode(self, src):
        return self.src_embed(src) + mixed(*split(self.reads(self.src_embed(src)), 3), causal=False)


def test_a_helper_that_both_sides_call_attends_for_the_one_that_called_it(tmp_path):
    trace = translated(Helped, tmp_path / "a.kvt")
    sites = [(one.module, one.call, one.kind) for one in trace.meta.sites]
    assert sites == [("Helped.encode", 0, "encoder"), ("mixed", 0, "self"), ("mixed", 1, "cross")]
    assert check(trace).verdict == EQUAL


class Reading(Inner):
    """A decoder alone: what `encode` reads is hidden from earlier tokens, as in any other text."""

    def encode(self, src):
        x = self.src_embed(src)
        return x + mixed(*split(self.reads(x), 3), causal=True)


def test_a_function_that_encodes_without_looking_ahead_is_no_encoder(tmp_path):
    with torch.no_grad(), kvtrace.record(tmp_path / "a.kvt"):
        Reading().encode(torch.tensor([SOURCES[0]]))
    assert [one.kind for one in kvtrace.open(tmp_path / "a.kvt").meta.sites] == ["self"]
