"""Prompts to ids that fit the model."""

import os

import pytest

from kvtrace.errors import UsageError
from kvtrace.models.loaded import Prompt
from kvtrace.models.prompts import encode_prompt, readable, steps_that_fit
from kvtrace.models.request import LoadRequest
from kvtrace.models.tokens import ByteTokenizer


class Starting(ByteTokenizer):
    bos = 7


def test_text_is_recorded_exactly_whatever_is_in_it():
    odd = "a\0b\x1b[31m\u202ec é"
    prompt = encode_prompt(odd, ByteTokenizer(), 256)
    assert prompt.text == odd
    assert bytes(prompt.ids).decode() == odd


def test_bytes_that_are_not_utf8_are_named_by_their_place():
    typed = os.fsdecode(b"abc\xff")
    with pytest.raises(UsageError, match="byte 3: 0xff is not UTF-8"):
        readable(typed)


@pytest.mark.parametrize("text", [None, ""])
def test_an_empty_prompt_starts_from_the_start_token_and_says_so(text):
    prompt = encode_prompt(text, Starting(), 256)
    assert prompt.ids == (7,)
    assert "starting from the start token 7" in prompt.note


def test_an_empty_prompt_without_a_start_token_is_refused():
    with pytest.raises(UsageError, match="UTF-8 bytes has no start token"):
        encode_prompt("", ByteTokenizer(), 256)


def test_an_id_beyond_the_vocabulary_names_both():
    with pytest.raises(UsageError, match=r"token 1: id 122 .* vocabulary of 100"):
        encode_prompt("az", ByteTokenizer(), 100)
    assert encode_prompt("az", ByteTokenizer(), 0).ids == (97, 122)


def test_a_model_without_a_tokenizer_is_told_where_one_may_lie_for_every_kind_of_model():
    with pytest.raises(UsageError, match=r"beside config\.json, or returned by a factory"):
        encode_prompt("az", ByteTokenizer(), 100)


def wanting(new_tokens, **more):
    return LoadRequest("model", new_tokens=new_tokens, **more)


def test_the_last_new_token_needs_no_place_in_the_context():
    prompt = Prompt("", (1, 2, 3))
    # 3 + 6 positions are fed, the seventh new token is only chosen
    assert steps_that_fit(prompt, wanting(7), 9) == 7
    with pytest.raises(UsageError, match=r"3 prompt tokens and 8 new ones exceed .* 9; use -n 7"):
        steps_that_fit(prompt, wanting(8), 9)


def test_a_prompt_that_an_encoder_reads_takes_no_place_of_what_is_decoded():
    prompt = Prompt("", (1, 2, 3))
    assert steps_that_fit(prompt, wanting(9), 9, apart=True) == 9
    with pytest.raises(UsageError, match="10 new ones exceed the model's context of 9; use -n 9"):
        steps_that_fit(prompt, wanting(10), 9, apart=True)
    with pytest.raises(UsageError, match="the prompt has 3 tokens, the model's context holds 2"):
        steps_that_fit(prompt, wanting(1), 2, apart=True)


def test_a_prompt_beyond_the_context_gets_both_numbers():
    with pytest.raises(UsageError, match="10 tokens, the model's context holds 9"):
        steps_that_fit(Prompt("", tuple(range(10))), wanting(0), 9)


def test_without_a_number_what_fits_is_taken():
    assert steps_that_fit(Prompt("", (1,)), wanting(None), 0) == 32
    assert steps_that_fit(Prompt("", (1,)), wanting(None), 256) == 32
    assert steps_that_fit(Prompt("", (1, 2)), wanting(None), 4) == 3
    assert steps_that_fit(Prompt("", (1, 2)), wanting(None, unasked_tokens=16), 256) == 16
    assert steps_that_fit(Prompt("", (1, 2)), wanting(None, unasked_tokens=16), 4) == 3
    assert steps_that_fit(Prompt("", (1, 2)), wanting(0), 2) == 0
