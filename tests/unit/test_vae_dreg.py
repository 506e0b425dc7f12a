"""vae.dreg_loss: the value of the bound, the plain gradient for the decoder, DReG for the encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from dgm_course.bounds import iwae_bound
from dgm_course.nets import MLP
from dgm_course.vae import VAE, BernoulliDecoder, dreg_loss

F64 = torch.float64
X = torch.bernoulli(torch.full((4, 6), 0.4, dtype=F64), generator=torch.Generator().manual_seed(1))


def small_vae(members: int | None = None) -> VAE:
    make = {"members": members, "generator": torch.Generator().manual_seed(2)}
    return VAE(MLP([6, 8, 4], **make), BernoulliDecoder(MLP([2, 7, 6], **make)), latent_dim=2).double()


def gradients(loss: Tensor, vae: VAE) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(vae.parameters())))


def by_hand(vae: VAE, num_samples: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Value, encoder's and decoder's gradients from two separate surrogates, as in Tucker et al."""
    mean, log_var = vae.encode(X)
    eps = torch.randn(num_samples, *mean.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
    z = mean + torch.exp(0.5 * log_var) * eps  # (K, B, d)

    def log_w(z: Tensor, q: Normal) -> Tensor:
        prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        likelihood = Bernoulli(logits=vae.decoder.net(z)).log_prob(X).sum(-1)
        return prior + likelihood - q.log_prob(z).sum(-1)

    fixed = Normal(mean.detach(), torch.exp(0.5 * log_var.detach()))
    path, still = log_w(z, fixed), log_w(z.detach(), fixed)
    weights = torch.softmax(still.detach(), 0)
    encoder = torch.autograd.grad(-(weights**2 * path).sum(0).mean(), list(vae.encoder.parameters()))
    decoder = torch.autograd.grad(-(weights * still).sum(0).mean(), list(vae.decoder.parameters()))
    return -torch.logsumexp(still, 0).mean() + torch.tensor(float(num_samples)).log(), encoder, decoder


@pytest.mark.parametrize("num_samples", [1, 5])
def test_value_and_gradients_equal_two_surrogates(num_samples: int) -> None:
    vae = small_vae()
    loss = dreg_loss(vae, X, num_samples=num_samples, generator=torch.Generator().manual_seed(3))
    value, encoder, decoder = by_hand(vae, num_samples)
    assert loss.item() == pytest.approx(value.item(), rel=1e-7)
    for found, expected in zip(gradients(loss, vae), [*encoder, *decoder], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_mean_is_the_plain_gradients() -> None:
    """600 paired draws, K = 4: each entry's difference within 5 standard errors; the encoder's is quieter."""
    vae, rows = small_vae(), {"plain": [], "dreg": []}
    for seed in range(600):
        draw = {"num_samples": 4, "generator": torch.Generator().manual_seed(seed)}
        plain = -iwae_bound(vae.log_weights(X, **draw)).mean()
        draw["generator"] = torch.Generator().manual_seed(seed)
        for name, loss in (("plain", plain), ("dreg", dreg_loss(vae, X, **draw))):
            rows[name].append(torch.cat([g.flatten() for g in gradients(loss, vae)]))
    difference = torch.stack(rows["dreg"]) - torch.stack(rows["plain"])
    error = difference.std(0) / 600**0.5
    assert (difference.mean(0).abs() <= 5 * error + 1e-12).all()
    size = sum(p.numel() for p in vae.encoder.parameters())
    quiet, loud = (torch.stack(rows[name])[:, :size].std(0).norm() for name in ("dreg", "plain"))
    assert quiet < 0.8 * loud


def test_members_learn_as_alone_and_nothing_is_needed_without_gradients() -> None:
    vae = small_vae(members=3)
    loss = dreg_loss(vae, X, num_samples=5, generator=torch.Generator().manual_seed(4))
    assert loss.shape == (3,)
    gradient = gradients(loss[1], vae)
    assert all((g[0] == 0).all() and (g[2] == 0).all() and g[1].any() for g in gradient)
    with torch.no_grad():
        again = dreg_loss(vae, X, num_samples=5, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(again, loss.detach())
