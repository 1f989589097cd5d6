"""How the cost of products grows, learned from forwards."""

from kvtrace.record.cost.growth import Per, Seen, Sizes, fit


def test_a_product_that_no_rows_went_into_is_not_sure_to_cost_nothing():
    key = ("audio.proj", "weight", 0)
    (one,) = fit({key: [Seen(0, Sizes(1, 5, 5)), Seen(0, Sizes(1, 1, 6))]})[key]
    assert (one.per, one.flops, one.sure) == (Per.NEW, 0, False)


def test_what_one_row_costs_only_where_a_text_begins_is_a_cost_of_beginning():
    key = ("scan", "", 0)
    (one,) = fit({key: [Seen(64, Sizes(1, 1, 1)), Seen(0, Sizes(1, 1, 2))]})[key]
    assert (one.per, one.flops, one.sure) == (Per.START, 64, False)
