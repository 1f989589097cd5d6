"""A user's file, loaded and driven as the recorder does it, and the tokens that came out."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kvtrace.live.recording import wish_of
from kvtrace.models import LoadRequest, load
from kvtrace.record.decode import Limits, decode
from kvtrace.record.driving import choose_drive

SMALL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, vocabulary=300):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 8)
        self.head = nn.Linear(8, vocabulary)

    def forward(self, ids):
        return self.head(self.table(ids))
"""
"""A user's file with a small model that keeps nothing."""


@dataclass
class Run:
    """What was loaded, how it was driven, and what it said."""

    loaded: object
    driven: object
    tokens: list


@contextmanager
def forgotten():
    """Modules and paths that user files bring are gone afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    try:
        yield
    finally:
        for name in set(sys.modules) - modules:
            file = str(getattr(sys.modules[name], "__file__", ""))
            if "site-packages" not in file and "/kvtrace/" not in file:
                del sys.modules[name]
        sys.path[:] = path


def run_file(spec, prompt="hello", new_tokens=6, **options):
    """Load and decode greedily, as the recorder does."""
    with forgotten():
        request = LoadRequest(str(spec), prompt=prompt, new_tokens=new_tokens, **options)
        loaded = load(request, lambda text, share: None)
        with loaded.around():
            driven = choose_drive(loaded.model, wish_of(loaded))
            tokens = []
            decode(
                loaded.model,
                loaded.prompt.ids,
                drive=driven.drive,
                limits=Limits(new_tokens),
                on_token=tokens.append,
            )
    return Run(loaded, driven, tokens)


def greedy(full, prompt, new_tokens):
    """Tokens by a naive pass over everything at each step; `full` gives logits of all rows."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(full(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]
