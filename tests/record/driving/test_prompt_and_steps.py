"""Models with one method for a prompt and another for the tokens after it."""

import pytest
import torch
from torch import nn

from kvtrace.record.driving.choose import choose_drive
from kvtrace.record.driving.wish import Wish


class Two(nn.Module):
    """A layer whose rows, with those that are handed to it, give the logits and all rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(64, 8), nn.Embedding(32, 8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 64)

    def rows(self, ids, before=None):
        at = 0 if before is None else before["k"].shape[1]
        x = self.embed(ids) + self.place(torch.arange(at, at + ids.shape[1]))
        q, k, v = self.qkv(x).chunk(3, -1)
        if before is not None:
            k, v = torch.cat((before["k"], k), 1), torch.cat((before["v"], v), 1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=before is None)
        return self.head(y), {"k": k, "v": v}


class FillsInPlace(Two):
    """What the prompt returned is filled by every step, which returns its logits alone."""

    def forward(self, ids):
        return self.rows(ids)[0]

    def prefill(self, x):
        return self.rows(x)

    def step(self, x, caches):
        logits, after = self.rows(x, caches)
        caches.update(after)
        return logits


class ForwardReturnsIt(Two):
    """Forward takes no cache, and returns one."""

    def forward(self, ids):
        return self.rows(ids)

    def step(self, x, cache):
        return self.rows(x, cache)


class ForwardIsAsked(Two):
    """Forward returns a cache to those who ask for it."""

    def forward(self, ids, return_cache=False):
        return self.rows(ids) if return_cache else self.rows(ids)[0]

    def decode_one(self, token, cache):
        return self.rows(token, cache)


class Begins(Two):
    """The prompt makes a cache by a method that speaks of that."""

    def forward(self, ids):
        return self.rows(ids)[0]

    def init_cache(self, ids):
        return self.rows(ids)

    def next_logits(self, token, cache):
        return self.rows(token, cache)


CALLS = [
    (FillsInPlace, "model.prefill, then model.step(x [1, new], caches=cache)"),
    (ForwardReturnsIt, "model.forward, then model.step(x [1, new], cache=cache)"),
    (ForwardIsAsked, "model.forward, then model.decode_one(token [1, new], cache=cache)"),
    (Begins, "model.init_cache, then model.next_logits(token [1, new], cache=cache)"),
]


@pytest.mark.parametrize(("kind", "call"), CALLS)
def test_a_method_for_the_prompt_and_one_for_steps_are_driven_with_their_cache(kind, call):
    model = kind().eval()
    tokens = list(range(3, 12))
    driven = choose_drive(model, Wish(tokens, vocabulary=64))
    assert (driven.call.split(": ")[0], driven.said[1:]) == (call, ())
    for _ in range(3):
        logits = driven.drive.step(tokens)
        torch.testing.assert_close(logits, model.rows(torch.tensor([tokens]))[0][0, -1])
        tokens.append(int(logits.argmax()))


class Rewinds(Two):
    """A step that neither returns a cache nor fills the one it was given."""

    def forward(self, ids):
        return self.rows(ids)[0]

    def prefill(self, x):
        return self.rows(x)

    def step(self, x, caches):
        return self.rows(x, caches)[0]


def test_steps_that_keep_nothing_are_no_cached_way():
    driven = choose_drive(Rewinds().eval(), Wish(range(3, 12), vocabulary=64))
    assert driven.call == "model(ids [1, all])"


class FlagMeansAStep(Two):
    """Forward takes a cache as well, and hides what is to come only where it is told of none."""

    def forward(self, ids, cache=None, use_cache=False):
        logits, after = self.rows(ids, cache if use_cache else None)
        if use_cache and cache is None:
            seen = nn.functional.scaled_dot_product_attention(
                *self.qkv(self.embed(ids)).chunk(3, -1)
            )
            logits = self.head(seen)
        return logits, after

    def prefill(self, ids):
        return self(ids)

    def decode_step(self, ids, cache):
        return self(ids, cache, use_cache=True)


def test_methods_that_agree_come_before_a_forward_whose_cached_steps_differ():
    driven = choose_drive(FlagMeansAStep().eval(), Wish(range(3, 12), vocabulary=64))
    call = "model.prefill, then model.decode_step(ids [1, new], cache=cache)"
    assert (driven.call, driven.said[1:]) == (call, ())


class Forgetful(FlagMeansAStep):
    """Its methods have the mistake, too."""

    def prefill(self, ids):
        return self(ids, use_cache=True)


def test_a_mistake_of_forward_and_methods_alike_is_driven_as_it_is():
    driven = choose_drive(Forgetful().eval(), Wish(range(3, 12), vocabulary=64))
    assert driven.call == "model(ids [1, new], cache=cache, use_cache=True)"
    assert "its cached steps differ" in driven.said[1]


class StepsAlone(Two):
    """Steps take one token, and return more than logits and a cache."""

    def forward(self, ids):
        return self.rows(ids)[0]

    def step(self, token, cache=None):
        if token.shape[1] != 1:
            raise ValueError("one token")
        logits, after = self.rows(token, None if cache is None else cache[0])
        return logits, (after,), (logits, after["k"])


def test_a_step_for_single_tokens_is_tried_with_all_that_it_returns():
    driven = choose_drive(StepsAlone().eval(), Wish(range(3, 12), vocabulary=64))
    assert driven.call == "model.step(token [1, 1], cache=cache)"
    assert "comes back as result[1]" in driven.said[0]
