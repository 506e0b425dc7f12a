"""Lecture 05: S4 (the optimal prior, and held-out data), S5 (a finding), S6 (which flow can be a prior)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from flow_zoo import Counting
from ledger import proves
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dgm_course.divergences import kl_divergence
from dgm_course.flows import InverseAutoregressiveFlow, solve_sequentially
from dgm_course.numerics import gauss_legendre
from dgm_course.priors import (
    AggregatedPosterior,
    FlowPrior,
    MixturePrior,
    Prior,
    StandardNormalPrior,
    VampPrior,
    cross_entropy,
)
from dgm_course.surgery import Estimate, elbo_surgery, marginal_kl
from dgm_course.train import fit
from dgm_course.vae import VAE, BernoulliDecoder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# S4 -------------------------------------------------------------------------------------------------------

NODES, WEIGHTS = gauss_legendre(-14.0, 14.0, 1600)


class Points(nn.Module):
    """An encoder of numbers: q(z|x) = N(x, width(x)^2) on the line, wider away from the origin."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -3.0 + 0.3 * x.square().clamp(max=4.0)], dim=-1)


class Logits(nn.Module):
    """A decoder of one bit."""

    def forward(self, z: Tensor) -> Tensor:
        return 2.0 * z - 0.5


def log_aggregated(mean: Tensor, log_var: Tensor) -> Tensor:
    """log q_agg at the nodes, by PyTorch's own mixture."""
    parts = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)
    uniform = Categorical(torch.ones(len(mean), dtype=mean.dtype))
    return MixtureSameFamily(uniform, parts).log_prob(NODES)


def mean_elbo(prior: Prior | None, x: Tensor) -> Tensor:
    """The exact ELBO, averaged over data, of one frozen encoder and decoder under a prior."""
    vae = VAE(Points(), BernoulliDecoder(Logits()), latent_dim=1, prior=prior)
    bits = (x > 0).double()
    mean, log_var = vae.encode(x)
    nodes, weights = gauss_legendre(-9.0, 9.0, 400)  # in units of each posterior's width
    z = mean + torch.exp(0.5 * log_var) * nodes[:, None]  # (N, B, 1)
    log_q = Normal(mean, torch.exp(0.5 * log_var)).log_prob(z).squeeze(-1)
    mass = weights[:, None] * torch.exp(log_q + 0.5 * log_var.squeeze(-1))
    values = vae.prior_log_prob(z) + vae.decoder.log_prob(bits, z) - log_q
    return (mass * values).sum(0).mean()


def held_out_gain(train: Tensor, test: Tensor) -> Tensor:
    """KL(q_test || p) - KL(q_test || q_agg), by quadrature on the line."""
    log_train, log_test = (log_aggregated(*Points()(x).chunk(2, -1)) for x in (train, test))
    log_prior = Normal(0.0, 1.0).log_prob(NODES.squeeze(-1))
    return kl_divergence(log_test, log_prior, WEIGHTS) - kl_divergence(log_test, log_train, WEIGHTS)


def held_out_gain_taken_from_training(train: Tensor, test: Tensor) -> Tensor:
    return held_out_gain(train, train)


#: two heaps of training data; held-out data like them, and held-out data in the hole between them
HEAPS = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
TRAIN = HEAPS.repeat(6, 1) + 0.4 * draw(12, 1)
HELD_OUT = {"alike": HEAPS.repeat(4, 1) + 0.4 * draw(8, 1, seed=1), "in the hole": 0.3 * draw(8, 1, seed=2)}


def test_replacing_the_prior_gains_the_marginal_kl_on_training_data() -> None:
    mean, log_var = Points()(TRAIN).chunk(2, -1)
    gain = mean_elbo(AggregatedPosterior(mean, log_var), TRAIN) - mean_elbo(None, TRAIN)
    log_prior = Normal(0.0, 1.0).log_prob(NODES.squeeze(-1))
    exact = kl_divergence(log_aggregated(mean, log_var), log_prior, WEIGHTS)
    torch.testing.assert_close(gain, exact, rtol=0, atol=1e-8)
    assert exact > 0.01


