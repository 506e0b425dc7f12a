"""Ledger C6 (a strong decoder makes z useless), C7 (annealing, a finding) and C8 (free bits)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from ledger import proves
from torch import Tensor, nn

from dgm_course.data import entropy, enumerable_binary
from dgm_course.gaussian import gaussian_kl, gaussian_kl_per_dim
from dgm_course.linear_vae import LinearVAE, expected_kl_per_dim, expected_log_likelihood, random_linear_vae
from dgm_course.nets import MLP, MaskedMLP
from dgm_course.train import fit_many
from dgm_course.vae import (
    VAE,
    AutoregressiveDecoder,
    free_bits_kl,
    kl_weight,
    quadrature_elbo,
    quadrature_log_prob,
    vae_loss,
)

F64 = torch.float64
NUM_BITS = 8
FULL_PAST, NO_PAST = None, 0


class TrueConditionals(nn.Module):
    """The decoder p(x_j | window) = pi(x_j | window), by summing the table of pi; it does not look at z."""

    def __init__(self, x: Tensor, log_prob: Tensor, window: int | None) -> None:
        super().__init__()
        self.table, self.prob = x, log_prob.exp()
        self.window = x.shape[1] if window is None else window
        self.num_inputs = x.shape[1]

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        logits = []
        for j in range(self.num_inputs):
            seen = slice(max(0, j - self.window), j)
            same = (x[:, None, seen] == self.table[None, :, seen]).all(-1)  # (B, 2^m)
            one = (same * self.prob * self.table[:, j]).sum(-1)
            logits.append(torch.log(one) - torch.log((same * self.prob).sum(-1) - one))
        batch = torch.broadcast_shapes(x.shape[:-1], z.shape[:-1])
        return torch.stack(logits, -1).expand(*batch, -1).unsqueeze(-1)


class FixedEncoder(nn.Module):
    """q(z|x) = N(mean, exp(log_var)), the same for all x."""

    def __init__(self, mean: float, log_var: float) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.tensor([mean, log_var], dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.q.expand(*x.shape[:-1], 2)


@proves("C6", right=FULL_PAST, wrong={"decoder_without_the_past": NO_PAST})
def test_c6_a_decoder_with_the_past_reaches_minus_the_entropy_without_z(variant: int | None) -> None:
    """max ELBO = -H(pi), attained at KL = 0; any other Gaussian q pays its KL and gains nothing."""
    x, log_prob = enumerable_binary(NUM_BITS, dtype=F64)
    decoder = AutoregressiveDecoder(TrueConditionals(x, log_prob, variant))
    for mean, log_var in ((0.0, 0.0), (0.3, -0.2), (-2.0, 0.5), (0.0, -4.0)):
        vae = VAE(FixedEncoder(mean, log_var), decoder, latent_dim=1)
        terms = quadrature_elbo(vae, x, 8)
        elbo = float((log_prob.exp() * terms.elbo).sum().detach())
        kl = float(gaussian_kl(torch.tensor([mean], dtype=F64), torch.tensor([log_var], dtype=F64)))
        assert abs(elbo - (-float(entropy(log_prob)) - kl)) < 1e-12


def enumerated_vae(window: int | None | list[int | None], members: int, seed: int) -> VAE:
    """The enumerable model of Ledger C6 and C7: one latent, 8 bits, a decoder that reads a window of them."""
    make = {"members": members, "activation": torch.tanh, "generator": torch.Generator().manual_seed(seed)}
    decoder = AutoregressiveDecoder(MaskedMLP(NUM_BITS, 16, window=window, context=1, **make))
    return VAE(MLP([NUM_BITS, 16, 2], **make), decoder, latent_dim=1)


def averages(vae: VAE, x: Tensor, prob: Tensor, num_nodes: int = 64) -> tuple[Tensor, Tensor]:
    """Exact ELBO and KL of every member, averaged over pi in float64: (E,), (E,)."""
    precise = vae.to(F64)
    with torch.no_grad():
        terms = quadrature_elbo(precise, x.to(F64), num_nodes)
    return (prob * terms.elbo).sum(-1), (prob * terms.kl).sum(-1)


@proves("C6", right=FULL_PAST, wrong={"decoder_without_the_past": NO_PAST})
def test_c6_training_finds_the_collapsed_optimum(variant: int | None) -> None:
    """ELBO <= -H(pi) all along; at the end it is reached within 1e-3 nats, with KL below 0.1."""
    x, log_prob = enumerable_binary(NUM_BITS, dtype=F64)
    prob, bound = log_prob.exp(), -float(entropy(log_prob))
    vae = enumerated_vae(variant, members=2, seed=0).to(F64)
    seen = [averages(vae, x, prob)[0]]

    def look(step: int, loss: Tensor) -> None:
        if step % 100 == 99:
            seen.append(averages(vae, x, prob)[0])

    # A fixed rule would be played upon: the decoder hides steep steps between its nodes. So the rule changes.
    fit_many(
        lambda step, generator: vae_loss(quadrature_elbo(vae, x, 5 + step % 4), weights=prob),
        vae.parameters(), steps=1200, lr=0.05, lr_decay_from=0.3, callbacks=[look], progress=False,
    )  # fmt: skip
    elbo, kl = averages(vae, x, prob)
    log_p = quadrature_log_prob(vae, x, 128).detach()
    assert (torch.stack(seen) <= bound + 1e-9).all()
    assert (elbo <= (prob * log_p).sum(-1) + 1e-9).all()
    assert (bound - elbo < 1e-3).all(), (bound - elbo).tolist()
    assert (kl < 0.1).all(), kl.tolist()


def test_c7_finding_annealing_keeps_the_kl_and_costs_elbo() -> None:
    """C7: a window of 5 bits, small initial weights, 700 steps; beta rises over the first 350 or is 1.

    Over five seeds the annealed KL ends far above the plain one, and the annealed ELBO (the same final
    objective) below the plain one. The control: plain training with a tenth of the learning rate also ends
    with a higher KL. Directions only; the lecture shows the numbers.
    """
    x, log_prob = enumerable_binary(NUM_BITS)
    prob = log_prob.double().exp()

    def train(annealed: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        vae = enumerated_vae(5, members=len(annealed), seed=0)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.mul_(0.3)
        weights = log_prob.exp()

        def loss(step: int, generator: torch.Generator) -> Tensor:
            beta = torch.where(annealed, kl_weight(step, 350), 1.0)  # (E,)
            return vae_loss(quadrature_elbo(vae, x, 5 + step % 4), beta=beta, weights=weights)

        fit_many(loss, vae.parameters(), steps=700, lr=lr, lr_decay_from=0.3, progress=False)
        return averages(vae, x, prob)

    elbo, kl = train(torch.tensor([False] * 5 + [True] * 5), lr=0.03)
    _, slower_kl = train(torch.tensor([False] * 5), lr=0.003)
    assert kl[5:].min() > kl[:5].max() + 0.5
    assert elbo[5:].max() < elbo[:5].min()
    assert slower_kl.min() > kl[:5].max()


def clamp_per_sample(kl_per_dim: Tensor, free_nats: float) -> Tensor:
    """Wrong: the maximum of each sample's KL, then the batch mean."""
    return kl_per_dim.clamp(min=free_nats).mean(-2).sum(-1)


