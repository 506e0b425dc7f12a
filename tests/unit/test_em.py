"""em: the mixture's density against torch.distributions; bad input. Its theorem is C2's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from dgm_course.em import GaussianMixture, gaussian_mixture_em_step


def mixture(leading: tuple[int, ...], k: int, m: int, generator: torch.Generator) -> GaussianMixture:
    def draw(*shape: int) -> Tensor:
        return torch.randn((*leading, *shape), generator=generator, dtype=torch.float64)

    root = draw(k, m, m)
    return GaussianMixture(
        draw(k).softmax(-1), draw(k, m), root @ root.mT + 0.2 * torch.eye(m, dtype=torch.float64)
    )


@pytest.mark.parametrize(("k", "m"), [(3, 2), (2, 1), (1, 4)])
def test_log_prob_and_responsibilities_equal_torch_distributions(
    k: int, m: int, generator: torch.Generator
) -> None:
    model = mixture((), k, m, generator)
    x = torch.randn(40, m, generator=generator, dtype=torch.float64)
    components = MultivariateNormal(model.means, model.covariances)
    theirs = MixtureSameFamily(Categorical(model.weights), components)
    torch.testing.assert_close(model.log_prob(x), theirs.log_prob(x), rtol=1e-12, atol=1e-12)
    step = gaussian_mixture_em_step(model, x)
    torch.testing.assert_close(step.log_prob, theirs.log_prob(x), rtol=1e-12, atol=1e-12)
    joint = components.log_prob(x.unsqueeze(1)) + model.weights.log()
    torch.testing.assert_close(step.responsibilities, joint.softmax(-1), rtol=1e-12, atol=1e-12)


def test_leading_dimensions_equal_single_mixtures(generator: torch.Generator) -> None:
    stack = mixture((2, 3), 4, 2, generator)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    many = gaussian_mixture_em_step(stack, x)
    one = gaussian_mixture_em_step(GaussianMixture(*(p[1, 2] for p in stack)), x)
    assert many.responsibilities.shape == (2, 3, 50, 4) and many.log_prob.shape == (2, 3, 50)
    for left, right in zip((*many.mixture, *many[1:]), (*one.mixture, *one[1:]), strict=True):
        torch.testing.assert_close(left[1, 2], right, rtol=1e-10, atol=1e-10)


def test_float32_and_device(generator: torch.Generator, device: torch.device) -> None:
    model = mixture((), 2, 2, generator)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    there = GaussianMixture(*(p.float().to(device) for p in model))
    single = gaussian_mixture_em_step(there, x.float().to(device))
    for ours, exact in zip(single.mixture, gaussian_mixture_em_step(model, x).mixture, strict=True):
        assert ours.dtype == torch.float32 and ours.device.type == device.type
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=1e-4, atol=1e-4)


def test_min_variance_is_added_to_the_diagonal(generator: torch.Generator) -> None:
    model = mixture((), 2, 2, generator)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    plain = gaussian_mixture_em_step(model, x).mixture.covariances
    ridged = gaussian_mixture_em_step(model, x, min_variance=0.1).mixture.covariances
    torch.testing.assert_close(ridged - plain, 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2))


def test_bad_input_is_refused(generator: torch.Generator) -> None:
    model = mixture((), 2, 1, generator)
    with pytest.raises(ValueError, match=r"shape \(n, 1\)"):
        gaussian_mixture_em_step(model, torch.zeros(5, dtype=torch.float64))
    flat = model._replace(covariances=torch.zeros(2, 1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="2 that are not"):
        gaussian_mixture_em_step(flat, torch.zeros(5, 1, dtype=torch.float64))
    far = model._replace(means=torch.tensor([[0.0], [1e6]], dtype=torch.float64))
    with pytest.raises(ValueError, match="lost component"):
        gaussian_mixture_em_step(far, torch.zeros(5, 1, dtype=torch.float64))


def test_components_must_agree() -> None:
    mixture = GaussianMixture(torch.ones(2) / 2, torch.zeros(3, 1), torch.ones(3, 1, 1))
    with pytest.raises(ValueError, match=r"must share k, got \[2, 3\] components"):
        gaussian_mixture_em_step(mixture, torch.zeros(4, 1))
