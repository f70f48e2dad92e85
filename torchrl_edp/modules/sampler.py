"""DiffusionSampler: a noise network and the solver that turns noise into actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from tensordict.nn.probabilistic import InteractionType, interaction_type
from torch import Tensor, nn

from torchrl_edp.diffusion import (
    SOLVERS,
    Bounds,
    NoiseSchedule,
    add_noise,
    check_interval,
    check_solver,
    clip,
    model_steps,
)
from torchrl_edp.diffusion.process import check_bounds
from torchrl_edp.modules.fused import MOST_CALLS, PLANNED, Plan, can_sample, make_plan, sample_actions

Prediction = Literal["noise", "velocity"]
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class DiffusionSampler(nn.Module):
    """What an :class:`EDPActor` wraps: the noise network and the solver that turns noise into actions.

    Its constructor arguments are those of :class:`EDPActor`. ``solver``, ``num_calls``, ``solver_kwargs``,
    ``initial_noise_scale`` and ``policy_scale`` are plain attributes and may be changed after training.

    Examples:
        >>> from torchrl_edp.modules import NoisePredictionMLP
        >>> sampler = DiffusionSampler(NoisePredictionMLP(11, 3), action_size=3)
        >>> sampler.num_calls = 5
        >>> sampler.sample(torch.zeros(4, 11), torch.randn(4, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        noise_network: nn.Module,
        *,
        action_size: int,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction = "noise",
        solver: str = "dpm_solver",
        num_calls: int | None = 15,
        solver_kwargs: dict[str, Any] | None = None,
        bounds: Bounds | None = (-1.0, 1.0),
        initial_noise_scale: float = 1.0,
        policy_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if prediction not in ("noise", "velocity"):
            raise ValueError(f"prediction must be 'noise' or 'velocity', got {prediction!r}.")
        check_interval("action_size", action_size, "[1, inf)")
        check_interval("initial_noise_scale", initial_noise_scale, "[0, 1]")
        check_interval("policy_scale", policy_scale, "(0, inf)")
        self.noise_network = noise_network
        self.action_size = action_size
        self.schedule = NoiseSchedule() if schedule is None else schedule
        self.prediction = prediction
        self.solver = solver
        self.num_calls = num_calls
        self.solver_kwargs = dict(solver_kwargs or {})
        self.bounds = None if bounds is None else check_bounds(bounds, action_size)
        self.initial_noise_scale = initial_noise_scale
        self.policy_scale = policy_scale
        self.check_options()

    @property
    def solver(self) -> str:
        """Name of the solver: one of ``torchrl_edp.diffusion.SOLVERS``."""
        return self._solver

    @solver.setter
    def solver(self, name: str) -> None:
        if name not in SOLVERS:
            raise ValueError(f"Unknown solver {name!r}: choose one of {sorted(SOLVERS)}.")
        self._solver = name

    @property
    def num_steps(self) -> int:
        """Number of diffusion steps K."""
        return self.schedule.num_steps

    def add_noise(self, action: Tensor, diffusion_step: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupt actions [*B, A] at integer steps [*B]; returns the noisy action and the noise, both [*B, A]."""
        noise = torch.randn_like(action)
        return add_noise(action, noise, diffusion_step, self.schedule), noise

    def predict_noise(
        self, noisy_action: Tensor, diffusion_step: Tensor, observation: Tensor, network: Network | None = None
    ) -> Tensor:
        """The predicted noise [*B, A] at integer steps [*B]: one call of the network, or of ``network`` instead."""
        network = self.noise_network if network is None else network
        output = network(noisy_action, diffusion_step.to(_step_dtype(noisy_action)), observation)
        if self.prediction == "noise":
            return output
        alpha, sigma = self.schedule.scales(diffusion_step, noisy_action)
        return (alpha * output + sigma * noisy_action).to(noisy_action.dtype)

    def score_network(self, model_input: Tensor) -> Tensor:
        """The noise prediction on [noisy action, observation, step] [*B, A + O + 1], as DiffusionBCLoss calls it."""
        noisy_action = model_input[..., : self.action_size]
        step = model_input[..., -1].round().long().clamp_max(self.num_steps - 1)  # bfloat16 rounds 999 to 1000
        return self.predict_noise(noisy_action, step, model_input[..., self.action_size : -1])

    def sample(
        self, observation: Tensor, initial_noise: Tensor, network: Network | None = None, **kwargs: Any
    ) -> Tensor:
        """Solve from ``initial_noise`` [*B, A] to actions [*B, A], given [*B, O]; options override the solver's.

        ``network`` is called in place of the noise network: with other parameters, or with checkpointing. A noise
        network that has ``condition(observation, steps)`` (as :class:`~torchrl_edp.modules.NoisePredictionMLP`) is
        called through it. Inside :func:`~torchrl_edp.modules.fused_sampling` it is not called at all where a kernel can
        take its place.
        """
        options = self._options(**kwargs)
        bounds: Bounds | None = options["bounds"]
        if network is None and self._is_planned(options, kwargs):
            if can_sample(self.noise_network, initial_noise, observation):
                plan = self._plan()
                sampled = sample_actions(self.noise_network, initial_noise, observation, plan, bounds)  # type: ignore[arg-type]
                return sampled if bounds is None else clip(sampled, bounds)
        predict = self._conditioned(observation, network, options)

        def model(noisy_action: Tensor, step: float) -> Tensor:
            output = predict(noisy_action, step)
            if self.prediction == "noise":
                return output
            time = (step + 1) / self.schedule.num_steps
            return self.schedule.alpha(time) * output + self.schedule.sigma(time) * noisy_action

        action = SOLVERS[self.solver](model, initial_noise, self.schedule, **options)
        return action if bounds is None else clip(action, bounds)

    def _is_planned(self, options: dict[str, Any], changes: dict[str, Any]) -> bool:
        """Whether the solver draws nothing and is, but for its bounds, the sampler's own."""
        if self.solver not in PLANNED or options.get("eta") or not 1 <= (options["num_calls"] or 0) <= MOST_CALLS:
            return False
        return set(changes) <= ({"bounds", "step_noise"} if self.solver == "ddim" else {"bounds"})

    def _plan(self) -> Plan:
        # Read here, so that a compiled graph is made anew where they change: it takes the plan as a constant.
        schedule = self.schedule
        hash(
            (
                self.prediction,
                schedule.num_steps,
                schedule.kind,
                schedule.log_alpha(0.5),
                *self._plan_options().values(),
            )
        )
        return self._constant_plan()

    @torch.compiler.assume_constant_result
    def _constant_plan(self) -> Plan:
        return make_plan(self.solver, self.schedule, self.prediction, tuple(self._plan_options().items()))

    def _plan_options(self) -> dict[str, Any]:
        return {name: value for name, value in self._options().items() if name not in ("bounds", "step_noise")}

    def check_options(self, **kwargs: Any) -> None:
        """Refuse what the solver cannot run, such as a number of calls that does not fit it; options as of `sample`."""
        check_solver(self.solver, self.schedule, **self._options(**kwargs))

    def _options(self, **kwargs: Any) -> dict[str, Any]:
        """The solver's options: the sampler's own and ``solver_kwargs``, under ``kwargs``."""
        own: dict[str, Any] = {"initial_noise_scale": self.initial_noise_scale, "policy_scale": self.policy_scale}
        own |= {"num_calls": self.num_calls, "bounds": self.bounds}
        if twice := [name for name in own if name in self.solver_kwargs]:
            raise ValueError(f"solver_kwargs holds {twice}: the sampler has them as arguments of their own, set those.")
        return own | self.solver_kwargs | kwargs

    def _conditioned(
        self, observation: Tensor, network: Network | None, options: dict[str, Any]
    ) -> Callable[[Tensor, float], Tensor]:
        """The network's output as a function of noisy action and step, one for all rows."""
        if network is None and hasattr(self.noise_network, "condition"):
            steps = model_steps(self.solver, self.schedule, **options)
            return self.noise_network.condition(observation, steps)  # type: ignore[operator]
        called = self.noise_network if network is None else network

        def predict(noisy_action: Tensor, step: float) -> Tensor:
            dtype = _step_dtype(noisy_action)
            steps = torch.full(noisy_action.shape[:-1], step, dtype=dtype, device=noisy_action.device)
            return called(noisy_action, steps, observation)

        return predict

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Actions [*B, A] for ``inputs``: observations [*B, O_i], concatenated, then the initial noise or None.

        Without initial noise it is drawn when the exploration type is RANDOM or None, and zero otherwise, as is then
        the noise that a solver adds between its calls.
        """
        *parts, initial_noise = inputs
        observations = [part for part in parts if part is not None]
        if len(observations) < len(parts):
            raise KeyError(f"EDPActor misses an observation: {[i for i, part in enumerate(parts) if part is None]}.")
        observation = torch.cat(observations, -1) if len(observations) > 1 else observations[0]
        if initial_noise is None:
            initial_noise = self.initial_noise(observation)
        solver: Any = SOLVERS[self.solver]
        if _explores() or "step_noise" not in solver.__kwdefaults__:
            return self.sample(observation, initial_noise)
        zeros = initial_noise.new_zeros(self.num_calls or self.num_steps, *[1] * initial_noise.ndim)
        return self.sample(observation, initial_noise, step_noise=zeros)

    def initial_noise(self, observation: Tensor) -> Tensor:
        """What to start from [*B, A] at observations [*B, O]: drawn, or zero as `forward` says."""
        shape = (*observation.shape[:-1], self.action_size)
        draw = torch.randn if _explores() else torch.zeros
        return draw(shape, dtype=observation.dtype, device=observation.device)


def _explores() -> bool:
    return interaction_type() in (InteractionType.RANDOM, None)


def _step_dtype(like: Tensor) -> torch.dtype:
    """Half precision cannot tell neighbouring diffusion steps apart."""
    return torch.promote_types(like.dtype, torch.float32)
