"""A small VAE with each kind of posterior flow: five pixels, two latents, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from prior_zoo import F64, PICTURES, seeded
from small_vaes import small_vae
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from dgm_course import flows
from dgm_course.nets import MLP
from dgm_course.vae import FlowPosteriorVAE

CONTEXT = 3
Make = Callable[[int, "int | None", torch.Generator], flows.Transform]


def bumps(kind: Callable[..., flows.Transform], *arguments: int) -> Make:
    """Two layers that know neither context nor members: a stack shares them."""
    return lambda c, e, g: flows.Compose([kind(2, *arguments, generator=g) for _ in range(2)])


def autoregressive(kind: str) -> Make:
    return lambda c, e, g: flows.autoregressive_transform(
        kind, 2, num_layers=2, hidden=[8], context=c, members=e, generator=g
    )


def coupling(c: int, e: int | None, g: torch.Generator) -> flows.Transform:
    return flows.realnvp_transform(2, num_layers=2, hidden=[8], context=c, members=e, generator=g)


def linear(c: int, e: int | None, g: torch.Generator) -> flows.Transform:
    return flows.InvertibleConv1x1(2, event_dims=1, generator=g)


FLOWS: dict[str, Make] = {
    "planar": bumps(flows.PlanarFlow),
    "radial": bumps(flows.RadialFlow),
    "Sylvester": bumps(flows.SylvesterFlow, 2),
    "linear": linear,
    "coupling": coupling,
    "IAF": autoregressive("iaf"),
    "MAF": autoregressive("maf"),
}
#: how far parameters are moved off their initial values: enough to see, and for a grid to see it all
SPREAD = {"planar": 0.8, "radial": 0.8, "Sylvester": 0.3}
CONDITIONAL = ["coupling", "IAF", "MAF"]
#: kind and size of the context: 0 is one flow shared by all x
KINDS = [(name, 0) for name in FLOWS] + [(name, CONTEXT) for name in CONDITIONAL]
every = pytest.mark.parametrize(("name", "context_dim"), KINDS, ids=[f"{n}, {c}" for n, c in KINDS])


def build(
    name: str,
    context_dim: int = 0,
    members: int | None = None,
    kind: str = "bernoulli",
    prior: nn.Module | None = None,
    seed: int = 0,
) -> FlowPosteriorVAE:
    """Its parameters off their initial values: no flow is the identity, no context unread."""
    generator = seeded(seed)
    decoder = small_vae(generator, members, kind=kind).decoder
    encoder = MLP([5, 8, 4 + context_dim], members=members, generator=generator).double()
    flow = FLOWS[name](context_dim, members, generator).double()
    with torch.no_grad():
        for part, spread in ((flow, SPREAD.get(name, 0.1)), (encoder, 0.1)):
            for parameter in part.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, dtype=F64, generator=generator))
    return FlowPosteriorVAE(encoder, decoder, 2, flow, context_dim=context_dim, prior=prior)


def pictures(members: int | None = None, seed: int = 0) -> Tensor:
    """Some of them: ``(4, 5)``, or ``(E, 4, 5)``."""
    stack = () if members is None else (members,)
    return PICTURES[torch.randint(32, (*stack, 4), generator=seeded(seed))]


def q_of(mean: Tensor, log_var: Tensor) -> Independent:
    return Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)


def by_hand(
    vae: FlowPosteriorVAE, x: Tensor, num_samples: int, seed: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """z_0, z_K ``(S, B, d)`` and ``log q(z_K|x) (S, B)`` of an un-stacked model, the log-det by autograd."""
    parameters = vae.encoder(x)
    mean, log_var, context = parameters[..., :2], parameters[..., 2:4], parameters[..., 4:]
    eps = torch.randn(num_samples, *mean.shape, dtype=F64, generator=seeded(seed))
    z0 = (mean + torch.exp(0.5 * log_var) * eps).detach().requires_grad_()
    z, _ = vae.flow(z0, context.expand(num_samples, *context.shape) if context.shape[-1] else None)
    rows = [torch.autograd.grad(z[..., j].sum(), z0, retain_graph=True)[0] for j in range(2)]
    log_det = torch.linalg.slogdet(torch.stack(rows, -2)).logabsdet
    return z0.detach(), z.detach(), q_of(mean, log_var).log_prob(z0.detach()) - log_det
