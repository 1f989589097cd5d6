"""Methods besides forward, tried and recorded on copies that leave the model alone."""

import torch
from torch import nn

from builders.driven import run_file
from kvtrace.record.driving.choose import choose_drive
from kvtrace.record.driving.entrance import through
from kvtrace.record.driving.trying.private import private_copy
from kvtrace.record.driving.ways.inside import resets
from kvtrace.record.driving.wish import Wish

INFERENCE = """
import torch
from torch import nn

class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)
        self.rows = torch.zeros(2, 1, 32, 8)

    def forward(self, tokens, targets):
        assert tokens.shape[1] == 32
        return nn.functional.cross_entropy(self.head(self.embed(tokens)).mT, targets)

    @torch.inference_mode()
    def forward_inference(self, tokens, start_pos: int, window: int):
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        end = start_pos + tokens.shape[1]
        self.rows[0, :, start_pos:end], self.rows[1, :, start_pos:end] = k, v
        mask = torch.ones(tokens.shape[1], end).tril(start_pos).bool()
        keys, values = self.rows[0, :, :end], self.rows[1, :, :end]
        return self.head(nn.functional.scaled_dot_product_attention(q, keys, values, mask))
"""


class Counting(nn.Module):
    """Counts in a buffer, by a method that calls its own forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, ids):
        self.count += 1
        return ids

    def step(self, ids):
        return self(ids)


def test_a_copy_of_an_entrance_changes_nothing_of_the_model():
    model = Counting()
    entrance = through(model, "step")
    copied = private_copy(entrance)
    copied(torch.zeros(1, 1))
    assert (model.count.item(), copied.count.item()) == (0, 1)
    entrance(torch.zeros(1, 1))
    assert (model.count.item(), copied.count.item()) == (1, 1)


def test_a_method_beside_a_forward_that_trains_is_driven_with_its_cache(tmp_path):
    (tmp_path / "trained.py").write_text(INFERENCE)
    driven = run_file(f"{tmp_path / 'trained.py'}:Trained").driven
    call = "model.forward_inference(tokens [1, new], start_pos=start, window=0)"
    assert (driven.call, driven.said[1:]) == (call, ())


ADDED = """
import types
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(256, 8), nn.Linear(8, 24), nn.Linear(8, 256)

    def forward(self, ids):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))

def add_cache_support(model):
    def forward_with_cache(self, ids, past=None, use_cache=False):
        if not use_cache:
            return self(ids), None
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        if past is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.head(y), (k, v)
    model.forward_with_cache = types.MethodType(forward_with_cache, model)
    return model

def build():
    return add_cache_support(Plain())
"""


def test_a_method_that_was_added_to_the_object_is_driven_with_its_cache(tmp_path):
    (tmp_path / "added.py").write_text(ADDED)
    driven = run_file(f"{tmp_path / 'added.py'}:build").driven
    call = "model.forward_with_cache(ids [1, new], past=cache, use_cache=True)"
    assert (driven.call, driven.said[1:]) == (call, ())


class Singly(nn.Module):
    """Takes a token at a time, also those of a prompt, in a loop."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Embedding(64, 8), nn.Linear(8, 24), nn.Linear(8, 64)
        self.rows = None

    def _clear_cache(self, batch_size, device):
        self.rows = torch.zeros(2, batch_size, 0, 8, device=device)

    def forward_token(self, token):
        if self.rows is None:
            self._clear_cache(len(token), token.device)
        q, k, v = self.qkv(self.embed(token)).view(len(token), 1, 24).chunk(3, -1)
        self.rows = torch.cat((self.rows, torch.stack((k, v))), 2)
        return self.head(nn.functional.scaled_dot_product_attention(q, *self.rows))

    @torch.inference_mode()
    def prefill(self, ids):
        self._clear_cache(len(ids), ids.device)
        for place in range(ids.shape[1]):
            logits = self.forward_token(ids[:, place : place + 1])
        return logits


def test_a_prompt_that_is_fed_in_a_loop_is_seen_a_token_at_a_time():
    model = Singly().eval()
    driven = choose_drive(model, Wish(range(3, 12), vocabulary=64))
    assert driven.call == "model.forward_token(token [1, 1])"
    assert "first model._clear_cache(…)" in driven.said[0]
    assert torch.equal(
        driven.drive.step(range(3, 12)), model.prefill(torch.arange(3, 12)[None])[0, -1]
    )


class Resetting(nn.Module):
    """What its private methods reset is all sorts of things."""

    def _reset(self):
        """Anything."""

    def _reset_layout(self):
        """Something else."""

    def reset_rows_of(self, text):
        """What nobody knows."""


def test_a_private_reset_that_does_not_speak_of_a_cache_is_left_alone():
    assert resets(Resetting()) == []
