"""Decoders against torch.distributions, enumeration and the frequencies of their samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal

from dgm_course.nets import MLP, MaskedMLP, PixelCNN, PixelCNNAdapter, WindowDecoderNet, member
from dgm_course.vae import (
    AutoregressiveDecoder,
    BernoulliDecoder,
    CategoricalDecoder,
    Decoder,
    GaussianDecoder,
)

F64 = torch.float64


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def everything(m: int, levels: int) -> Tensor:
    """All levels ** m pictures."""
    return torch.tensor(list(itertools.product(range(levels), repeat=m)), dtype=F64)


def autoregressive(name: str, generator: torch.Generator) -> AutoregressiveDecoder:
    """A decoder of each kind, for at most nine pixels and z of size 2."""
    make = {"generator": generator}
    nets: dict[str, Callable[[], tuple[nn.Module, int]]] = {
        "masked mlp": lambda: (MaskedMLP(5, 10, context=2, **make), 2),
        "masked mlp, window 2": lambda: (MaskedMLP(5, (10, 7), window=2, context=2, **make), 2),
        "two outputs": lambda: (MaskedMLP(5, 10, 2, context=2, **make), 2),
        "three levels": lambda: (MaskedMLP(4, 8, 3, context=2, **make), 3),
        "window decoder": lambda: (WindowDecoderNet(3, 2, window=1, **make), 2),
        "pixel cnn": lambda: (
            PixelCNNAdapter(PixelCNN(1, 4, 1, receptive_field=2, context=2, generator=generator), side=3), 2
        ),
    }
    net, levels = nets[name]()
    return AutoregressiveDecoder(net, levels).double()


KINDS = ["masked mlp", "masked mlp, window 2", "two outputs", "three levels", "window decoder", "pixel cnn"]


@pytest.mark.parametrize("name", KINDS)
def test_autoregressive_probabilities_sum_to_one(name: str, generator: torch.Generator) -> None:
    decoder = autoregressive(name, generator)
    x = everything(decoder.net.num_inputs, decoder.num_levels)
    log_p = decoder.log_prob(x, 2.0 * randn(4, 1, 2))  # (4, all)
    assert log_p.shape == (4, len(x))
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(4, dtype=F64), rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_autoregressive_samples_have_the_model_s_frequencies(
    name: str, generator: torch.Generator
) -> None:
    decoder = autoregressive(name, generator)
    n = 6000
    x = decoder.sample(torch.tensor([[1.0, -0.5]], dtype=F64).expand(n, 2), generator)
    every = everything(decoder.net.num_inputs, decoder.num_levels)
    p = decoder.log_prob(every, torch.tensor([1.0, -0.5], dtype=F64)).exp().detach()
    for j in range(every.shape[1]):
        for k in range(j + 1):  # every second moment: E[x_j x_k]
            product = every[:, j] * every[:, k]
            mean = float((p * product).sum())
            std = math.sqrt(float((p * product**2).sum()) - mean**2)
            assert abs(float((x[:, j] * x[:, k]).mean()) - mean) < 5 * std / math.sqrt(n)


def test_decoders_equal_torch_distributions(generator: torch.Generator) -> None:
    z, net = randn(7, 3), MLP([3, 8, 12], generator=generator).double()
    out = net(z)
    x = (randn(7, 12, seed=2) > 0).double()
    decoder: Decoder = BernoulliDecoder(net)
    torch.testing.assert_close(decoder.log_prob(x, z), Bernoulli(logits=out).log_prob(x).sum(-1))
    torch.testing.assert_close(decoder.mean(z), Bernoulli(logits=out).mean)

    x = randn(7, 12, seed=3)
    decoder = GaussianDecoder(net, log_var=-0.7)
    peer = Normal(out, math.exp(-0.35))
    torch.testing.assert_close(decoder.log_prob(x, z), peer.log_prob(x).sum(-1))
    torch.testing.assert_close(decoder.mean(z), out)

    x = torch.randint(0, 4, (7, 3), generator=generator)
    decoder = CategoricalDecoder(net, 4)
    peer = Categorical(logits=out.reshape(7, 3, 4))
    for levels in (x, x.double()):
        torch.testing.assert_close(decoder.log_prob(levels, z), peer.log_prob(x).sum(-1))
    torch.testing.assert_close(decoder.mean(z), (peer.probs * torch.arange(4)).sum(-1))


def test_samples_of_the_factorised_decoders_have_their_means(generator: torch.Generator) -> None:
    net = MLP([2, 4, 6], generator=generator).double()
    z = torch.tensor([[0.5, -1.0]], dtype=F64).expand(20_000, 2)
    for decoder in (BernoulliDecoder(net), GaussianDecoder(net, 0.5), CategoricalDecoder(net, 3)):
        x = decoder.sample(z, generator)
        assert x.shape == (20_000, 2 if isinstance(decoder, CategoricalDecoder) else 6)
        assert ((x.mean(0) - decoder.mean(z[0])).abs() < 5 * x.std(0) / math.sqrt(len(x))).all()
    assert torch.equal(CategoricalDecoder(net, 3).sample(z[:50]) % 1, torch.zeros(50, 2, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extreme_logits_give_finite_likelihoods_and_gradients(dtype: torch.dtype) -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4, 90.0, -90.0], dtype=dtype, requires_grad=True)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], dtype=dtype)
    decoder = BernoulliDecoder(nn.Identity())
    log_p = decoder.log_prob(x, logits)
    log_p.backward()
    assert float(log_p.detach()) == -20_180.0
    assert logits.grad.tolist() == [0.0, 0.0, -1.0, 1.0, -1.0, 1.0]
    wide = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype)
    assert float(CategoricalDecoder(nn.Identity(), 3).log_prob(torch.zeros(1, 1), wide)) == -2e4


def test_learned_noise_variance_is_a_parameter_for_each_member(generator: torch.Generator) -> None:
    decoder = GaussianDecoder(MLP([2, 5], members=3, generator=generator), "learned").double()
    with torch.no_grad():
        decoder.log_var.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    x, z = randn(4, 5), randn(3, 6, 4, 2)
    log_p = decoder.log_prob(x, z)  # (3, 6, 4)
    for e in range(3):
        torch.testing.assert_close(log_p[e], member(decoder, e).log_prob(x, z[e]))
    log_p.sum().backward()
    assert decoder.log_var.grad.shape == (3,)
    assert not list(GaussianDecoder(nn.Identity(), 0.3).parameters())


def bernoulli(x: list[list[float]], num_pixels: int) -> Tensor:
    return BernoulliDecoder(nn.Identity()).log_prob(torch.tensor(x), torch.zeros(1, num_pixels))


def categorical(x: list[float], num_levels: int, num_logits: int) -> Tensor:
    return CategoricalDecoder(nn.Identity(), num_levels).log_prob(torch.tensor(x), torch.zeros(num_logits))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bernoulli([[2.0]], 1), "0, 1"),
        (lambda: bernoulli([[0.0, -0.5]], 2), "0, 1"),
        (lambda: bernoulli([[0.0, 0.0]], 3), "entries"),
        (lambda: GaussianDecoder(nn.Identity(), "fixed"), "learned"),
        (lambda: CategoricalDecoder(nn.Identity(), 1), "num_levels"),
        (lambda: categorical([0.0, 0.0], 3, 7), "multiple"),
        (lambda: categorical([0.5], 2, 2), "levels"),
        (lambda: categorical([2.0], 2, 2), "levels"),
        (lambda: categorical([-1.0], 2, 2), "levels"),
        (
            lambda: AutoregressiveDecoder(MaskedMLP(3, 3, context=1), 4).sample(torch.zeros(2, 1)),
            "outputs a pixel",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
