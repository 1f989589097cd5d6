from kvtrace.record.cache.bytes import step_bytes
from kvtrace.record.cache.stores import Stores
from kvtrace.trace import CacheLayer, CacheStep, Run


def layer(index, kind="dynamic", **fields):
    return CacheLayer(index, index, kind, 2, 8, 4, "float16", **fields)


# a row of `layer`: 2 kv heads × (8 + 4) features × 2 bytes = 48


def test_rows_of_earlier_steps_are_read_and_new_ones_written():
    group = CacheStep((0, 1), 10, 1, ((Run(0, 5, 0, 0), Run(10, 1, 5, 5)),), (), 5, 6)
    assert step_bytes([group], Stores([layer(0), layer(1)])) == (2 * 5 * 48, 2 * 48)


def test_a_run_that_this_step_prolonged_counts_only_its_older_rows():
    group = CacheStep((0,), 10, 2, ((Run(4, 8, 0, 0),),), (), 6, 8)
    assert step_bytes([group], Stores([layer(0)])) == (6 * 48, 2 * 48)


def test_rows_made_anew_are_no_cache_memory():
    layers = [layer(0, "latent"), layer(1, "derived")]
    groups = [
        CacheStep((0,), 3, 1, ((Run(0, 4, 0, 0),),), (), 3, 4),
        CacheStep((1,), 12, 4, ((Run(12, 4, 0, 0),),), (), 0, 0),
    ]
    assert step_bytes(groups, Stores(layers)) == (3 * 48, 48)


def test_a_layer_that_is_told_apart_later_counts_as_what_it_turned_out_to_be():
    stores = Stores([layer(0), layer(1)])
    assert stores.row_bytes((0, 1)) == 2 * 48
    stores.say(1, kind="derived")
    assert stores.row_bytes((0, 1)) == 48
