from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.objectives.value.functional import td0_return_estimate

from torchrl_edp.data import DatasetError, from_arrays, make_replay_buffer

layouts = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


def without_next(data: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in data.items() if name != "next_observations"}


@settings(max_examples=60, deadline=None)
@given(layouts, st.booleans())
def test_no_transition_crosses_an_episode_and_only_terminated_stops_bootstrapping(layout, with_next):
    data = arrays(layout)
    kept = [(n, length, term) for n, (length, term) in enumerate(layout, 1) if with_next or term or length > 1]
    if not kept:
        with pytest.raises(DatasetError, match="at least one transition"):
            from_arrays(**without_next(data))
        return
    result = from_arrays(**(data if with_next else without_next(data)))
    td = result.transitions
    now, following = td["observation"], td["next", "observation"]
    lengths = [length if with_next or term else length - 1 for _, length, term in kept]
    assert result.episode_lengths.tolist() == lengths
    assert result.episode_returns.tolist() == [n * length for (n, _, _), length in zip(kept, lengths, strict=True)]
    assert (now[:, 0] == following[:, 0]).all()
    terminated = td["next", "terminated"].squeeze(-1)
    step = 1 if with_next else (~terminated).float()  # a terminal row's stand-in is its own observation
    assert (following[:, 1] == now[:, 1] + step).all()
    expected_ends = [i == length - 1 for length in lengths for i in range(length)]
    assert td["next", "done"].squeeze(-1).tolist() == expected_ends
    assert (td["next", "done"] == td["next", "terminated"] | td["next", "truncated"]).all()
    ends_terminated = terminated[torch.tensor(expected_ends)].tolist()
    assert ends_terminated == [term for _, _, term in kept] and sum(ends_terminated) == int(terminated.sum())

    target = td0_return_estimate(
        0.5, torch.full_like(td["next", "reward"], 8.0), td["next", "reward"], td["next", "terminated"]
    )
    bootstrap = (target - td["next", "reward"]).squeeze(-1)
    assert bootstrap.tolist() == [0.0 if t else 4.0 for t in terminated.tolist()]


@settings(max_examples=30, deadline=None)
@given(layouts)
def test_truncations_are_inferred_where_rows_do_not_follow(layout):
    data = arrays(layout)
    flags = data.pop("truncations")
    result = from_arrays(**data)
    assert result.transitions["next", "truncated"].squeeze(-1).tolist() == flags.tolist()


def test_layout_dtypes_and_shapes_from_torch_and_numpy():
    data = arrays([(3, True), (2, False)])
    result = from_arrays(**data)
    td = result.transitions
    assert td.batch_size == (5,) and td.device is None
    assert td["observation"].dtype == td["action"].dtype == td["next", "reward"].dtype == torch.float32
    for key in ("done", "terminated", "truncated"):
        assert td["next", key].shape == (5, 1) and td["next", key].dtype == torch.bool
    assert (result.num_transitions, result.observation_size, result.action_size) == (5, 2, 1)
    columns = {name: torch.as_tensor(array) for name, array in data.items()}
    columns["rewards"] = columns["rewards"].float()[:, None]
    columns["terminations"] = columns["terminations"].long()[:, None]
    assert from_arrays(**columns).fingerprint() == result.fingerprint()


def test_inputs_are_not_changed_nor_shared():
    data = arrays([(3, False), (2, False)])
    for array in data.values():
        array.flags.writeable = False
    float32 = {**data, "observations": data["observations"].astype(np.float32)}
    result = from_arrays(**float32)
    result.transitions["observation"].zero_()
    assert float32["observations"].any()


def test_data_that_break_off_count_as_truncated():
    data = arrays([(3, True), (4, False)])
    data["truncations"] = np.zeros(7, bool)
    assert from_arrays(**data).transitions["next", "truncated"].flatten().tolist() == [False] * 6 + [True]
    shortened = from_arrays(**without_next(data))
    assert shortened.transitions["next", "truncated"].flatten().tolist() == [False] * 5 + [True]
    assert shortened.transitions["next", "observation"][-1].tolist() == [2, 3]


def test_fingerprint_sees_every_field():
    data = arrays([(3, True), (2, False)])
    reference = from_arrays(**data).fingerprint()
    assert from_arrays(**data).fingerprint() == reference
    for change in ({"rewards": data["rewards"] + 1}, {"actions": data["actions"] / 2}, {"action_low": -2.0}):
        assert from_arrays(**{**data, **change}).fingerprint() != reference


def change(field: str, index: Any, value: Any, layout=((3, True), (3, False), (2, True))) -> dict[str, Any]:
    data = arrays(list(layout))
    data[field] = data[field].astype(np.float64)
    data[field][index] = value
    return data


