"""TorchRL's own DiffusionActor in the EDP losses."""

from __future__ import annotations

import torch
from loss_cases import OBS, A, make_data, make_loss, make_networks, total
from torchrl.modules import DiffusionActor


def test_a_stock_actor_is_trained(case):
    stock = DiffusionActor(action_dim=A, obs_dim=OBS, num_steps=10)
    networks = make_networks(2) | {"actor_network": stock}
    loss, data = make_loss(case, networks=networks), make_data()
    data["diffusion_step"] %= 10
    assert {id(p) for p in loss.actor_network_params.values(True, True)} == {id(p) for p in stock.parameters()}
    before = [parameter.detach().clone() for parameter in stock.parameters()]
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    total(loss(data)).backward()
    optimizer.step()
    assert all((new != old).any() for new, old in zip(stock.parameters(), before, strict=True))
    assert stock(data.select("observation"))["action"].shape == (4, A), "it still acts by itself"
