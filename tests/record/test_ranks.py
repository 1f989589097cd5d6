"""Which heads of the whole model a rank holds, and when ranks do something together."""

from pathlib import Path
from threading import Thread

import pytest
import torch
import torch.distributed as dist
from msgspec.structs import replace
from transformers import LlamaConfig, LlamaForCausalLM

from kvtrace.record.processes.companions import Companions
from kvtrace.record.processes.ranks import Share, of_rank, own_path, rank_of
from kvtrace.trace import CacheLayer, Meta, ModelCard, Rank, Site


def model(heads=8, kv_heads=2):
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2,
        vocab_size=8,
    )
    return LlamaForCausalLM(config)


def placed(whole, rank, heads, kv_heads, **layer):
    site = Site(0, "model.layers.0.self_attn", 0, 0, "self", heads, kv_heads, 2, 2, 1.0, 0)
    cache = replace(CacheLayer(0, 0, "dynamic", kv_heads, 2, 2), **layer)
    (site,), (cache,) = Share(whole, rank).placed([site], [cache])
    return (site.first_head, site.all_heads), (cache.first_kv_head, cache.all_kv_heads)


def test_heads_are_dealt_out_in_the_order_of_the_ranks():
    assert placed(model(8, 4), Rank(1, 2), 4, 2) == ((4, 8), (2, 4))
    assert placed(model(8, 4), Rank(3, 4), 2, 1) == ((6, 8), (3, 4))


@pytest.mark.parametrize(("number", "first"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_neighbours_hold_the_same_kv_head_where_there_are_fewer_than_ranks(number, first):
    assert placed(model(8, 2), Rank(number, 4), 2, 1) == ((2 * number, 8), (first, 2))


def test_attention_that_is_not_divided_is_whole_in_every_rank():
    assert placed(model(8, 2), Rank(1, 2), 8, 2) == ((0, 8), (0, 2))


def test_latents_and_states_are_whole_in_every_rank():
    assert placed(model(8, 8), Rank(1, 2), 4, 1, kind="latent")[1] == (0, 1)
    assert placed(model(8, 8), Rank(1, 2), 4, 1, kind="state")[1] == (0, 1)


def test_a_layer_that_the_config_does_not_tell_of_is_judged_by_its_weights():
    # no weight is divided here, so neither are the heads
    assert placed(model(8, 2), Rank(1, 2), 3, 3) == ((0, 3), (0, 3))


def test_what_was_said_of_a_place_stays_when_tables_grow():
    share = Share(model(8, 4), Rank(1, 2))
    site = Site(0, "model.layers.0.self_attn", 0, 0, "self", 4, 2, 2, 2, 1.0, 0)
    layer = CacheLayer(0, 0, "dynamic", 2, 2, 2)
    first = share.placed([site], [layer])
    later = share.placed(
        [site, replace(site, index=1, reads=1)],
        [replace(layer, kind="static", capacity=9), replace(layer, index=1)],
    )
    assert later[0][0] == first[0][0]
    assert later[1][0] == replace(first[1][0], kind="static", capacity=9)
    assert later[0][1].first_head == 4


def test_a_model_in_one_process_has_no_rank_and_keeps_its_path():
    assert rank_of(model()) is None
    assert own_path(Path("a/run.kvt"), None) == Path("a/run.kvt")


def test_the_banner_of_a_rank_stands_beside_others():
    meta = Meta(ModelCard("m", "M", banner="2 weights were missing"))
    said = of_rank(meta, Rank(1, 2)).model.banner
    assert said.startswith("2 weights were missing; rank 1 of 2: only its share")


@pytest.fixture
def store(monkeypatch):
    """A place where ranks leave word, without processes."""
    found = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: found)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    return found


def ranks_in(patience_s=30.0, begun=(0, 1), name="run"):
    """Ranks of one recording, as two processes would make them."""
    from kvtrace.record.processes import companions

    made = []
    for number in begun:
        companions._NAMED.clear()
        made.append(Companions(Path(f"{name}.kvt"), Rank(number, 2), patience_s))
    return made


def answers(ranks, ready):
    found = {}

    def ask(number):
        found[number] = ranks[number].agree(ready=ready[number])

    threads = [Thread(target=ask, args=(number,)) for number in range(len(ranks))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return [found[number] for number in range(len(ranks))]


def test_ranks_that_are_all_ready_go_on_together(store):
    ranks = ranks_in()
    assert answers(ranks, [True, True]) == [True, True]
    assert answers(ranks, [True, True]) == [True, True]


def test_one_rank_that_is_not_ready_stops_all_of_them_for_good(store):
    ranks = ranks_in()
    assert answers(ranks, [True, False]) == [False, False]
    assert answers(ranks, [True, True]) == [False, False]


def test_a_rank_that_never_began_is_not_waited_for(store):
    (alone,) = ranks_in(begun=(0,))
    assert not alone.agree()


def test_a_rank_that_comes_too_late_does_what_the_first_one_decided(store):
    first, late = ranks_in(patience_s=0.05)
    assert not first.agree()
    assert not late.agree()


def test_ranks_of_another_recording_do_not_count(store):
    one, _ = ranks_in(patience_s=0.05, name="run")
    ranks_in(name="other")
    assert not one.agree()


def test_weights_are_counted_by_their_part_that_is_here():
    from kvtrace.record.processes.local import here

    whole = torch.ones(4, 2)
    assert here(whole) is whole
