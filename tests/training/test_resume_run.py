"""When a run's folder may be gone on with, and what is said if not."""

import json

import pytest
import torch
from experiment_helpers import make_data, make_loss, make_settings

from torchrl_edp.training import RunFolder, load_policy, run_experiment
from torchrl_edp.training.checkpoint import CheckpointError, CheckpointStore
from torchrl_edp.training.lock import RunLockError
from torchrl_edp.training.settings import OptimSettings

pytestmark = pytest.mark.slow


def run(path, steps=4, dataset=None, before=lambda cfg: None, **options):
    optim = OptimSettings(gradient_steps=steps, actor_start=0, device="cpu", lr=0.01, decay="none")
    cfg, dataset = make_settings("edp_td3", optim=optim, **options), dataset or make_data()
    before(cfg)
    torch.manual_seed(cfg.seed)
    folder = RunFolder(path, backend="", name="edp_td3", overrides=["seed=0"], config=f"{steps} updates")
    try:
        return run_experiment(cfg, dataset, make_loss(cfg, "edp_td3", dataset), folder)
    finally:
        folder.close()


@pytest.fixture
def dataset():
    torch.manual_seed(1)
    return make_data()


def weights(path):
    return CheckpointStore(path / "checkpoints").load().tensors


def test_a_run_can_be_made_longer(tmp_path, dataset):
    whole = run(tmp_path / "whole", steps=8, dataset=dataset)
    run(tmp_path / "parts", steps=4, dataset=dataset)
    parts = run(tmp_path / "parts", steps=8, dataset=dataset, resume="auto")
    ends = [weights(tmp_path / name) for name in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    assert not [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    assert all(whole[name] == parts[name] for name in ("rat", "oms", "last", "gradient_steps"))
    for name in ("metrics.csv", "policy.json", "policy_best.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    assert load_policy(tmp_path / "parts" / "policy").policy is not None


def test_a_finished_run_is_left_as_it_is(tmp_path, dataset):
    first = run(tmp_path, dataset=dataset)
    before = (tmp_path / "policy.safetensors").read_bytes()
    second = run(tmp_path, dataset=dataset, resume=str(tmp_path))
    assert (tmp_path / "policy.safetensors").read_bytes() == before
    assert second == first


def test_auto_begins_where_there_is_nothing(tmp_path, dataset, capsys):
    assert run(tmp_path, dataset=dataset, resume="auto")["gradient_steps"] == 4
    assert "Nothing to resume" in capsys.readouterr().out


def test_a_run_is_not_overwritten(tmp_path, dataset):
    run(tmp_path, dataset=dataset)
    with pytest.raises(CheckpointError, match=rf"holds a run of 4 updates.*resume={tmp_path}"):
        run(tmp_path, dataset=dataset)


def test_other_settings_or_data_are_refused_unless_told(tmp_path, dataset):
    run(tmp_path, dataset=dataset)
    steps = CheckpointStore(tmp_path / "checkpoints").steps()

    def other(cfg):
        cfg.optim.tau = 0.5
        cfg.network.hidden_sizes = [8]
        cfg.logger.eval_envs = 1  # free

    with pytest.raises(CheckpointError, match=r"optim.tau: 0.005 then, 0.5 now\. Take") as error:
        run(tmp_path, steps=6, dataset=dataset, before=other, resume="auto")
    assert "logger" not in str(error.value) and "gradient_steps" not in str(error.value)
    torch.manual_seed(2)
    with pytest.raises(CheckpointError, match="the data: other contents now"):
        run(tmp_path, steps=6, dataset=make_data(), resume="auto")
    assert CheckpointStore(tmp_path / "checkpoints").steps() == steps
    assert (tmp_path / "config.yaml").read_text() == "4 updates"  # that of the run, not of what was refused
    summary = run(tmp_path, steps=6, dataset=make_data(), before=other, resume="auto", resume_changed=True)
    assert summary["gradient_steps"] == 6


def test_a_new_learning_rate_is_used(tmp_path, dataset):
    ends = []
    for rate in (0.01, 0.0001):

        def changed(cfg, rate=rate):
            cfg.optim.lr = rate

        path = tmp_path / str(rate)
        run(path, dataset=dataset)
        before = weights(path)
        run(path, steps=5, dataset=dataset, before=changed, resume="auto", resume_changed=True)
        moved = [(weights(path)[name] - value).abs().max() for name, value in before.items() if "loss.actor" in name]
        ends.append(max(moved))
    assert ends[0] > 50 * ends[1] > 0


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, dataset, capsys):
    def often(cfg):
        cfg.checkpoint.iter = 1

    run(tmp_path, dataset=dataset, before=often)
    store = CheckpointStore(tmp_path / "checkpoints")
    steps = store.steps()
    damaged = store.load().path / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    end = run(tmp_path, dataset=dataset, before=often, resume="auto")
    said = capsys.readouterr().out
    assert f"Skipped: Checkpoint {damaged.parent}" in said and f"Resuming after update {steps[-2]}" in said
    assert end["gradient_steps"] == 4
    for step in store.steps():
        for path in (tmp_path / "checkpoints").glob(f"update_{step:09d}*"):
            (path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        run(tmp_path, dataset=dataset, resume="auto")


def test_a_folder_in_use_is_refused(tmp_path):
    folder = RunFolder(tmp_path, backend="")
    with pytest.raises(RunLockError, match="in use by process"):
        RunFolder(tmp_path, backend="")
    folder.close()
    RunFolder(tmp_path, backend="").close()


def test_no_evaluation_leaves_a_summary_that_is_json(tmp_path, dataset, capsys):
    def none(cfg):
        cfg.logger.eval_iter = 0

    run(tmp_path, dataset=dataset, before=none)
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["rat"] is None and summary["oms"] is None
    assert "Not evaluated" in capsys.readouterr().out