def min_instead_of_max(kl_per_dim: Tensor, free_nats: float) -> Tensor:
    """Wrong: the slide's "less than lambda": sum_j min(lambda, mean KL_j)."""
    return kl_per_dim.mean(-2).clamp(max=free_nats).sum(-1)


WRONG = {"clamp_per_sample": clamp_per_sample, "min_instead_of_max": min_instead_of_max}
FreeBits = Callable[[Tensor, float], Tensor]


@proves("C8", right=free_bits_kl, wrong=WRONG)
def test_c8_below_lambda_the_kl_term_has_no_gradient(variant: FreeBits, generator: torch.Generator) -> None:
    """The term is sum_j max(lambda, mean KL_j): gradient 0 where the mean is below lambda, else full."""
    mean = torch.randn(64, 3, dtype=F64, generator=generator) * torch.tensor([0.3, 0.6, 2.0], dtype=F64)
    log_var = 0.2 * torch.randn(64, 3, dtype=F64, generator=generator)
    mean.requires_grad_(), log_var.requires_grad_()
    kl = gaussian_kl_per_dim(mean, log_var)
    batch = kl.detach().mean(0).tolist()
    assert max(batch[:2]) < 0.5 < batch[2]
    assert float(kl.detach()[:, 1].max()) > 0.5  # single samples of the second dimension are above
    loss = variant(kl, 0.5)
    assert math.isclose(float(loss.detach()), 0.5 + 0.5 + batch[2], rel_tol=1e-12)
    plain = torch.autograd.grad(kl.mean(0).sum(), [mean, log_var], retain_graph=True)
    for free, full in zip(torch.autograd.grad(loss, [mean, log_var]), plain, strict=True):
        assert torch.equal(free[:, :2], torch.zeros(64, 2, dtype=F64))
        torch.testing.assert_close(free[:, 2], full[:, 2])