@pytest.mark.parametrize("kind", HELD_OUT)
@proves(
    "S4", right=held_out_gain,
    wrong={"held_out_gain_taken_from_training": held_out_gain_taken_from_training},
)  # fmt: skip
def test_held_out_data_gain_something_else(variant: Callable[[Tensor, Tensor], Tensor], kind: str) -> None:
    test = HELD_OUT[kind]
    prior = AggregatedPosterior(*Points()(TRAIN).chunk(2, -1))
    change = mean_elbo(prior, test) - mean_elbo(None, test)
    torch.testing.assert_close(change, variant(TRAIN, test), rtol=0, atol=1e-8)


def test_the_held_out_gain_has_either_sign() -> None:
    gain = {kind: held_out_gain(TRAIN, test).item() for kind, test in HELD_OUT.items()}
    assert gain["in the hole"] < -0.1 < 0.1 < gain["alike"]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_prior_does_better_on_training_data(seed: int) -> None:
    """Priors around q_agg and far from it: every one has a smaller training ELBO."""
    mean, log_var = Points()(TRAIN).chunk(2, -1)
    best = mean_elbo(AggregatedPosterior(mean, log_var), TRAIN)
    for size in (0.1, 1.0):
        other = MixturePrior(len(TRAIN), 1, generator=seeded(seed)).double()
        with torch.no_grad():
            other.means.copy_(mean + size * draw(len(mean), 1, seed=seed))
            other.log_vars.copy_(log_var)
            other.logits.copy_(size * draw(len(mean), seed=seed + 10))
        assert mean_elbo(other, TRAIN) < best


def test_surgery_estimates_both_gains() -> None:
    """log q_agg - log p at training samples and, with ``components``, at held-out samples."""
    codes = Points()(TRAIN).chunk(2, -1)
    for test, components in ((TRAIN, None), (HELD_OUT["alike"], codes), (HELD_OUT["in the hole"], codes)):
        terms = elbo_surgery(
            *Points()(test).chunk(2, -1), components=components, num_samples=20_000, generator=seeded(3)
        )
        found = Estimate.of(terms.marginal_kl)
        assert (found.mean - held_out_gain(TRAIN, test)).abs() < 5 * found.standard_error


# S5, a finding --------------------------------------------------------------------------------------------