BAD: dict[str, tuple[Any, list[str]]] = {
    "nan observation": (
        lambda: change("observations", (4, 1), np.nan),
        ["observations: expected finite", "row 4"],
    ),
    "inf action": (lambda: change("actions", 2, np.inf), ["actions: expected finite", "inf", "row 2"]),
    "nan reward": (lambda: change("rewards", 7, np.nan), ["rewards: expected finite", "row 7"]),
    "overflow": (
        lambda: change("observations", (1, 0), 1e300),
        ["observations: expected finite", "row 1", "float32"],
    ),
    "nan next": (
        lambda: change("next_observations", 2, np.nan),
        ["next_observations: expected finite", "row 2"],
    ),
    "flag": (lambda: change("terminations", 3, 2), ["terminations: expected flags", "2.0", "row 3"]),
    "bounds": (
        lambda: change("actions", 5, 1.5),
        ["actions: expected values in", "1.5", "row 5", "clip_actions"],
    ),
    "length": (
        lambda: {**arrays([(3, True)]), "rewards": np.ones(2)},
        ["rewards: expected 3 rows", "got 2 rows"],
    ),
    "rank": (
        lambda: {**arrays([(3, True)]), "actions": np.ones(3)},
        ["actions: expected shape", "reshape(-1, 1)"],
    ),
    "image": (
        lambda: {**arrays([(3, True)]), "observations": np.ones((3, 2, 2))},
        ["observations", "Flatten"],
    ),
    "dtype": (
        lambda: {**arrays([(3, True)]), "rewards": np.array(["a"] * 3)},
        ["rewards: expected numbers", "dtype"],
    ),
    "ragged": (
        lambda: {**arrays([(3, True)]), "actions": [[1], [1, 2], [1]]},
        ["actions: expected a rectangular"],
    ),
    "columns": (
        lambda: {**arrays([(3, True)]), "next_observations": np.ones((3, 5))},
        ["next_observations", "[3, 2]"],
    ),
    "empty": (lambda: {k: v[:0] for k, v in arrays([(3, True)]).items()}, ["at least one transition"]),
    "all zero": (lambda: {k: v * 0 for k, v in arrays([(3, True)]).items()}, ["all zeros", "load it again"]),
    "zero actions": (lambda: change("actions", slice(None), 0), ["actions", "all zeros"]),
    "zero rest": (
        lambda: {**arrays([(3, True)]), "observations": np.zeros((3, 2)), "rewards": np.zeros(3)},
        ["observations and rewards", "all zeros"],
    ),
    "no ends": (
        lambda: {**arrays([(3, True)]), "terminations": np.zeros(3)},
        ["end of an episode", "truncations[-1]"],
    ),
    "broken": (
        lambda: change("next_observations", (4, 1), 9),
        ["next_observations", "row 5", "first at row 4"],
    ),
    "leak": (
        lambda: change("next_observations", 5, [3, 0]),
        ["next_observations: expected the truncated", "first at row 5", "allow_continuing"],
    ),
    "no flags": (
        lambda: {**without_next(arrays([(3, True)])), "truncations": None},
        ["truncations", "infer"],
    ),
    "infinite box": (
        lambda: {**arrays([(3, True)]), "action_high": np.inf},
        ["finite low < high", "entry 0"],
    ),
    "inverted box": (lambda: {**arrays([(3, True)]), "action_low": 2.0}, ["finite low < high", "low 2.0"]),
    "box size": (lambda: {**arrays([(3, True)]), "action_low": [-1, -1]}, ["action_low", "shape [1]"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_with_field_value_row_and_remedy(case):
    make, words = BAD[case]
    with pytest.raises(DatasetError) as caught:
        from_arrays(**make())
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert all(word in message for word in words), message
    assert "expected" in message and ", got " in message and message.endswith(".")


def test_a_terminal_rows_next_observation_may_be_anything_and_a_stream_may_continue():
    data = change("next_observations", 2, [2, 0])  # row 2 terminates: nobody reads it
    from_arrays(**data)
    result = from_arrays(**change("next_observations", 5, [3, 0]), allow_continuing=True)
    assert result.transitions["next", "truncated"].flatten().nonzero().tolist() == [[5]]


def test_rounding_beyond_the_bounds_is_clipped_and_more_only_on_request():
    assert from_arrays(**change("actions", 1, 1 + 1e-5)).transitions["action"].max() == 1
    assert from_arrays(**change("actions", 1, 3.0), clip_actions=True).transitions["action"].max() == 1


def test_replay_buffer_holds_everything_once_and_repeats_its_draws():
    td = from_arrays(**arrays([(5, True), (6, False)])).transitions
    buffer = make_replay_buffer(td, batch_size=8, generator=torch.Generator().manual_seed(1))
    assert len(buffer) == 11 and (buffer[:]["action"] == td["action"]).all()
    state = buffer._rng.get_state()
    draws = [buffer.sample()["action"] for _ in range(3)]
    torch.rand(5)  # the global stream is another one
    buffer._rng.set_state(state)
    assert all((buffer.sample()["action"] == draw).all() for draw in draws)
    assert not (draws[0] == draws[1]).all()
    seen = torch.cat([buffer.sample()["action"] for _ in range(50)]).unique()
    assert len(seen) == 11
    assert any(len(draw.unique()) < 8 for draw in draws)  # with replacement


def test_replay_buffer_refuses_what_it_cannot_serve():
    td = from_arrays(**arrays([(3, True)])).transitions
    with pytest.raises(DatasetError, match="batch_size: expected 1 to 3.*got 4"):
        make_replay_buffer(td, batch_size=4)
    with pytest.raises(DatasetError, match=r"none of \['action'\]"):
        make_replay_buffer(td.exclude("action"), batch_size=1)
    with pytest.raises(DatasetError, match=r"batch size \[N\]"):
        make_replay_buffer(td[None], batch_size=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replay_buffer_lives_on_the_training_device():
    td = from_arrays(**arrays([(3, True)])).transitions
    generator = torch.Generator("cuda").manual_seed(0)
    assert make_replay_buffer(td, batch_size=2, device="cuda", generator=generator).sample().device.type == "cuda"
    with pytest.raises(DatasetError, match="generator: expected one on cuda"):
        make_replay_buffer(td, batch_size=2, device="cuda", generator=torch.Generator())