@proves("C8", right=free_bits_kl, wrong=WRONG)
def test_c8_one_latent_settles_at_the_larger_of_lambda_and_its_kl(variant: FreeBits) -> None:
    """d = 1, sigma2 = 1: trained KL* = max(lambda_free, 1/2 log(lambda_1 / sigma2)), to 2e-3 nats.

    Pairs (lambda_1, lambda_free) with the data's KL above and below lambda_free, and a direction that would
    collapse without free bits (lambda_1 < sigma2): two starts each, trained at once.
    """
    pairs = [(5.0, 0.3), (5.0, 1.2), (0.5, 0.4), (1.5, 0.1)] * 2
    eigenvalue = torch.tensor([a for a, _ in pairs], dtype=F64).reshape(-1, 1, 1)  # (8, 1, 1)
    x = torch.linspace(-1.0, 1.0, 41, dtype=F64).unsqueeze(-1)
    x = x / x.std(correction=0) * eigenvalue.sqrt()  # (8, 41, 1), covariance (weight 1/n) = eigenvalue
    vae = random_linear_vae(1, 1, leading=(8,), scale=0.5, generator=torch.Generator().manual_seed(0))

    def kl_per_dim() -> Tensor:
        return gaussian_kl_per_dim(x @ vae.V.mT, vae.log_var.unsqueeze(-2))  # (8, 41, 1)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        likelihood = expected_log_likelihood(vae.W, vae.V, vae.log_var, eigenvalue, 1.0)  # (8,)
        kl = [variant(kl, free_nats) for kl, (_, free_nats) in zip(kl_per_dim(), pairs, strict=True)]
        return torch.stack(kl) - likelihood

    fit_many(loss, vae, steps=1200, lr=0.02, lr_decay_from=0.3, progress=False)
    kl = kl_per_dim().detach().mean(-2).flatten()
    expected = torch.tensor([max(free, 0.5 * math.log(value)) for value, free in pairs], dtype=F64)
    torch.testing.assert_close(kl, expected, atol=2e-3, rtol=0)


SPECTRUM = torch.tensor([20.0, 5.0, 0.05, 0.02], dtype=F64)


def free_bits_objective(vae: LinearVAE, free_nats: float) -> Tensor:
    """The linear VAE's free-bits objective at sigma2 = 1, exactly: (E,) or scalar."""
    covariance = torch.diag(SPECTRUM)
    kl = expected_kl_per_dim(vae.V, vae.log_var, covariance)
    likelihood = expected_log_likelihood(vae.W, vae.V, vae.log_var, covariance, 1.0)
    return likelihood - free_bits_kl(kl.unsqueeze(-2), free_nats)


def test_c8_with_more_latents_the_free_nats_pile_onto_a_top_direction() -> None:
    """C8: eigenvalues 20, 5, .05, .02 and lambda = .5: KLs (1.50, .5, .5) beat the aligned (1.50, .80, .5).

    Two latents of .5 nats each share the second direction. Each is a channel of signal-to-noise ratio e - 1,
    so the two leave 5 / (1 + 2(e - 1)) of its variance, and cost 1 nat in place of 1.30.
    """
    constant = -2 * math.log(2 * math.pi)
    kl_1, kl_2 = 0.5 * math.log(20), 0.5 * math.log(5)
    aligned = constant - 0.5 * (1 + 1 + 0.05 / math.e + 0.02) - (kl_1 + kl_2 + 0.5)
    shared = constant - 0.5 * (1 + 5 / (1 + 2 * (math.e - 1)) + 0.05 + 0.02) - (kl_1 + 0.5 + 0.5)
    assert shared - aligned > 0.2

    vae = random_linear_vae(4, 3, leading=(16,), scale=0.5, generator=torch.Generator().manual_seed(0))
    fit_many(
        lambda step, generator: -free_bits_objective(vae, 0.5),
        vae, steps=3000, lr=0.02, lr_decay_from=0.3, progress=False,
    )  # fmt: skip
    objective = free_bits_objective(vae, 0.5).detach()
    best = int(objective.argmax())
    kl = expected_kl_per_dim(vae.V, vae.log_var, torch.diag(SPECTRUM))[best].detach()
    assert abs(float(objective[best]) - shared) < 1e-3
    expected = torch.tensor([kl_1, 0.5, 0.5], dtype=F64)
    torch.testing.assert_close(kl.sort(descending=True).values, expected, atol=2e-3, rtol=0)


def test_c8_a_kl_of_at_least_lambda_is_not_guaranteed() -> None:
    """C8: the collapsed linear VAE has KL 0 < lambda, and every gradient of its objective is 0."""
    W, V, log_var = (torch.zeros(s, dtype=F64, requires_grad=True) for s in ((4, 3), (3, 4), (3,)))
    vae = LinearVAE(W, V, log_var)
    gradients = torch.autograd.grad(free_bits_objective(vae, 0.5), vae)
    assert float(expected_kl_per_dim(V, log_var, torch.diag(SPECTRUM)).detach().abs().max()) == 0
    assert all(float(g.abs().max()) == 0 for g in gradients)