class FixedWidth(nn.Module):
    """q(z|u) = N(u, 0.15^2 I): the ledger's encoder."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.cat([u, torch.full_like(u, 2 * math.log(0.15))], dim=-1)


def fitted(prior: Prior, mean: Tensor, log_var: Tensor, steps: int = 600) -> Estimate:
    """Train a prior on frozen codes; the marginal KL that is left."""
    prior.double()
    fit(
        lambda step, generator: cross_entropy(prior, mean, log_var, generator=generator),
        prior.own_parameters(), steps=steps, lr=0.05, lr_decay_from=0.4, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        return marginal_kl(mean, log_var, prior.log_prob, num_samples=64, generator=seeded(9))


@pytest.mark.parametrize("seed", range(3))
def test_s5_few_pseudo_inputs_are_worse_than_the_standard_normal(seed: int) -> None:
    """200 codes of width .15 in the plane: a VampPrior needs enough pseudo-inputs, a mixture does not."""
    x = draw(200, 2, seed=seed)
    mean, log_var = FixedWidth()(x).chunk(2, -1)
    normal = marginal_kl(mean, log_var, num_samples=64, generator=seeded(9))
    vamp = {K: fitted(VampPrior(FixedWidth(), x[:K], 2), mean, log_var) for K in (10, 100)}
    others = [MixturePrior(10, 2, spread=0.1, generator=seeded(seed)),
              FlowPrior.realnvp(2, hidden=16, generator=seeded(seed)),
              FlowPrior.maf(2, hidden=16, generator=seeded(seed))]  # fmt: skip
    assert vamp[10].mean > 2 + normal.mean  # about 4 against about .2
    assert vamp[100].mean < normal.mean
    for prior in others:  # each contains N(0, I)
        left = fitted(prior, mean, log_var, steps=300)
        assert left.mean < normal.mean + 5 * normal.standard_error, type(prior).__name__


def test_s5_mixture_and_flows_contain_the_standard_normal() -> None:
    z = draw(50, 3)
    expected = StandardNormalPrior(3).log_prob(z)
    mixture = MixturePrior(7, 3, spread=0.0)
    for prior in (mixture, FlowPrior.realnvp(3), FlowPrior.maf(3), FlowPrior.iaf(3)):
        torch.testing.assert_close(prior.double().log_prob(z), expected, rtol=0, atol=1e-12)


# S6 -------------------------------------------------------------------------------------------------------


def stirred(prior: FlowPrior, seed: int = 0) -> FlowPrior:
    """The prior away from N(0, I), where it starts, its networks counting their passes."""
    prior.double()
    with torch.no_grad():
        for k, parameter in enumerate(prior.parameters()):
            parameter.add_(0.2 * draw(*parameter.shape, seed=seed + k))
    for layer in prior.flow.transform:
        if hasattr(layer, "net"):
            layer.net = Counting(layer.net)
    return prior


def passes(prior: FlowPrior) -> list[int]:
    """Network passes of each layer since the last call."""
    nets = [layer.net for layer in prior.flow.transform if hasattr(layer, "net")]
    counts = [net.passes for net in nets]
    for net in nets:
        net.passes = 0
    return counts


def test_passes_of_density_and_sampling() -> None:
    """MAF: one pass a layer for the density; IAF: one for a sample. The other way takes several."""
    z = draw(64, 6, seed=5)
    with torch.no_grad():
        maf, iaf = stirred(FlowPrior.maf(6, hidden=24)), stirred(FlowPrior.iaf(6, hidden=24))
        maf.log_prob(z)
        assert passes(maf) == [1, 1]
        iaf.sample(64, seeded())
        assert passes(iaf) == [1, 1]
        iaf.log_prob(z)
        assert min(passes(iaf)) > 1
        maf.sample(64, seeded())
        assert min(passes(maf)) > 1


@pytest.mark.parametrize("dim", [3, 8])
def test_the_textbook_takes_d_passes(dim: int) -> None:
    prior = stirred(FlowPrior.iaf(dim, num_layers=1, hidden=24))
    layer = prior.flow.transform[0]
    with torch.no_grad():
        noise, _ = solve_sequentially(layer.net, layer.step, draw(4, dim))
        assert passes(prior) == [dim + 1]
        torch.testing.assert_close(noise, layer.inverse(draw(4, dim))[0], rtol=0, atol=1e-10)


Density = Callable[[InverseAutoregressiveFlow, Tensor], Tensor]


def iaf_density(layer: InverseAutoregressiveFlow, x: Tensor) -> Tensor:
    noise, log_det = layer.inverse(x)
    return Normal(0.0, 1.0).log_prob(noise).sum(-1) + log_det


def iaf_density_in_one_pass(layer: InverseAutoregressiveFlow, x: Tensor) -> Tensor:
    """The network read at x, where it wants the noise."""
    shift, log_scale = layer.parameters_at(x)
    noise = (x - shift) * torch.exp(-log_scale)
    return Normal(0.0, 1.0).log_prob(noise).sum(-1) - log_scale.sum(-1)


@proves("S6", right=iaf_density, wrong={"iaf_density_in_one_pass": iaf_density_in_one_pass})
def test_an_iaf_has_no_density_in_one_pass(variant: Density) -> None:
    """Samples know their density from the sampling direction; the density of x has to find the noise."""
    prior = stirred(FlowPrior.iaf(5, num_layers=1, hidden=24))
    layer = prior.flow.transform[0]
    with torch.no_grad():
        x, log_prob = prior.flow.rsample_with_log_prob(200, generator=seeded(7))
        torch.testing.assert_close(variant(layer, x), log_prob, rtol=0, atol=1e-10)
        torch.testing.assert_close(prior.log_prob(x), log_prob, rtol=0, atol=1e-10)


def test_both_priors_are_the_same_densities() -> None:
    """Nothing but speed tells them apart: an IAF prior's density is differentiable, and trains."""
    mean, log_var = draw(60, 2) * 0.5 + 2.0, torch.full((60, 2), -3.0, dtype=torch.float64)
    for prior in (FlowPrior.maf(2, hidden=8), FlowPrior.iaf(2, hidden=8)):
        before = marginal_kl(mean, log_var, num_samples=64, generator=seeded(9))
        after = fitted(prior, mean, log_var, steps=100)
        assert after.mean < before.mean - 1.0
