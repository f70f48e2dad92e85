"""The state of a training run and its one operation, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import LossModule

from torchrl_edp.diffusion import check_interval
from torchrl_edp.modules import fused_networks, fused_sampling
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.training.adam import NetworkOptimizer
from torchrl_edp.training.batches import is_uniform, take_rows
from torchrl_edp.training.bias import AddBiasLater
from torchrl_edp.training.exponential import InlineExp
from torchrl_edp.training.finite import not_finite
from torchrl_edp.training.layout import TransposeFactors
from torchrl_edp.training.targets import EDPTargetUpdate
from torchrl_edp.training.thin import InlineThinProducts

_COMPILE_OPTIONS: dict[str, Any] = {
    # Nothing that a guard would look at changes during training, and checking guards costs a tenth of an update.
    "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    "fallback_random": True,  # the same draws as the eager update, bit for bit
    "size_asserts": False,
    "alignment_asserts": False,
}

CHECK_EVERY = 100  # updates between two looks at what was not finite, where a look is a sync

UpdateOrder = Literal["joint", "sequential"]
Decay = Literal["none", "cosine"]
_Updated = tuple[dict[str, Tensor], Tensor]  # metrics, and whether all was finite


def cpu_options(*, onednn: bool) -> dict[str, Any]:
    """The compiler's options on CPUs: products are called from C++, not from Python; the passes say what they do."""
    thin = [InlineThinProducts()] if onednn else []
    return {
        "cpp_wrapper": True,
        "post_grad_custom_post_pass": [AddBiasLater(), *thin, InlineExp(), TransposeFactors()],
        "cpp.enable_floating_point_contract_flag": "fast",  # a b + c in one instruction, for InlineExp
    }


