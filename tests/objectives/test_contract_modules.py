"""The LossModule contract, for every loss: parameters, copies, casts, compilation."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from loss_cases import gradients, make_data, make_loss, make_networks, seeded, spread, total
from tensordict import TensorDict, assert_close
from torch import nn
from torchrl.testing import get_default_devices, mp_ctx


def test_state_dict_round_trip(case):
    loss, other, data = spread(make_loss(case)), make_loss(case), make_data()
    expected = seeded(loss, data)
    assert (total(expected) - total(seeded(other, data))).abs() > 1e-4
    other.load_state_dict(loss.state_dict())
    assert_close(seeded(other, data), expected)
    names = set(make_loss(case).state_dict())
    assert names == {name for name in loss.state_dict() if "network_params." in name}


@pytest.mark.parametrize("copy", [deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(case, copy):
    loss, data = spread(make_loss(case)), make_data()
    expected = seeded(loss, data)
    twin = copy(loss)
    assert_close(seeded(twin, data), expected)
    assert twin._vmap_qvalue is not loss._vmap_qvalue
    changed = seeded(spread(twin), data)
    assert all((changed[term] - expected[term]).abs() > 1e-6 for term in case.terms)
    fresh = make_loss(case)
    fresh.load_state_dict(twin.state_dict(), strict=False)  # its estimator is missing
    assert_close(changed, seeded(fresh, data))
    assert_close(seeded(loss, data), expected)


def test_a_loss_reaches_a_worker(case):
    loss, data = spread(make_loss(case)), make_data()
    context = torch.multiprocessing.get_context(mp_ctx)
    queue = context.Queue()
    worker = context.Process(target=_work, args=(pickle.dumps((loss, data)), queue))
    worker.start()
    found = queue.get(timeout=60)
    worker.join()
    assert found == pytest.approx(float(total(seeded(loss, data)).detach()), rel=1e-6)


def _work(message: bytes, queue) -> None:
    loss, data = pickle.loads(message)
    queue.put(float(total(seeded(loss, data)).detach()))


def first_weights(params: TensorDict) -> torch.Tensor:
    (weight,) = [value for key, value in params.items(True, True) if key[-2:] == ("0", "weight")]
    return weight


@pytest.mark.parametrize("separate", [False, True])
def test_copies_of_one_critic_start_independent_and_by_the_layers_rule(case, separate):
    networks = make_networks(1)
    (critic,) = networks["qvalue_network"]
    nn.init.constant_(critic.module.net[0].bias, 5.0)
    original = TensorDict.from_module(critic).data.clone()
    networks["qvalue_network"] = critic
    loss = make_loss(case, 3, networks=networks, separate_losses=separate, updater=False)  # one would copy to targets
    params = loss.qvalue_network_params
    assert_close(params.data[0].to_tensordict(), original)
    weights = first_weights(params.data)
    assert weights.shape[0] == 3 and len({float(weight.sum()) for weight in weights}) == 3
    assert (weights.abs() <= 5**-0.5).all(), "nn.Linear's bound for 5 inputs"
    assert_close(loss._modules["target_qvalue_network_params"].data.to_tensordict(), params.data.to_tensordict())


@pytest.mark.parametrize("num_qvalue_nets", [1, 3])
def test_a_list_of_critics_keeps_its_weights(case, num_qvalue_nets):
    networks = make_networks(num_qvalue_nets)
    loss = make_loss(case, num_qvalue_nets, networks=networks)
    for index, critic in enumerate(networks["qvalue_network"]):
        assert_close(loss.qvalue_network_params.data[index].to_tensordict(), TensorDict.from_module(critic).data)
    assert all(parameter.is_leaf for parameter in loss.qvalue_network_params.values(True, True))
    with pytest.raises(ValueError, match="num_qvalue_nets is 5"):
        make_loss(case, 5, networks=networks)


class Trunk(nn.Module):
    """A network on top of features that other networks share."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        *others, last = inputs
        return self.head(*others, self.trunk(last)) if len(inputs) != 2 else self.head(self.trunk(inputs[0]), last)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("num_qvalue_nets", [1, 2])
