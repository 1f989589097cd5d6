"""Encoder-decoders whose class somebody has written: asked again with what their encoder said."""

import pytest
import torch

import kvtrace
from builders.encoder_decoders import bart, t5


@pytest.fixture(params=[bart, t5])
def own(request):
    model = request.param()
    kind = type(model)
    # what is no class of transformers may keep what it wants, and is asked as a copy
    model.__class__ = type("Mine", (kind,), {"__module__": "mine"})
    return model


def read(model, seed, rows=1, **more):
    ids = torch.randint(3, 99, (rows, 6 + seed % 3), generator=torch.Generator().manual_seed(seed))
    model.generate(ids, max_new_tokens=5, do_sample=False, **more)


def verdict(model, run):
    return kvtrace.check(model, run=run)


def test_two_texts_are_each_compared_with_what_the_encoder_said_to_them(own):
    report = verdict(own, lambda: [read(own, seed) for seed in (3, 7)])

    assert report.ok, report


def test_beams_over_a_batch_are_compared(own):
    report = verdict(own, lambda: read(own, 3, rows=2, num_beams=2))

    assert report.ok, report


def test_padding_of_what_was_read_stays_hidden(own):
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    report = verdict(own, lambda: read(own, 3, rows=2, attention_mask=mask))

    assert report.ok, report


def test_a_copied_output_of_transformers_keeps_its_order():
    from transformers.modeling_outputs import BaseModelOutput

    from kvtrace.record.lanes.as_it_was.private import Copier
    from kvtrace.record.lanes.as_it_was.tensors import Tensors

    given = BaseModelOutput(last_hidden_state=torch.ones(1, 2, 3))
    copied = Copier(Tensors([])).of(given)

    assert list(copied.keys()) == ["last_hidden_state"]
    assert torch.equal(copied[0], given[0])
    assert copied[0] is not given[0]