class TrainState:
    """Everything an update depends on: parameters, targets, optimizer, data, counters.

    Args:
        loss: an EDP loss, or in joint order any TorchRL loss whose terms are named ``loss_...``; a
            :class:`~torchrl_edp.objectives.MultiSeedLoss` trains several seeds, each on batches of its own; none
            steps where one has a loss or gradient that is not finite.
        buffer: a replay buffer with the data. With several seeds its batches must be of equal size: a sampler without
            replacement drops its last one (``drop_last=True``).
        targets: the target updater of ``loss``.
        lr: Adam's learning rate (paper: 3e-4).
        critic_lr: of the critics; ``lr`` if None.
        decay: ``"cosine"`` lets the policy's learning rate fall to 0 at ``gradient_steps``.
        gradient_steps: length of the decay.
        clip_grad: largest gradient norm of each network on its own (paper: 5); None for no clipping.
        update_order: ``"joint"``: all losses from the same parameters; ``"sequential"``: one after the other, in the
            order of ``loss.sequential_terms`` (Alg. 1; IQL: V, then the policy weighted by the new V, then Q).
        policy_every: updates between two steps of the policy (TD3: 2); its gradient is computed at every one.
        compile: compile the update, from the batch to the targets, into one graph. It has the settings of loss and
            actor that it was compiled with, at the first update: changing an attribute later has no effect. Either way
            it samples inside :func:`~torchrl_edp.modules.fused_sampling`, and eagerly runs inside
            :func:`~torchrl_edp.modules.fused_networks`.

    Raises:
        ValueError: if an option is none of those above, a number is not positive, the buffer has no ``batch_size``, or
            the loss has ``reduction="none"``.
        TypeError: if ``targets`` is another target updater.

    Examples:
        >>> import torch
        >>> from torchrl_edp import EDPIQLLoss
        >>> from torchrl_edp.data import from_arrays, make_replay_buffer
        >>> from torchrl_edp.training import DiffusionSettings, NetworkSettings, build_actor, build_qvalue, build_value
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), [0] * 8 + [1], [0] * 9)
        >>> network = NetworkSettings(hidden_sizes=[8])
        >>> actor = build_actor(3, 2, network, DiffusionSettings())
        >>> loss = EDPIQLLoss(actor, build_qvalue(3, 2, network), build_value(3, network))
        >>> loss = loss.make_value_estimator(gamma=0.99)
        >>> buffer = make_replay_buffer(data.transitions, batch_size=4)
        >>> state = TrainState(loss, buffer, EDPTargetUpdate(loss))
        >>> losses = state.update()
        >>> losses["loss_actor"].shape, state.updates
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        loss: LossModule,
        buffer: TensorDictReplayBuffer,
        targets: EDPTargetUpdate,
        *,
        lr: float = 3e-4,
        critic_lr: float | None = None,
        decay: Decay = "none",
        gradient_steps: int = 100_000,
        clip_grad: float | None = 5.0,
        update_order: UpdateOrder = "joint",
        policy_every: int = 1,
        compile: bool = False,
    ) -> None:
        if update_order not in ("joint", "sequential"):
            raise ValueError(f"update_order must be 'joint' or 'sequential', got {update_order!r}.")
        if decay not in ("none", "cosine"):
            raise ValueError(f"decay must be 'none' or 'cosine', got {decay!r}.")
        if not isinstance(targets, EDPTargetUpdate):
            raise TypeError(f"targets must be an EDPTargetUpdate(loss, tau=...), got {type(targets).__name__}.")
        numbers = {"lr": lr, "critic_lr": critic_lr, "clip_grad": clip_grad}
        for name, value in {**numbers, "gradient_steps": gradient_steps, "policy_every": policy_every}.items():
            if value is not None:
                check_interval(name, value, "(0, inf)")
        if buffer.batch_size is None:
            raise ValueError("TrainState draws batches itself: give the buffer a batch_size.")
        if getattr(loss, "reduction", None) == "none":
            raise ValueError("TrainState differentiates one number: make the loss with reduction='mean' or 'sum'.")
        self.loss = loss
        self.buffer = buffer
        self.targets = targets
        self.decay = decay
        self.gradient_steps = gradient_steps
        self.policy_every = policy_every
        self.compiled = compile
        self.updates = 0
        self._seeds = (loss.num_seeds,) if isinstance(loss, MultiSeedLoss) else ()
        networks = _parameters_by_network(loss)
        rates = {name: lr if name == "actor" or critic_lr is None else critic_lr for name in networks}
        self.optimizers = {
            name: NetworkOptimizer(parameters, lr=rates[name], clip_grad=clip_grad, seed_dims=len(self._seeds))
            for name, parameters in networks.items()
        }
        self._actor_lr = lr
        self._actor_rate = torch.zeros_like(self.optimizers["actor"].lr)
        self._actor_due = torch.ones_like(self._actor_rate, dtype=torch.bool)
        self.check_every = 1 if self.device.type == "cpu" else CHECK_EVERY
        self._unchecked: list[tuple[int, dict[str, Tensor], Tensor]] = []
        names = ("loss",) if update_order == "joint" else loss.sequential_terms
        self._terms = [_term(loss, name, len(self._seeds)) for name in names]
        # A uniform sampler's batch is gathered inside the update; any other buffer draws its own.
        self._storage = buffer[:] if is_uniform(buffer) else None
        self._step = self._compile() if compile else self._update

    def _compile(self) -> Callable[..., _Updated]:
        """Compile the update; what the terms set up at their first call must be there before."""
        with torch.random.fork_rng(), torch.no_grad():
            batch = self.buffer[: self.buffer.batch_size]
            for term in self._terms:
                term(batch.expand(*self._seeds, *batch.batch_size).contiguous() if self._seeds else batch)
        options = _COMPILE_OPTIONS
        if self.device.type == "cpu":
            options = options | cpu_options(onednn=torch.backends.mkldnn.matmul.fp32_precision == "bf16")  # type: ignore[attr-defined]
        # Without guards another state's graph would be taken for this one's: the function is compiled in isolation.
        compiled = torch.compile(  # type: ignore[call-overload]
            self._update, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options
        )

        def step(*inputs: Any) -> _Updated:
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                return compiled(*inputs)

        return step

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self._actor_rate.device

    @property
    def num_seeds(self) -> int:
        """Seeds that are trained together."""
        return math.prod(self._seeds)

    def update(self) -> dict[str, Tensor]:
        """One gradient step of every network and of the targets; returns detached losses and metrics [], or [S].

        Raises:
            FloatingPointError: where a loss or a gradient is not finite. No such step is taken: parameters, moments and
                targets stay as they are, but for what earlier terms of a sequential update have stepped; the error says
                which. On a CPU it comes at once, elsewhere at the next :meth:`check`.
        """
        batch, index = self._draw()
        if self.decay == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * min(self.updates / self.gradient_steps, 1.0)))
            self.optimizers["actor"].lr.fill_(self._actor_lr * share)
        self._actor_rate.fill_(self.targets.next_actor_rate())
        self.updates += 1
        if self.policy_every > 1:
            self._actor_due.fill_(self.updates % self.policy_every == 0)
        with fused_sampling(), fused_networks():
            metrics, valid = self._step(batch, index)
        self._unchecked.append((self.updates, metrics, valid))
        if len(self._unchecked) >= self.check_every:
            self.check()
        return metrics

    def _draw(self) -> tuple[TensorDictBase, Tensor | None]:
        """The batch, or the whole data and the rows to take from it; with several seeds [S, batch_size]."""
        if self._storage is not None:
            shape = (*self._seeds, self.buffer.batch_size)
            index = self.buffer.sampler.sample(self.buffer.storage, math.prod(shape))[0]
            return self._storage, index.reshape(shape)
        if self._seeds:
            return torch.stack([self.buffer.sample() for _ in range(*self._seeds)]).contiguous(), None
        return self.buffer.sample(), None

    def check(self) -> None:
        """Raise the error of the first update since the last check that had to be left out, if there is one."""
        unchecked, self._unchecked = self._unchecked, []
        flags = [valid for *_, valid in unchecked]
        if not (all(flags) if len(flags) < 2 else torch.stack(flags).all()):
            update, metrics, _ = next(entry for entry in unchecked if not entry[2])
            raise not_finite(update, metrics, self.optimizers, self.buffer, sequential=len(self._terms) > 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next update depends on but the data: parameters, targets, optimizers, counters, generators.

        The tensors of the networks are those in use, not copies.
        """
        state = {f"loss.{name}": tensor for name, tensor in self._loss_tensors().items()}
        for name, optimizer in self.optimizers.items():
            state |= {f"optimizer.{name}.{i}": tensor for i, tensor in enumerate(optimizer.state())}
        counters = {"updates": self.updates, "targets": self.targets.counter}
        state |= {f"counter.{name}": torch.tensor(value) for name, value in counters.items()}
        return state | {f"random.{name}": generator.get_state() for name, generator in self._generators().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave: the next update is the one that would have followed.

        Raises:
            ValueError: if names, shapes or types differ; nothing is taken over then.
        """
        own = self.state_dict()
        if missing := set(own) ^ set(state):
            raise ValueError(f"The train state: expected the same entries, got a difference in {sorted(missing)[:5]}.")
        for name, tensor in own.items():
            expected, got = (f"{value.dtype} {list(value.shape)}" for value in (tensor, state[name]))
            if expected != got:
                raise ValueError(f"The train state's {name}: expected {expected}, got {got}.")
        for name, generator in self._generators().items():
            generator.set_state(state[f"random.{name}"].cpu())
        self.updates = int(state["counter.updates"])
        self.targets.counter = int(state["counter.targets"])
        with torch.no_grad():
            for name, tensor in own.items():
                if name.startswith(("loss.", "optimizer.")):
                    tensor.copy_(state[name])

    def _loss_tensors(self) -> dict[str, Tensor]:
        parameters = dict(self.loss.named_parameters())
        own = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
        buffers = dict(self.loss.named_buffers())  # some are the actor's parameters, shared with critics
        return parameters | {k: v for k, v in buffers.items() if v.untyped_storage().data_ptr() not in own}

    def _generators(self) -> dict[str, torch.Generator]:
        """All sources of random numbers: torch's own, on CPU and training device, and the buffer's."""
        generators = {"cpu": torch.default_generator}
        if (device := self.device).type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generators["cuda"] = torch.cuda.default_generators[index]
        if self.buffer._rng is not None:
            generators["buffer"] = self.buffer._rng
        return generators

    def _update(self, batch: TensorDictBase, index: Tensor | None) -> _Updated:
        """The update as a function of tensors, all of them changed in place; compiled, it is one graph."""
        if index is not None:
            batch = take_rows(batch, index)
        metrics: dict[str, Tensor] = {}
        valid = torch.ones((), dtype=torch.bool, device=self.device)
        for term in self._terms:
            total, values = term(batch)
            metrics |= values
            norms, valid = self._descend(total, valid)
            metrics |= norms
        go, mask = _go(valid)
        if go:
            self.targets.move(self._actor_rate, mask)
        return metrics, valid

    def _descend(self, total: Tensor, valid: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """A step of every network that has gradients, if all is finite; the others stay as they are."""
        parameters = [parameter for optimizer in self.optimizers.values() for parameter in optimizer.parameters]
        gradients = iter(torch.autograd.grad(total.sum(0) if self._seeds else total, parameters, allow_unused=True))
        own = {name: [next(gradients) for _ in optimizer.parameters] for name, optimizer in self.optimizers.items()}
        own = {name: values for name, values in own.items() if any(value is not None for value in values)}
        norms = {name: self.optimizers[name].norm(values) for name, values in own.items()}
        valid = valid & torch.stack([total.detach(), *norms.values()]).isfinite().all()
        for name, values in own.items():
            delayed = name == "actor" and self.policy_every > 1
            go, mask = _go(valid & self._actor_due if delayed else valid)
            if go:
                self.optimizers[name].step(values, norms[name], mask)
        return {f"grad_norm_{name}": norm for name, norm in norms.items()}, valid


def _go(valid: Tensor) -> tuple[bool, Tensor | None]:
    """Whether to take a step, and its mask: eagerly on a CPU ``valid`` can be read, elsewhere that would be a sync."""
    if torch.compiler.is_compiling() or valid.device.type != "cpu":
        return True, valid
    return bool(valid), None


def _parameters_by_network(loss: LossModule) -> dict[str, list[torch.nn.Parameter]]:
    """Trained parameters by network; what belongs to no network (a learned deviation) goes with the actor."""
    groups: dict[str, list[torch.nn.Parameter]] = {"actor": []}
    for name, parameter in loss.named_parameters():
        network = name.split("_network_params")[0] if "_network_params" in name else "actor"
        if parameter.requires_grad:
            groups.setdefault(network, []).append(parameter)
    if not groups["actor"]:
        raise ValueError("TrainState trains a policy: expected trainable actor parameters, but none requires grad.")
    return groups


def _term(loss: LossModule, name: str, seed_dims: int) -> Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]:
    """A function of the batch that gives the loss to differentiate and detached values to log."""

    def mean(value: Tensor) -> Tensor:
        if value.ndim == seed_dims:
            return value
        return value.reshape(*value.shape[:1], -1).mean(1) if seed_dims else value.mean()

    def joint(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        output = loss(batch)
        first, *others = (value for key, value in output.items() if key.startswith("loss_"))
        return sum(others, start=first), {key: mean(value.detach()) for key, value in output.items()}

    def single(batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = getattr(loss, name)(batch)
        logged: dict[str, Any] = {key: mean(value) for key, value in metrics.items()}
        return total, logged | {f"loss_{name.removesuffix('_loss')}": total.detach()}

    return joint if name == "loss" else single
