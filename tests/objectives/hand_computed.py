"""The losses written out one sample at a time, from the equations: nothing of the package but its networks is used."""

from __future__ import annotations

import math
from typing import Any

import torch
from loss_cases import K, make_data
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.objectives import LossModule

BETAS = [(1e-4 + i / (K - 1) * (0.02 - 1e-4)) * 1000 / K for i in range(K)]  # linear
ABARS = [math.prod(1 - BETAS[j] for j in range(i + 1)) for i in range(K)]
ELBO = {  # Eq. 12; the reference's form; the same with mean 1
    "elbo": [BETAS[i] / (2 * (1 - BETAS[i]) * (1 - ABARS[max(i - 1, 0)])) for i in range(K)],
    "beta_elbo": [BETAS[i] / (2 * (1 - BETAS[i]) * (1 - ABARS[i])) for i in range(K)],
}
ELBO["normalized_elbo"] = [w * K / sum(ELBO["beta_elbo"]) for w in ELBO["beta_elbo"]]
BY_STEP = {"uniform": [1.0] * K, "alpha_bar": ABARS, "snr": [min(a / (1 - a), 5) / 5 for a in ABARS]}
LIKELIHOODS = ["noise", "elbo", "beta_elbo", "normalized_elbo", "approximation", "log_prob", "sampled_mse"]
COMMON = {
    "action_reduction": "mean",
    "guidance_weighting": "uniform",
    "guidance_steps": None,
    "guidance_weight": 0.7,
    "clip_approximation": False,
}
LIKELIHOOD = COMMON | {
    "likelihood": "noise",
    "temperature": 2.0,
    "weight_cap": 3.0,
    "weight_normalization": None,
    "deviation": 1.0,
}


def double_data(size: int) -> TensorDictBase:
    """A batch in float64 that holds the first and the last diffusion step."""
    data = make_data([size], dtype=torch.float64)
    data["diffusion_step"][:2] = torch.tensor([0, K - 1])
    return data


def qvalue(networks: dict[str, Any], params: TensorDictParams, critic: int, observation: Tensor, action: Tensor):
    """The value [] of one action [A] under one critic."""
    network = networks["qvalue_network"][0]
    with params[critic].to_module(network):
        return network.module(observation, action).squeeze(-1)


def predict(networks: dict[str, Any], noisy: Tensor, step: float, observation: Tensor) -> Tensor:
    """The predicted noise [A]."""
    step = torch.tensor(float(step), dtype=torch.float64)
    return networks["actor_network"].module.noise_network(noisy, step, observation)


def over_actions(values: Tensor, s: dict[str, Any]) -> Tensor:
    return values.mean() if s["action_reduction"] == "mean" else values.sum()


def step_weight(step: int, s: dict[str, Any]) -> float:
    first, last = s["guidance_steps"] or (0, K - 1)
    return BY_STEP[s["guidance_weighting"]][step] if first <= step <= last else 0.0


def approximations(networks: dict[str, Any], data: TensorDictBase, s: dict[str, Any]) -> tuple[list, list]:
    """The noise error and the approximated action of every sample."""
    errors, actions = [], []
    for i in range(len(data)):
        k, a, eps = int(data["diffusion_step"][i]), data["action"][i], data["diffusion_noise"][i]
        noisy = math.sqrt(ABARS[k]) * a + math.sqrt(1 - ABARS[k]) * eps  # Eq. 8
        predicted = predict(networks, noisy, k, data["observation"][i])
        errors.append(over_actions((eps - predicted) ** 2, s))  # Eq. 5
        action = noisy / math.sqrt(ABARS[k]) - math.sqrt(1 - ABARS[k]) / math.sqrt(ABARS[k]) * predicted  # Eq. 9
        actions.append(action.clamp(-1, 1) if s["clip_approximation"] else action)
    return errors, actions


def advantage_factors(advantages: list[float], s: dict[str, Any]) -> list[float]:
    """The weight of every sample in the likelihood."""
    if s.get("weight_function") == "step":
        factors = [1.0 if advantage > 0 else 0.0 for advantage in advantages]
    else:
        factors = [math.exp(s["temperature"] * advantage) for advantage in advantages]
        if s["weight_cap"] is not None and s["weight_normalization"] != "softmax":
            factors = [min(factor, s["weight_cap"]) for factor in factors]
    if s["weight_normalization"] is None:
        return factors
    scale = {"mean": len(factors), "softmax": 1}[s["weight_normalization"]] / sum(factors)
    return [factor * scale for factor in factors]


def likelihood_loss(
    loss: LossModule, data: TensorDictBase, terms: tuple[list, list], factors: list[float], extra: Tensor, s: dict
) -> Tensor:
    """L_diff + lambda E[w f * -likelihood] of every sample; ``extra`` is the noise of ``"sampled_mse"``."""
    if s["deviation"] == "learned":
        deviation = loss.log_deviation.exp()
    else:
        deviation = torch.tensor(s["deviation"], dtype=torch.float64)
    losses = []
    for i, (error, center) in enumerate(zip(*terms, strict=True)):
        k, a = int(data["diffusion_step"][i]), data["action"][i]
        if s["likelihood"] == "noise":
            negative = error
        elif s["likelihood"] in ELBO:
            negative = ELBO[s["likelihood"]][k] * error
        elif s["likelihood"] == "approximation":  # Eq. 13
            negative = over_actions((a - center) ** 2, s)
        elif s["likelihood"] == "log_prob":
            negative = -torch.distributions.Normal(center, deviation).log_prob(a).sum()
        else:
            negative = over_actions((a - (center + deviation * extra[i])) ** 2, s)
        losses.append(error + s["guidance_weight"] * step_weight(k, s) * factors[i] * negative)
    return torch.stack(losses)
