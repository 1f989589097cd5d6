"""Caches that quantise every row they are given: that is meant, and hides nothing that is not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    Fp8QuantizedLayer,
    QuantizedLayer,
)

import kvtrace
from builders.tiny_models import tiny_model
from kvtrace.analysis.checks import DIVERGED, EQUAL
from verify import bugs

WIDTH, VOCAB = 64, 48

PROMPT = [5, 9, 30, 7, 21, 14, 2, 12]


class Rounded:
    """Keeps whole numbers, and a scale for each row of each head."""

    def __init__(self, bits: int) -> None:
        self.most, self.rows = 2 ** (bits - 1) - 1, None

    def put(self, rows: Tensor) -> Tensor:
        scales = rows.abs().amax(-1, keepdim=True) / self.most
        kept = ((rows / scales).round(), scales)
        self.rows = kept if self.rows is None else self.joined(kept)
        return self.rows[0] * self.rows[1]

    def joined(self, kept):
        return tuple(torch.cat(both, 3) for both in zip(self.rows, kept, strict=True))

    def __len__(self) -> int:
        return 0 if self.rows is None else self.rows[0].shape[3]


class LosesScales(Rounded):
    def joined(self, kept):
        return torch.cat([self.rows[0], kept[0]], 3), kept[1]


class Lm(nn.Module):
    def __init__(self, cache=Rounded, bits=8, layers=3, heads=4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cache, self.bits, self.heads = cache, bits, heads
        self.tokens, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCAB)

    def new_cache(self):
        return [self.cache(self.bits) for _ in self.mixes]

    def begin(self, past: int) -> int:
        return past

    def forward(self, ids: Tensor, cache: list[Rounded] | None = None) -> Tensor:
        new, past = ids.shape[1], 0 if cache is None else len(cache[0])
        x = self.tokens(ids) + self.wpe(torch.arange(new) + self.begin(past))
        for n, mix in enumerate(self.mixes):
            q, *kv = mix(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            k, v = torch.stack(kv) if cache is None else self.kept(cache[n], torch.stack(kv), n)
            mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(
                2
            )
        return self.head(x)

    def kept(self, cache: Rounded, rows: Tensor, layer: int) -> Tensor:
        return cache.put(rows)


class Restarting(Lm):
    def begin(self, past: int) -> int:
        return 0


class OneLayer(Lm):
    """Rounds in one of its layers, as by mistake."""

    def kept(self, cache: Rounded, rows: Tensor, layer: int) -> Tensor:
        cache.most = 127 if layer == 1 else 2**20
        return cache.put(rows)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_cache_that_keeps_few_bits_everywhere_differs_and_has_no_bug(bits):
    report = kvtrace.check(Lm(bits=bits), PROMPT, new_tokens=6)
    assert report.verdict == EQUAL, report
    assert {(one.name, one.kind.bug, one.step) for one in report.findings} == {("DTYPE", False, 0)}
    assert f"k of {bits} bits and v of {bits} bits" in report.findings[0].evidence


def test_a_scale_for_every_four_numbers_is_known_in_all_layers():
    report = kvtrace.check(Lm(heads=16), PROMPT[:2], new_tokens=4, ways=())
    assert report.verdict == EQUAL, report
    assert "in each 4 numbers: k of 8 bits and v of 8 bits" in report.findings[0].evidence


@pytest.mark.parametrize(
    ("model", "name", "tensor"),
    [
        (lambda: Lm(LosesScales), "OLD-ROWS-SCALED", "k"),
        (Restarting, "POSITION-EMBEDDING", "q"),
    ],
)
def test_what_is_wrong_beside_few_bits_is_told_first(model, name, tensor):
    report = kvtrace.check(model(), PROMPT, new_tokens=6, ways=())
    first = report.findings[0]
    assert report.verdict == DIVERGED
    assert (first.name, first.step, first.layer, first.tensor) == (name, 1, 0, tensor)
    last = report.findings[-1]
    assert (last.name, last.kind.bug) == ("DTYPE", False)


def test_few_bits_in_one_layer_alone_are_a_mistake():
    report = kvtrace.check(OneLayer(), PROMPT, new_tokens=3, ways=())
    first = report.findings[0]
    assert report.verdict == DIVERGED
    assert (first.name, first.layer, first.kind.bug) == ("DTYPE", 1, True)


@pytest.mark.parametrize(("bits", "layers"), [(8, 3), (4, 5)])
def test_sharp_weights_make_more_of_few_bits_and_that_is_no_bug(bits, layers):
    model = Lm(bits=bits, layers=layers)
    for mix in model.mixes:
        mix.weight.data *= 1.5
    report = kvtrace.check(model, PROMPT, new_tokens=8, ways=())
    assert report.verdict == EQUAL, report


@pytest.mark.parametrize(("bits", "layers", "times"), [(8, 5, 3), (8, 3, 5), (2, 5, 8)])
def test_very_sharp_weights_may_make_anything_of_few_bits_and_that_is_no_bug(bits, layers, times):
    model = Lm(bits=bits, layers=layers)
    for mix in model.mixes:
        mix.weight.data *= times
    report = kvtrace.check(model, PROMPT, new_tokens=8, ways=())
    assert report.verdict == EQUAL, report


class Later(DynamicLayer):
    """Hands on what it is given, and reads back from the next step on what is left of it.

    The newest rows are kept whole until there are `whole` of them.
    """

    whole, loses = 4, False

    def update(self, keys: Tensor, values: Tensor, *args, **more) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.few, self.new, self.seen = (None, None), (keys[:, :, :0], values[:, :, :0]), 0
        self.seen += keys.shape[2]
        old = [[] if one is None else [one[0] * one[1]] for one in self.few]
        given = (keys, values)
        rows = tuple(
            torch.cat([*few, new, one], 2)
            for few, new, one in zip(old, self.new, given, strict=True)
        )
        if self.new[0].shape[2] + keys.shape[2] < self.whole:
            self.new = tuple(torch.cat(two, 2) for two in zip(self.new, given, strict=True))
            return rows
        left = [torch.cat([*few, one], 2) for few, one in zip(old, given, strict=True)]
        self.few = tuple(map(self.rounded, left if self.loses else rows))
        self.new = keys[:, :, :0], values[:, :, :0]
        return rows

    def rounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        scales = rows.abs().amax(-1, keepdim=True) / 127
        return (rows / scales).round(), scales

    def get_seq_length(self) -> int:
        return getattr(self, "seen", 0)


class ByFeature(Later):
    """A scale for each feature of eight rows, of keys and of values."""

    whole = 8

    def rounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        blocks = rows.unflatten(2, (-1, 8))
        scales = (blocks.abs().amax(3, keepdim=True) / 127).expand_as(blocks).flatten(2, 3)
        return (rows / scales).round(), scales


class LosesWhole(Later):
    """Forgets those that were kept whole when it rounds the next ones."""

    loses = True

    def get_mask_sizes(self, new: int) -> tuple[int, int]:
        """A mask for the rows that there are."""
        if not self.is_initialized:
            return new, 0
        return self.few[0][0].shape[2] + self.new[0].shape[2] + new, 0


def of_layers(layer, kinds=None, prompt=PROMPT):
    """A model of transformers that decodes with a cache of such layers."""
    model = bugs.llama()

    def run():
        cache = DynamicCache(config=model.config)
        cache.layers = [
            layer() if kinds is None or n in kinds else one for n, one in enumerate(cache.layers)
        ]
        with torch.no_grad():
            fed = torch.tensor([prompt])
            for _ in range(7):
                logits = model(fed, past_key_values=cache).logits
                fed = logits[:, -1:].argmax(-1)

    return kvtrace.check(model, run=run)


@pytest.mark.parametrize("layer", [Later, Fp8QuantizedLayer])
def test_a_cache_that_is_exact_until_it_is_read_back_is_no_bug_either(layer):
    report = of_layers(layer)
    assert report.verdict == EQUAL, report
    (found,) = report.findings
    assert (found.name, found.kind.bug, found.step) == ("DTYPE", False, 1)
    assert "what is read back from step 1 on" in found.evidence


def test_rows_that_share_a_scale_of_each_feature_are_of_few_bits_too():
    report = of_layers(ByFeature, prompt=[*PROMPT, *PROMPT[::-1], *PROMPT])
    assert report.verdict == EQUAL, report
    assert "in each feature of 8 rows" in report.findings[0].evidence


@pytest.mark.parametrize("layer", [Later, Fp8QuantizedLayer])
def test_one_layer_alone_that_reads_back_few_bits_is_a_mistake(layer):
    first = of_layers(layer, kinds=(1,)).findings[0]
    assert (first.name, first.step, first.layer, first.kind.bug) == ("DTYPE", 1, 1, True)


def test_rows_that_such_a_cache_loses_when_it_rounds_the_next_are_gone_and_not_overwritten():
    first = of_layers(LosesWhole).findings[0]
    assert (first.name, first.step, first.layer) == ("EVICTED-EARLY", 5, 0), first


class FarApart(QuantizedLayer):
    """Four bits about a zero point, of numbers far apart in memory; levels rounded to the type."""

    def __init__(self) -> None:
        super().__init__(nbits=4, residual_length=3)

    def _quantize(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
        groups = tensor.reshape(16, -1)
        low, high = groups.amin(0), groups.amax(0)
        scale = (high - low) / 15
        zero = -low / scale
        return (groups / scale + zero).round().clamp(0, 15), scale, zero, tensor.shape

    def _dequantize(self, qtensor: tuple[Tensor, Tensor, Tensor, torch.Size]) -> Tensor:
        levels, scale, zero, shape = qtensor
        return ((levels - zero) * scale).reshape(shape)


def sharp_and_far_apart(dtype, sharp, layer=FarApart):
    """A model whose weights are as many times larger decodes with a cache of such layers."""
    model = tiny_model("llama").eval().to(dtype)
    for weights in model.parameters():
        weights.data *= sharp if weights.dim() == 2 else 1

    def run():
        cache = Cache(layers=[layer() for _ in range(model.config.num_hidden_layers)])
        fed = torch.tensor([PROMPT * 2])
        with torch.no_grad():
            for _ in range(12):
                logits = model(fed, past_key_values=cache).logits
                fed = logits[:, -1:].argmax(-1)

    return kvtrace.check(model, run=run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sharp", [1, 3])
def test_levels_that_a_narrow_type_blurs_are_few_bits_too(dtype, sharp):
    report = sharp_and_far_apart(dtype, sharp)
    assert report.verdict == EQUAL, report


class SpoilsValues(FarApart):
    """Hands back its old values otherwise than it took them, from its fifth call on."""

    good = 4

    def update(self, keys: Tensor, values: Tensor, *args, **more) -> tuple[Tensor, Tensor]:
        keys, values = super().update(keys, values, *args, **more)
        self.good -= 1
        if self.good >= 0:
            return keys, values
        return keys, torch.cat([self.spoilt(values[:, :, :-1]), values[:, :, -1:]], 2)


class RollsValues(SpoilsValues):
    """One row too far."""

    def spoilt(self, values: Tensor) -> Tensor:
        return values.roll(1, 2)


class RollsAtOnce(RollsValues):
    good = 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [RollsValues, RollsAtOnce])
def test_rows_that_a_cache_of_few_bits_mixes_up_are_named_where_its_outputs_say_nothing(
    dtype, layer
):
    report = sharp_and_far_apart(dtype, 3, layer)
    first = report.findings[0]
    assert (first.name, first.layer, first.tensor) == ("MISALIGNED", 0, "v"), report


def one_layer(wrong):
    """Makes layers of a cache of few bits, of which the second is another one."""
    made = []

    def layer():
        made.append(wrong() if len(made) == 1 else FarApart())
        return made[-1]

    return layer


class HalvesValues(SpoilsValues):
    """Half of each."""

    def spoilt(self, values: Tensor) -> Tensor:
        return values / 2


@pytest.mark.parametrize(
    ("dtype", "wrong", "names"),
    [
        (torch.float32, HalvesValues, {"OLD-ROWS-SCALED"}),
        (torch.bfloat16, HalvesValues, {"OLD-ROWS-SCALED", "OLD-ROWS-CHANGED"}),
        (torch.float32, RollsValues, {"MISALIGNED"}),
        (torch.bfloat16, RollsValues, {"MISALIGNED"}),
    ],
)
def test_rows_behind_the_first_layer_of_such_a_cache_are_held_against_what_they_were(
    dtype, wrong, names
):
    report = sharp_and_far_apart(dtype, 3, one_layer(wrong))
    first = report.findings[0]
    assert first.name in names, report
    assert (first.step, first.layer, first.tensor) == (4, 1, "v"), report


class SmallValues(DynamicLayer):
    """Keeps values, and nothing else, in eight bits."""

    def update(self, keys: Tensor, values: Tensor, *args, **more) -> tuple[Tensor, Tensor]:
        values = (8 * values).to(torch.float8_e4m3fn).to(values.dtype) / 8
        return super().update(keys, values, *args, **more)


def test_rows_of_few_bits_are_named_where_a_narrow_type_hides_them_and_later_layers_differ():
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128}
    config = LlamaConfig(**sizes, **heads, initializer_range=0.15)
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()

    def run():
        cache = DynamicCache(config=config)
        cache.layers = [SmallValues() for _ in cache.layers]
        fed = torch.randint(3, 120, (1, 14), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for _ in range(7):
                fed = model(fed, past_key_values=cache).logits[:, -1:].argmax(-1)

    report = kvtrace.check(model, run=run)
    (found,) = report.findings
    assert (found.name, found.step, found.layer, found.tensor) == ("DTYPE", 0, 0, "v"), report
    assert "layer 2 follows from it" in found.evidence
