"""GradProm: the recogniser steers the enhancer only where the two agree. One step, and its comparators.

Zhang, Cheng. Generalized Task-Driven Medical Image Quality Enhancement with Gradient Promotion. TPAMI 2025.
https://arxiv.org/abs/2501.01114. The same rule for auxiliary losses: Du, Czarnecki et al. 2018,
https://arxiv.org/abs/1812.02224 (unweighted variant). ESTR: Liu et al. https://arxiv.org/abs/1910.09185.

    theta, phi   weights of the enhancer and the recogniser
    g            g_D      gradient of the main loss on theta: the enhancement loss, or with a critic that of todnet.py
    v            v_D      gradient of the recognition loss on theta, through the enhanced image; one, or one per task
    d            d_D      g + lambda passed(v): client/train/gates.py; as published, v passes if <g, v> > 0
    lambda       objective.task_weight; with objective.relative it is task_weight |g| / |v|

Both losses reach theta only through the enhanced image, so one enhancer forward, one recogniser backward and two
vector-Jacobian products give both gradients exactly (one more of each for every further task with a gate of its own);
BatchNorm statistics and dropout masks are drawn once. The gate stays on the device.

    objective                steers the enhancer    trains the recogniser
    plain, *-wgan            g                      on the enhanced image, cut off from the enhancer; *-wgan: no
    joint                    g + lambda v           on the enhanced image
    frozen, estr, todnet     g + lambda v           no
    gradprom                 d                      on the enhanced image
    todnet-gated             d                      no

FedProx adds mu (theta - theta of the round) to g before the gate: the proximal pull is part of what the enhancer wants
and the task gradient must agree with both. Weight decay is decoupled and never part of g or v; clipping is of d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from client.train import gates
from client.train.optimiser import SGD, AdamW, Optimiser, Split
from client.train.terms import RecognitionTerms, Share, Sums, supervised
from shared.batch import Batch
from shared.config import CampaignConfig, ObjectiveConfig
from shared.enhance.consistency import enhanced_image
from shared.enhance.losses import enhancement_loss
from shared.errors import DataError
from shared.networks import Networks

MainLoss = Callable[[Tensor, Tensor], Tensor]
"""(enhanced_BCHW, clean_BCHW) -> 0-dim loss, a mean over images."""


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Of one batch or a part of one; D runs over all weights of a network, flattened. Empty or None: not wanted."""

    enhance_D: Tensor
    task_D: tuple[Tensor, ...]
    """v of each auxiliary task that has a gate of its own; one for all together."""
    recogniser_D: Tensor | None
    enhance_loss: Tensor
    recognise_loss: Tensor
    cosines_TM: Tensor | None = None
    """cos(g, v) of each task in each micro batch; only where the gate asks for it."""
    sums: Sums = field(default_factory=dict)
    """Of the recognition that the recogniser learnt from; empty where it does not learn."""

    def __add__(self, other: Gradients) -> Gradients:
        return Gradients(
            self.enhance_D + other.enhance_D,
            tuple(a + b for a, b in zip(self.task_D, other.task_D, strict=True)),
            None if self.recogniser_D is None or other.recogniser_D is None else self.recogniser_D + other.recogniser_D,
            self.enhance_loss + other.enhance_loss,
            self.recognise_loss + other.recognise_loss,
            None
            if self.cosines_TM is None or other.cosines_TM is None
            else torch.cat([self.cosines_TM, other.cosines_TM], dim=1),
            added_sums(self.sums, other.sums),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Optimisers:
    """One Adam (or SGD) state per network; the enhancer's runs on d, split where d's two parts are wanted apart."""

    enhancer: Optimiser | Split
    recogniser: Optimiser
    critic: Optimiser | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """FedProx: the weights that the round began with, flattened, and the pull back to them."""

    enhancer_D: Tensor
    recogniser_D: Tensor
    mu: float


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """What the enhancer follows: d = g + added; 0-dim tensors on the device beside it."""

    d_D: Tensor
    added_D: Tensor
    gate_open: Tensor
    """Share of gates that are open: 0 or 1 where there is one. `projected` lets a part through when it is 0 too."""
    cosine: Tensor
    """Mean over the auxiliary tasks."""


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """0-dim tensors on the device: reading one waits for the step."""

    enhance_loss: Tensor
    recognise_loss: Tensor
    finite: Tensor
    gate_open: Tensor | None
    cosine: Tensor | None
    added: Tensor | None
    """|what recognition added| / |g|."""
    ascended: Tensor
    """1.0 where the change of the weights that was applied leads uphill to first order: <change, g> >= 0, g not 0, for
    the g of this batch (FedProx's pull included)."""


def gradients(
    networks: Networks,
    part: Batch,
    share: Share,
    campaign: CampaignConfig,
    main_loss: MainLoss | None = None,
    recognition: RecognitionTerms | None = None,
) -> Gradients:
    """Both gradients on the enhancer and the recogniser's own, from a single pass through each network.

    `recognition` makes the recognition loss of the enhanced images, where it is not that of learn=supervised.
    """
    objective = campaign.objective
    theta = trained(networks.enhancer)
    enhanced_BCHW = enhanced_image(networks.enhancer, part)
    image_BCHW = enhanced_BCHW.detach().float().requires_grad_(True)  # cut here; both losses end at this image
    enhance_loss = share.images * (main_loss or fidelity(campaign))(image_BCHW, part.clean_BCHW)
    (towards_clean_BCHW,) = torch.autograd.grad(enhance_loss, image_BCHW)

    asked = recognition_gradients(networks, image_BCHW, part, share, objective, recognition or supervised(campaign))
    towards_tasks = asked.towards_tasks

    g_D = vector_jacobian_D(towards_clean_BCHW, enhanced_BCHW, theta, keep_graph=bool(towards_tasks))
    v_TD = tuple(
        vector_jacobian_D(towards_task_BCHW, enhanced_BCHW, theta, keep_graph=after < len(towards_tasks))
        for after, towards_task_BCHW in enumerate(towards_tasks, start=1)
    )
    cosines_TM = None
    if v_TD and objective.gated and objective.gate == "confident":
        cosines_TM = torch.stack([gates.cosine(g_D, v_D) for v_D in v_TD])[:, None]
    return Gradients(g_D, v_TD, asked.recogniser_D, enhance_loss.detach(), asked.loss.detach(), cosines_TM, asked.sums)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What recognition asks of the enhanced image and of the recogniser."""

    towards_tasks: list[Tensor]
    """A gradient like the image, one per task that has a gate of its own; none where recognition does not steer."""
    recogniser_D: Tensor | None
    """None where the recogniser does not learn."""
    loss: Tensor
    sums: Sums


def recognition_gradients(
    networks: Networks,
    image_BCHW: Tensor,
    part: Batch,
    share: Share,
    objective: ObjectiveConfig,
    recognition: RecognitionTerms,
) -> Asked:
    """The gradients of the recognition loss of `image_BCHW`, as far as the objective wants them."""
    steers, learns = objective.steers, objective.learns
    phi = trained(networks.recogniser)
    if not (steers or learns):
        return Asked([], None, torch.zeros((), device=image_BCHW.device), {})
    terms = recognition(networks.recogniser, image_BCHW if steers else image_BCHW.detach(), part, share)
    loss = torch.stack(terms.losses).sum()
    if not steers:
        return Asked([], flat(learned(loss, phi)), loss, terms.sums)
    if objective.auxiliaries == "separate":
        towards = [learned(each, [image_BCHW], keep_graph=True)[0] for each in terms.losses]
        found = flat(learned(loss, phi)) if learns else None
        return Asked(towards, found, loss, terms.sums if learns else {})
    towards_all, *of_phi = learned(loss, [image_BCHW, *phi] if learns else [image_BCHW])
    return Asked([towards_all], flat(of_phi) if learns else None, loss, terms.sums if learns else {})


def learned(loss: Tensor, of: Sequence[Tensor], *, keep_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradients, 0 for what the loss does not reach: parts of the recogniser that no image of the batch has a label
    for, and all of it where there is none at all."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(each) for each in of)
    return torch.autograd.grad(loss, of, retain_graph=keep_graph, allow_unused=True, materialize_grads=True)


def added_sums(first: Sums, second: Sums) -> Sums:
    """Sum by sum; what one of them lacks counts as 0."""
    return {**first, **{name: first[name] + value if name in first else value for name, value in second.items()}}


def fidelity(campaign: CampaignConfig) -> MainLoss:
    """The main loss of every objective without a critic."""
    return lambda enhanced_BCHW, clean_BCHW: enhancement_loss(enhanced_BCHW, clean_BCHW, campaign.training.enhance_loss)


def vector_jacobian_D(
    vector_BCHW: Tensor, output_BCHW: Tensor, theta: list[nn.Parameter], *, keep_graph: bool = False
) -> Tensor:
    """The gradient of <vector, output>, flattened: the same numbers as `grad_outputs=vector`, without loading sympy."""
    product = (vector_BCHW.to(output_BCHW.dtype) * output_BCHW).sum()
    return flat(torch.autograd.grad(product, theta, retain_graph=keep_graph))


def direction(
    g_D: Tensor,
    v_TD: Sequence[Tensor],
    objective: ObjectiveConfig,
    blocks: Sequence[int] = (),
    cosines_TM: Tensor | None = None,
) -> Direction:
    """d from g and every task's v. A gradient that is not finite closes its gate, for NaN is not above 0.

    With objective.relative several tasks share lambda, so that together they add as much as one. A task whose v is 0,
    as where no image of the batch has a label for it, has no share.
    """
    norm_g = torch.linalg.vector_norm(g_D)
    norms_T = [torch.linalg.vector_norm(v_D) for v_D in v_TD]
    shares = torch.stack([norm_v != 0 for norm_v in norms_T]).sum().clamp(min=1)  # stays on the device
    added_D = torch.zeros_like(g_D)
    opened, cosines = [], []
    for task, (v_D, norm_v) in enumerate(zip(v_TD, norms_T, strict=True)):
        weight = torch.full_like(norm_v, objective.task_weight)
        if objective.relative:
            weight = torch.where(norm_v > 0, weight / shares * norm_g / norm_v, 0.0)
        passed = gates.Passed(v_D, torch.ones_like(norm_v))
        if objective.gated:
            passed = gates.passed(g_D, v_D, objective, blocks, None if cosines_TM is None else cosines_TM[task])
        added_D = added_D + weight * passed.v_D
        opened.append(passed.open)
        cosines.append(gates.cosine(g_D, v_D))
    added_D = gates.capped(added_D, g_D, objective.norm_cap)
    return Direction(g_D + added_D, added_D, torch.stack(opened).mean(), torch.stack(cosines).mean())


def update(
    networks: Networks,
    optimisers: Optimisers,
    found: Gradients,
    campaign: CampaignConfig,
    *,
    anchor: Anchor | None = None,
    check: bool = True,
) -> StepRecord:
    """Gate, clip and move both networks by one optimiser step.

    With `check`, raises DataError before they move if a loss or gradient is not finite. The check waits for the
    device, so on a GPU the caller checks now and then, and always before weights leave.
    """
    theta, phi = trained(networks.enhancer), trained(networks.recogniser)
    g_D, r_D = found.enhance_D, found.recogniser_D
    if anchor is not None:
        g_D = g_D + anchor.mu * (flat(theta) - anchor.enhancer_D)
        r_D = None if r_D is None else r_D + anchor.mu * (flat(phi) - anchor.recogniser_D)
    steered = None
    if found.task_D:
        blocks = [parameter.numel() for parameter in theta]
        steered = direction(g_D, found.task_D, campaign.objective, blocks, found.cosines_TM)
    d_D = g_D if steered is None else steered.d_D
    d_D, norm_d = clipped(d_D, campaign.training.clip_norm)
    finite = torch.isfinite(norm_d) & torch.isfinite(found.enhance_loss) & torch.isfinite(found.recognise_loss)
    if r_D is not None:
        r_D, norm_r = clipped(r_D, campaign.training.clip_norm)
        finite = finite & torch.isfinite(norm_r)
    for v_D in found.task_D:
        # A closed gate hides a broken v from d, but the recogniser that made it is broken all the same.
        finite = finite & torch.isfinite(v_D).all()
    if check:
        require_finite(finite)
    before_D = flat(theta)
    _move_enhancer(theta, optimisers.enhancer, d_D, norm_d, steered, campaign.training.clip_norm)
    uphill = torch.dot(flat(theta) - before_D, g_D)
    if r_D is not None:
        assign(phi, r_D)
        optimisers.recogniser.step()
    norm_g = torch.linalg.vector_norm(g_D)
    return StepRecord(
        found.enhance_loss,
        found.recognise_loss,
        finite,
        None if steered is None else steered.gate_open,
        None if steered is None else steered.cosine,
        None if steered is None else torch.linalg.vector_norm(steered.added_D) / norm_g.clamp(min=_TINY),
        ((uphill >= 0) & (norm_g > 0)).float(),
    )


_TINY = torch.finfo(torch.float32).tiny


def _move_enhancer(
    theta: list[nn.Parameter],
    optimiser: Optimiser | Split,
    d_D: Tensor,
    norm_d: Tensor,
    steered: Direction | None,
    limit: float | None,
) -> None:
    if isinstance(optimiser, Split):
        added_D = torch.zeros_like(d_D) if steered is None else steered.added_D * _scale(norm_d, limit)
        optimiser.step(d_D, added_D)
        return
    assign(theta, d_D)
    optimiser.step()


def require_finite(finite: Tensor) -> None:
    """Raises DataError where a loss or gradient of training was not finite."""
    if not bool(finite):
        raise not_finite()


def not_finite() -> DataError:
    """The error of a training that has exploded."""
    return DataError(
        "training stopped before its update: a loss or gradient is not finite; lower training.learning_rate, "
        "or check the images that this site ingested"
    )


def clipped(gradient_D: Tensor, limit: float | None) -> tuple[Tensor, Tensor]:
    """The gradient with its L2 norm cut to `limit`, and the norm it had."""
    norm = torch.linalg.vector_norm(gradient_D)
    return (gradient_D if limit is None else gradient_D * _scale(norm, limit)), norm


def _scale(norm: Tensor, limit: float | None) -> Tensor:
    return torch.ones_like(norm) if limit is None else (limit / (norm + 1e-6)).clamp(max=1.0)


def enhancer_optimiser(network: nn.Module, campaign: CampaignConfig) -> Optimiser | Split:
    """Split where somebody asks what recognition added: the federated gate, or a momentum that rests with the gate."""
    training = campaign.training
    if campaign.strategy.promotion == "none" and training.adam_states == "one":
        return make_optimiser(network, campaign)
    return Split(
        trained(network),
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adaptive=training.optimiser == "adam",
        rests=training.adam_states == "two",
    )


def make_optimiser(network: nn.Module, campaign: CampaignConfig) -> Optimiser:
    """AdamW, or SGD without momentum: the step for which <d, g> >= |g|^2 is a guarantee, not a tendency."""
    training = campaign.training
    kind = AdamW if training.optimiser == "adam" else SGD
    return kind(trained(network), learning_rate=training.learning_rate, weight_decay=training.weight_decay)


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def flat(tensors: list[Tensor] | list[nn.Parameter] | tuple[Tensor, ...]) -> Tensor:
    """All values in one vector, each tensor row by row whatever its memory format; of nothing, an empty one."""
    if not tensors:
        return torch.zeros(0)
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def assign(parameters: list[nn.Parameter], gradient_D: Tensor) -> None:
    """Each parameter's `.grad`, out of all of them in one vector."""
    parts = torch.split(gradient_D, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        of_shape = part.view(parameter.shape)
        # Fused optimisers walk weight and gradient in memory order: both must have the same strides.
        same = of_shape.stride() == parameter.stride()
        parameter.grad = of_shape if same else torch.empty_like(parameter).copy_(of_shape)
