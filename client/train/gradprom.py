"""GradProm: the recogniser steers the enhancer only where the two agree. One step, and its three comparators.

Zhang, Cheng. Generalized Task-Driven Medical Image Quality Enhancement with Gradient Promotion. TPAMI 2025.
https://arxiv.org/abs/2501.01114. The same rule for auxiliary losses: Du, Czarnecki et al. 2018,
https://arxiv.org/abs/1812.02224 (unweighted variant).

    theta, phi   weights of the enhancer and the recogniser
    g            g_D      gradient of the enhancement loss on theta
    v            v_D      gradient of the recognition loss on theta, through the enhanced image
    d            d_D      g + lambda v  if <g, v> > 0,  else g
    lambda       objective.task_weight; with objective.relative it is task_weight |g| / |v|

Both losses reach theta only through the enhanced image, so one enhancer forward, one recogniser backward and two
vector-Jacobian products give both gradients exactly; BatchNorm statistics and dropout masks are drawn once. The gate
is one bit for the whole of theta, and stays on the device.

    objective   steers the enhancer        trains the recogniser
    plain       g                          on the enhanced image, cut off from the enhancer
    joint       g + lambda v               on the enhanced image
    frozen      g + lambda v               no
    gradprom    d                          on the enhanced image

FedProx adds mu (theta - theta of the round) to g before the gate: the proximal pull is part of what the enhancer wants
and the task gradient must agree with both. Weight decay is decoupled and never part of g or v; clipping is of d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.train.optimiser import SGD, AdamW, Optimiser
from shared.batch import Batch
from shared.config import CampaignConfig, ObjectiveConfig
from shared.enhance.losses import enhancement_loss
from shared.errors import DataError
from shared.networks import Networks
from shared.recognise.losses import Labelled, recognition_loss


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Of one batch or a part of one; D runs over all weights of a network, flattened. None: not wanted."""

    enhance_D: Tensor
    task_D: Tensor | None
    recogniser_D: Tensor | None
    enhance_loss: Tensor
    recognise_loss: Tensor

    def __add__(self, other: Gradients) -> Gradients:
        return Gradients(
            self.enhance_D + other.enhance_D,
            None if self.task_D is None or other.task_D is None else self.task_D + other.task_D,
            None if self.recogniser_D is None or other.recogniser_D is None else self.recogniser_D + other.recogniser_D,
            self.enhance_loss + other.enhance_loss,
            self.recognise_loss + other.recognise_loss,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What part of a whole batch a micro batch is: losses are divided by the whole's counts, so that they add up."""

    images: float
    labelled: Labelled


@dataclass(frozen=True, slots=True, eq=False)
class Optimisers:
    """One Adam (or SGD) state per network; the enhancer's runs on d."""

    enhancer: Optimiser
    recogniser: Optimiser


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """FedProx: the weights that the round began with, flattened, and the pull back to them."""

    enhancer_D: Tensor
    recogniser_D: Tensor
    mu: float


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """What the enhancer follows; 0-dim tensors on the device beside it."""

    d_D: Tensor
    gate_open: Tensor
    cosine: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """0-dim tensors on the device: reading one waits for the step."""

    enhance_loss: Tensor
    recognise_loss: Tensor
    finite: Tensor
    gate_open: Tensor | None
    cosine: Tensor | None


def gradients(networks: Networks, part: Batch, share: Share, campaign: CampaignConfig) -> Gradients:
    """Both gradients on the enhancer and the recogniser's own, from a single pass through each network."""
    objective = campaign.objective
    theta, phi = trained(networks.enhancer), trained(networks.recogniser)
    enhanced_BCHW = networks.enhancer(part.degraded_BCHW)
    image_BCHW = enhanced_BCHW.detach().float().requires_grad_(True)  # cut here; both losses end at this image
    enhance_loss = share.images * enhancement_loss(image_BCHW, part.clean_BCHW, campaign.training.enhance_loss)
    (towards_clean_BCHW,) = torch.autograd.grad(enhance_loss, image_BCHW)

    steers, learns = objective.kind != "plain", objective.kind != "frozen"
    wanted = ([image_BCHW] if steers else []) + (phi if learns else [])
    recognition = networks.recogniser(image_BCHW if steers else image_BCHW.detach())
    recognise_loss = recognition_loss(recognition, part, objective, share.labelled)
    found = list(torch.autograd.grad(recognise_loss, wanted))
    towards_task_BCHW = found.pop(0) if steers else None

    cotangent = towards_clean_BCHW.to(enhanced_BCHW.dtype)
    g_D = vector_jacobian_D(cotangent, enhanced_BCHW, theta, keep_graph=steers)
    v_D = None
    if towards_task_BCHW is not None:
        v_D = vector_jacobian_D(towards_task_BCHW.to(enhanced_BCHW.dtype), enhanced_BCHW, theta)
    return Gradients(g_D, v_D, flat(found) if learns else None, enhance_loss.detach(), recognise_loss.detach())


def vector_jacobian_D(
    vector_BCHW: Tensor, output_BCHW: Tensor, theta: list[nn.Parameter], *, keep_graph: bool = False
) -> Tensor:
    """The gradient of <vector, output>, flattened: the same numbers as `grad_outputs=vector`, without loading sympy."""
    return flat(torch.autograd.grad((vector_BCHW * output_BCHW).sum(), theta, retain_graph=keep_graph))


def direction(g_D: Tensor, v_D: Tensor, objective: ObjectiveConfig) -> Direction:
    """d from g and v. A gradient that is not finite closes the gate, for NaN is not above 0."""
    dot, norm_g, norm_v = torch.dot(g_D, v_D), torch.linalg.vector_norm(g_D), torch.linalg.vector_norm(v_D)
    weight = torch.full_like(dot, objective.task_weight)
    if objective.relative:
        weight = torch.where(norm_v > 0, weight * norm_g / norm_v, 0.0)
    gate_open = dot > 0 if objective.kind == "gradprom" else torch.ones_like(dot, dtype=torch.bool)
    # where, not gate * weight * v: 0 * inf is NaN, and a closed gate must leave g to the bit.
    d_D = torch.where(gate_open, g_D + weight * v_D, g_D)
    return Direction(d_D, gate_open, dot / (norm_g * norm_v).clamp(min=torch.finfo(dot.dtype).tiny))


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

    With `check`, raises DataError before anything moves if a loss or gradient is not finite. The check waits for the
    device, so on a GPU the caller checks now and then, and always before weights leave.
    """
    theta, phi = trained(networks.enhancer), trained(networks.recogniser)
    g_D, r_D = found.enhance_D, found.recogniser_D
    if anchor is not None:
        g_D = g_D + anchor.mu * (flat(theta) - anchor.enhancer_D)
        r_D = None if r_D is None else r_D + anchor.mu * (flat(phi) - anchor.recogniser_D)
    steered = None if found.task_D is None else direction(g_D, found.task_D, campaign.objective)
    d_D, norm_d = clipped(g_D if steered is None else steered.d_D, campaign.training.clip_norm)
    finite = torch.isfinite(norm_d) & torch.isfinite(found.enhance_loss) & torch.isfinite(found.recognise_loss)
    if r_D is not None:
        r_D, norm_r = clipped(r_D, campaign.training.clip_norm)
        finite = finite & torch.isfinite(norm_r)
    if found.task_D is not None:
        # A closed gate hides a broken v from d, but the recogniser that made it is broken all the same.
        finite = finite & torch.isfinite(found.task_D).all()
    if check:
        require_finite(finite)
    _assign(theta, d_D)
    optimisers.enhancer.step()
    if r_D is not None:
        _assign(phi, r_D)
        optimisers.recogniser.step()
    return StepRecord(
        found.enhance_loss,
        found.recognise_loss,
        finite,
        None if steered is None else steered.gate_open,
        None if steered is None else steered.cosine,
    )


def require_finite(finite: Tensor) -> None:
    """Raises DataError where a loss or gradient of training was not finite."""
    if not bool(finite):
        raise DataError(
            "training stopped before its update: a loss or gradient is not finite; lower training.learning_rate, "
            "or check the images that this site ingested"
        )


def clipped(gradient_D: Tensor, limit: float | None) -> tuple[Tensor, Tensor]:
    """The gradient with its L2 norm cut to `limit`, and the norm it had."""
    norm = torch.linalg.vector_norm(gradient_D)
    if limit is None:
        return gradient_D, norm
    return gradient_D * (limit / (norm + 1e-6)).clamp(max=1.0), norm


def make_optimiser(network: nn.Module, campaign: CampaignConfig) -> Optimiser:
    """AdamW, or SGD without momentum: the step for which <d, g> >= |g|^2 is a guarantee, not a tendency."""
    training = campaign.training
    kind = AdamW if training.optimiser == "adam" else SGD
    return kind(trained(network), learning_rate=training.learning_rate, weight_decay=training.weight_decay)


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def flat(tensors: list[Tensor] | list[nn.Parameter] | tuple[Tensor, ...]) -> Tensor:
    """All values in one vector, each tensor row by row whatever its memory format."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _assign(parameters: list[nn.Parameter], gradient_D: Tensor) -> None:
    parts = torch.split(gradient_D, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        of_shape = part.view(parameter.shape)
        # Fused optimisers walk weight and gradient in memory order: both must have the same strides.
        same = of_shape.stride() == parameter.stride()
        parameter.grad = of_shape if same else torch.empty_like(parameter).copy_(of_shape)
