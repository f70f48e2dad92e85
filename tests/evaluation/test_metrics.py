from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_edp.evaluation import OnlineModelSelection, RunningAverage

scores = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(scores)
def test_rat_is_the_mean_of_the_last_ten_and_oms_the_best(values):
    rat, oms = RunningAverage(), OnlineModelSelection()
    for count, score in enumerate(values, 1):
        last = values[max(0, count - 10) : count]
        assert rat.update(score) == rat.value == pytest.approx(sum(last) / len(last), abs=1e-6)
        assert oms.update(score) == oms.value == max(values[:count])


@given(scores, st.integers(0, 30))
def test_a_resumed_run_goes_on_as_if_never_stopped(values, cut):
    for make in (RunningAverage, OnlineModelSelection):
        whole, before, after = make(), make(), make()
        for score in values[:cut]:
            before.update(score)
        after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
        expected = [whole.update(score) for score in values]
        assert [after.update(score) for score in values[cut:]] == expected[cut:]


def test_values_before_the_first_evaluation():
    assert math.isnan(RunningAverage().value)
    assert OnlineModelSelection().value == -math.inf


def test_the_window_travels_with_the_state():
    rat, loaded = RunningAverage(window=2), RunningAverage()
    rat.update(1.0)
    loaded.load_state_dict(rat.state_dict())
    assert [loaded.update(score) for score in (3.0, 5.0)] == [2.0, 4.0]


@pytest.mark.parametrize("make", [RunningAverage, OnlineModelSelection])
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(make, score):
    metric = make()
    metric.update(1.0)
    with pytest.raises(ValueError, match="score: expected a finite number"):
        metric.update(score)
    assert metric.value == 1.0


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        RunningAverage(window=0)
