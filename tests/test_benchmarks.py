"""What `make bench` runs."""

from benchmarks.run import benchmarks


def test_every_benchmark_is_found_and_nothing_that_helps_them():
    found = {module.__name__.rpartition(".")[2]: module for module in benchmarks([])}
    assert set(found) == {"files", "flat", "gpu", "own", "record", "screen"}
    assert all(callable(module.run) for module in found.values())
