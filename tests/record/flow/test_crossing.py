"""Which text a module attends to, told by what it is given."""

import pytest
import torch
from torch import nn

import kvtrace

WIDTH, HEADS, VOCAB = 32, 4, 60
IDS = torch.tensor([[4, 9, 2, 7]])


class Attention(nn.Module):
    """Self-attention with its cache, or whatever it is handed; `blind` lacks its causal mask."""

    def __init__(self, blind=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.blind = blind

    def forward(self, x, source, past):
        q, k, v = (
            part(rows).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part, rows in ((self.q, x), (self.k, source), (self.v, source))
        )
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        new, seq = q.shape[2], k.shape[2]
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if not self.blind:
            scores = scores.masked_fill(torch.ones(new, seq).triu(seq - new + 1).bool(), -1e9)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), (k, v)


class Layer(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.self_attention, self.multihead_attention = Attention(), Attention(blind=True)
        self.given = given

    def forward(self, x, past):
        past = past or (None, None)
        y, first = self.self_attention(x, x, past[0])
        x = x + y
        source = {"itself": x, "a copy": x.clone(), "another": torch.ones_like(x)}[self.given]
        y, second = self.multihead_attention(x, source, past[1])
        return x + y, (first, second)


class Decoder(nn.Module):
    def __init__(self, given):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.decoder = nn.ModuleList(Layer(given) for _ in range(2))

    def forward(self, ids, past=None):
        x, made = self.embed(ids), []
        for number, layer in enumerate(self.decoder):
            x, rows = layer(x, None if past is None else past[number])
            made.append(rows)
        return self.head(x), made


@pytest.mark.parametrize(
    ("given", "kind"), [("itself", "self"), ("a copy", "self"), ("another", "cross")]
)
def test_a_second_attention_without_a_mask_is_to_the_text_that_its_keys_are_made_of(
    given, kind, tmp_path
):
    model = Decoder(given).eval()
    with kvtrace.record(model, tmp_path / "a.kvt"), torch.no_grad():
        logits, past = model(IDS)
        model(logits[:, -1:].argmax(-1), past)
    kinds = [site.kind for site in kvtrace.open(tmp_path / "a.kvt").meta.sites]
    assert kinds == ["self", kind] * 2


def test_a_batch_of_as_many_sequences_as_rows_is_no_other_text(tmp_path):
    model = Decoder("itself").eval()
    with torch.no_grad():
        _, past = model(IDS[:, :1].expand(2, 1))
        with kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
            model(IDS[:, 1:2].expand(2, 1), past)
    assert [site.kind for site in kvtrace.open(tmp_path / "a.kvt").meta.sites] == ["self"] * 4


class Mix(nn.Module):
    """Attends to rows that whoever calls it keeps."""

    def forward(self, q, kv):
        k, v = kv.chunk(2, -1)
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Handing(nn.Module):
    """Its cache is kept outside of the module that attends, as are the rows of an encoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.decoder = nn.ModuleList([Mix(), Mix()])
        self.encoder = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids, source, past=None):
        x = self.embed(ids)
        rows = self.kv(x) if past is None else torch.cat((past, self.kv(x)), 1)
        x = x + self.decoder[0](self.q(x), rows)
        return self.head(x + self.decoder[1](self.q(x), self.kv(self.encoder(source)))), rows


def test_rows_that_grow_by_one_a_query_are_its_own_text_though_they_are_handed_to_it(tmp_path):
    model, past, source = Handing().eval(), None, torch.randn(1, 6, WIDTH)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt"):
        for place in range(4):
            _, past = model(IDS[:, place : place + 1], source, past)
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [site.kind for site in trace.meta.sites] == ["self", "cross"]
    assert [step.positions for step in trace] == [((0,),), ((1,),), ((2,),), ((3,),)]


class LoneDecoder(nn.Module):
    """Called without its encoder, whose rows it is given; its cache is a buffer that it hands on.

    No name of a module says which text that one attends to.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.layers = nn.ModuleList([Hidden(), Hidden()])

    def forward(self, ids, source, rows, place):
        x = self.embed(ids)
        shown = torch.arange(rows.shape[1]) <= place
        x = x + self.layers[0](x, rows.index_copy_(1, place, self.layers[0].kv(x)), shown)
        every = torch.ones(source.shape[1], dtype=torch.bool)
        return self.head(x + self.layers[1](x, self.layers[1].kv(source), every))


class Hidden(Mix):
    """The same with a mask of keys."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x, kv, shown):
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (self.q(x), *kv.chunk(2, -1))
        )
        scores = (q @ k.mT / 8**0.5).masked_fill(~shown, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_decoder_that_is_called_alone_attends_to_two_texts_and_a_buffer_is_its_own(tmp_path):
    model, rows = LoneDecoder().eval(), torch.zeros(1, 16, 2 * WIDTH)
    source = torch.randn(1, 6, WIDTH)
    with torch.no_grad(), kvtrace.record(model, tmp_path / "a.kvt", recompute="off"):
        for place in range(4):
            model(IDS[:, place : place + 1], source, rows, torch.tensor([place]))
    trace = kvtrace.open(tmp_path / "a.kvt")
    assert [site.kind for site in trace.meta.sites] == ["self", "cross"]
    seen = [int(trace.visible(step.number, 0)[..., -1, :].sum()) for step in trace]
    assert seen == [1, 2, 3, 4]