def test_separate_losses_with_a_shared_trunk(case, as_list, num_qvalue_nets):
    """The observation passes through one layer in every network: only the actor's loss may train it."""
    trunk = nn.Linear(3, 3)
    networks = make_networks(num_qvalue_nets, wrap=lambda net: Trunk(trunk, net))
    if not as_list:
        networks["qvalue_network"] = networks["qvalue_network"][0]
    loss = make_loss(case, num_qvalue_nets, networks=networks, separate_losses=True)
    output = loss(make_data())
    for term, network in case.networks.items():
        for name, gradient in gradients(loss, output[term]).items():
            reached = gradient is not None and bool((gradient != 0).any())
            assert reached == name.startswith(f"{network}_params"), f"{term} and {name}"
    trained = {name for name, _ in loss.named_parameters() if "trunk" in name}
    assert trained == {f"actor_network_params.module.noise_network.trunk.{name}" for name in ("bias", "weight")}
    with torch.no_grad():
        trunk.weight.add_(1.0)  # what the actor's optimiser does reaches the critics
    shared = loss.qvalue_network_params["module", "trunk", "weight"]
    torch.testing.assert_close(shared, trunk.weight.detach().expand(num_qvalue_nets, 3, 3))
    assert len(set(loss.qvalue_network_params["module", "head", "net", "0", "weight"].sum((1, 2)).tolist())) == (
        num_qvalue_nets
    )


@pytest.mark.parametrize("num_qvalue_nets", [1, 2])
def test_reset_parameters_recursive(case, num_qvalue_nets):
    loss = spread(make_loss(case, num_qvalue_nets))
    before = {name: parameter.detach().clone() for name, parameter in loss.named_parameters()}
    leaves = dict(loss.named_parameters())
    loss.reset_parameters_recursive()
    for name, parameter in loss.named_parameters():
        assert parameter is leaves[name] and not torch.isclose(parameter, before[name]).any(), name
    weights = first_weights(loss.qvalue_network_params)
    assert (weights.abs() <= 5**-0.5).all() and weights.abs().max() > 0.3, "nn.Linear's rule for 5 inputs"
    for name in ("actor_network_params", "qvalue_network_params"):
        targets = loss._modules[f"target_{name}"]
        assert_close(targets.data.to_tensordict(), loss._modules[name].data.to_tensordict())
    total(loss(make_data())).backward()


@pytest.mark.parametrize("device", get_default_devices(), ids=str)
@pytest.mark.parametrize(
    "cast", [lambda loss: loss.double(), lambda loss: loss.to(torch.float64)], ids=["double", "to"]
)
def test_casts(case, cast, device):
    loss = spread(make_loss(case)).to(device)
    data = make_data().to(device)
    single = seeded(loss, data)
    assert all(value.dtype == torch.float32 and value.device == device for value in single.values())
    double = seeded(cast(loss), data.apply(lambda x: x.double() if x.is_floating_point() else x))
    assert all(value.dtype == torch.float64 and value.device == device for value in double.values())
    assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    total(double).backward()
    assert_close(seeded(loss.float(), data), single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_dropout_inside_the_networks(case, deactivate_vmap):
    networks = make_networks(2, wrap=lambda net: _Dropped(net))
    loss, data = make_loss(case, networks=networks, deactivate_vmap=deactivate_vmap), make_data()
    first, second = (loss(data) for _ in range(2))
    assert all(first[term] != second[term] for term in case.terms)
    total(loss(data)).backward()
    for network in networks.values():
        for module in network if isinstance(network, list) else [network]:
            module.eval()
    first, second = (loss(data) for _ in range(2))
    assert first["loss_qvalue"] == second["loss_qvalue"]


class _Dropped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.dropout = net, nn.Dropout(0.5)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.net(*[self.dropout(x) if x.ndim > 1 else x for x in inputs])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using lock_")  # TensorDictParams under vmap, in every TorchRL loss
def test_compiled_in_one_graph_equals_eager(case):
    networks = make_networks(2)
    networks["actor_network"].module.num_calls = 2  # the solver is unrolled
    loss, data = spread(make_loss(case, networks=networks)), make_data()
    eager = seeded(loss, data.copy())
    expected = gradients(loss, total(eager))
    with torch._inductor.config.patch(fallback_random=True):  # the same draws as eagerly
        compiled = seeded(torch.compile(loss, fullgraph=True), data.copy())
    assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    for parameter, gradient in gradients(loss, total(compiled)).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-3, atol=1e-4)
