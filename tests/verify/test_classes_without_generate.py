"""Classes on top of transformers' that can't generate: texts go side by side through them, too."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import kvtrace
from kvtrace.analysis.checks import EQUAL

WIDTH, HEADS, VOCAB = 16, 2, 40


class Config(PretrainedConfig):
    model_type = "remote"


class Remote(PreTrainedModel):
    """As files of models were written before transformers took `generate` out of them."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCAB)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        if past_key_values is not None:
            input_ids, places = input_ids[:, -1:], places[:, -1:]
        return {"input_ids": input_ids, "position_ids": places, "past_key_values": past_key_values}

    def forward(self, input_ids, position_ids=None, past_key_values=None, use_cache=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        x = self.tokens(input_ids) + self.places(position_ids)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if past_key_values is not None:
            k, v = (
                torch.cat(pair, 2) for pair in zip(self.kept(past_key_values), (k, v), strict=True)
            )
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        logits = self.head(x + y.transpose(1, 2).flatten(2))
        return CausalLMOutputWithPast(logits=logits, past_key_values=(k, v))

    def kept(self, past):
        return past


class FirstAlone(Remote):
    """Rows of every sequence but the first are lost."""

    def kept(self, past):
        return [rows * (torch.arange(len(rows)) == 0)[:, None, None, None] for rows in past]


def batch(model):
    report = kvtrace.check(model.eval(), [[5, 9, 30, 7, 12, 3, 8, 21]], new_tokens=4)
    return next(trial for trial in report.trials if trial.name.startswith("batch of 2"))


def test_its_texts_are_equal_side_by_side():
    found = batch(Remote(Config()))

    assert found.report.verdict == EQUAL


def test_rows_that_are_lost_of_all_texts_but_the_first_are_found():
    (finding, *_) = batch(FirstAlone(Config())).report.findings

    assert (finding.step, finding.sequences) == (1, (1,))
