"""What `bench_scale` makes of the runs it watched."""

from benchmarks.bench_scale import GIB, Watched, summary


def run_of(driver: float, worker: float, seconds: float) -> Watched:
    return Watched(int(driver * GIB), {"tokenize": int(worker * GIB)}, {"start": 9.0, "tokenize": seconds}, {})


def test_growth_is_of_all_sizes_and_the_exponent_of_the_two_largest() -> None:
    runs = {10: run_of(0.5, 0.4, 1.0), 100: run_of(0.4, 0.4, 1.0), 1000: run_of(0.75, 0.5, 100.0)}
    figures = summary([10, 100, 1000], runs)
    assert figures["driver_rss_growth"] == 1.5 and figures["worker_rss_growth"] == 1.25
    assert figures["driver_peak_rss_gib"] == 0.75 and figures["worker_peak_rss_gib"] == {"tokenize": 0.5}
    assert figures["seconds_per_million_dialogues"] == {"tokenize": 100_000.0}
    assert figures["growth_exponent"] == 2.0


def test_one_size_has_no_exponent() -> None:
    assert "growth_exponent" not in summary([10], {10: run_of(0.5, 0.4, 1.0)})
