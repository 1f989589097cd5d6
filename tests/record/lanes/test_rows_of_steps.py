"""Agents whose steps are several rows each, padded to a window by a mask of steps."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

import kvtrace
from kvtrace.analysis.checks.verdict import check

WINDOW = 5


class Agent(nn.Module):
    """A row for what it saw and one for what it did; the mask says which steps there were."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.place, self.see, self.act = nn.Embedding(20, 16), nn.Linear(3, 16), nn.Linear(2, 16)
        size = {"vocab_size": 1, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        self.inner = GPT2Model(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
        self.head = nn.Linear(16, 2)

    def forward(self, states, actions, timesteps, attention_mask=None):
        if attention_mask is None:
            attention_mask = torch.ones(timesteps.shape, dtype=torch.long)
        place = self.place(timesteps)
        x = torch.stack([self.see(states) + place, self.act(actions) + place], 2).flatten(1, 2)
        there = attention_mask.repeat_interleave(2, 1)
        x = self.inner(inputs_embeds=x, attention_mask=there).last_hidden_state
        return self.head(x[:, ::2])


def test_a_mask_of_steps_that_hides_the_rows_of_each_is_given_again(tmp_path):
    model, states, actions = Agent().eval(), torch.randn(1, 9, 3), torch.zeros(1, 9, 2)
    with kvtrace.record(tmp_path / "a.kvt"), torch.no_grad():
        for there in (1, 2, 3):
            pads = WINDOW - there
            shown = torch.cat([torch.zeros(1, pads, 3), states[:, :there]], 1)
            done = torch.cat([torch.zeros(1, pads, 2), actions[:, :there]], 1)
            steps = torch.cat([torch.zeros(1, pads), torch.arange(there)[None]], 1).long()
            mask = torch.cat([torch.zeros(1, pads), torch.ones(1, there)], 1).long()
            model(shown, done, steps, attention_mask=mask)
    trace = kvtrace.open(tmp_path / "a.kvt")
    report = check(trace)
    assert report.verdict != "diverged"
    assert report.findings == ()
    lanes = [trace.compared(number) for number in trace.numbers]
    assert not any((one.beyond > 0).any() for one in lanes if one is not None)
