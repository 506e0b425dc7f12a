# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Discrete data: what a density may say about whole numbers
#
# **Pixels are whole numbers and flows are densities. How do they meet, and what does the meeting cost?**
#
# | | |
# |---|---|
# | You need | lecture 01 (ELBO, KL), lecture 02 (importance-weighted bound), lecture 03 (flows) |
# | Time | 90 minutes of reading and running, 60 minutes of exercises |
# | Library files | `logistic_mixture` · `pixel_models` · `dequantization` · `flows` · `mixtures` · `divergences` |
#
# Run the notebook from the top (*Run → Run All Cells*): it takes about a minute on two cores, downloads
# nothing, and needs none of your answers to the exercises.

# %% [markdown]
# ## Where we are
#
# Lecture 03 built densities that can be computed exactly, and trained Glow on digits. There uniform noise was added to the
# pixels, with the promise of an explanation here. It is also where the thread of the four weak points of a VAE gets a
# tool: a pixel's distribution is a *decoder*, the first of them.
#
# | weak point | what goes wrong | where we treat it |
# |---|---|---|
# | **the decoder $p(x \mid z, \theta)$** | too weak, too strong, or a density where data are discrete | 01, **this lecture** |
# | the bound | the ELBO is not $\log p(x)$ | 02 IWAE (it returns below, with noise for a latent) |
# | the prior $p(z)$ | codes and prior do not match | 05 ELBO surgery |
# | the posterior $q(z \mid x, \phi)$ | a diagonal Gaussian is rarely the truth | 03 and 06 flows |
#
# Notation: $y$ are levels (whole numbers, $0, \dots, L - 1$), $x$ real numbers; $\Pi$ and $P$ are probabilities of levels, $p$ and $q$
# densities. The slides mix the letters up in places; whether a number is a mass or a density is the whole point here.
#
# ## After this lecture you can
#
# 1. say why a density fitted to whole numbers may run away, and which ones do (D1);
# 2. turn a density into probabilities of levels, edges included, without losing digits (D2, D3);
# 3. choose between a categorical head and a mixture of logistics (D3);
# 4. prove what uniform noise does to a likelihood, and compute its price (D4);
# 5. compare models in bits per dimension without losing eight of them on the way (D7);
# 6. learn the noise, weigh it, and order the three bounds (D5, D6);
# 7. predict on which data learned noise pays off (D8).

# %%
import math
import textwrap

import matplotlib.pyplot as plt
import torch

from dgm_course import check, data, gaussian, numerics, plots, reproduce
from dgm_course import dequantization as dq
from dgm_course.bounds import exact_iwae_bound
from dgm_course.demos import dequantization_noise, discretized_logistic
from dgm_course.divergences import kl_divergence as KL
from dgm_course.flows import Compose, FixedLinear, Flow, realnvp_transform
from dgm_course.logistic_mixture import (
    discretized_logistic_log_prob,
    discretized_logistic_mixture_log_prob,
    logistic_log_prob,
    rgb_logistic_mixture_log_prob,
)
from dgm_course.mixtures import mixture_log_prob
from dgm_course.pixel_models import CategoricalHead, LogisticMixtureHead, PixelModel
from dgm_course.train import fit, fit_many, minibatch

plots.use_style()
torch.set_default_dtype(torch.float64)  # the oracles are exact to 1e-8; networks run in float32 below
torch.set_num_threads(1)  # many small products: a second thread only gets in the way

# %% [markdown]
# ## 1 · A likelihood without a ceiling
#
# How often does each level occur? We count the pixels of the digits (17 levels) and of two photographs (256).

# %%
digits = data.digits(binary=False)
share = torch.bincount(digits.train_x.long().flatten(), minlength=17).double()
share = share / share.sum()  # (17,): the distribution of a pixel's level
entropy = -(share * share.log()).sum()
fig, axes = plt.subplots(1, 2, figsize=(10.6, 3.2))
plots.bars(axes[0], share, groups=[str(level) for level in range(17)])
axes[0].set(title="Digits", xlabel="level", ylabel="share of the pixels")
for picture, label in zip(data.photographs(), ("china.jpg", "flower.jpg"), strict=True):
    counts = torch.bincount(picture.flatten().long(), minlength=256).double()
    counts = counts / counts.sum()
    bits = -torch.special.xlogy(counts, counts).sum() / math.log(2)
    axes[1].step(range(256), counts, where="mid", linewidth=1.2, label=f"{label}: {bits:.2f} bits")
axes[1].axhline(1 / 256, color=plots.INK, linestyle="--", linewidth=1.4, label="even: 8 bits")
axes[1].set(title="Two photographs", xlabel="level")
axes[1].legend()
plots.show(fig, alt=(
    "Left: half of all digits' pixels have level 0, the rest spread over 16 levels with a peak at 16. Right: pixel "
    "values of two photographs, ragged and far from even, with entropies below 8 bits"
))

# %% [markdown]
# *What you see:* real pixel values are not spread evenly (the first half of D8). Half of all digit pixels are exactly 0. A smooth density knows nothing of
# such heaps; and a density that is flexible enough notices them in an unpleasant way.
#
# **Predict first:** a mixture of 17 narrow Gaussians, one on each level, is fitted to these pixels by maximum likelihood. Where does the
# likelihood end?
#
# > **Theorem D1.** Let $\Pi$ be a distribution on finitely many whole numbers, with entropy $\mathrm H[\Pi]$. The mixture $p_s(x) = \sum_y \Pi(y)\,\mathcal N(x; y, s^2)$ has
# > $$\mathbb E_\Pi \log p_s(y) = -\mathrm H[\Pi] - \log s - \tfrac12 \log 2\pi + O(e^{-1/2s^2}) \to \infty \qquad (s \to 0).$$
# > So the likelihood is unbounded in any family that can shrink onto points. In one that cannot, such as a single Gaussian, it is bounded.
# > With uniform noise $u$ on $[0, 1)$, $\mathbb E_\Pi\,\mathbb E_u \log p(y + u) \le -\mathrm H[\Pi]$ for *every* density $p$.
#
# <details><summary>Proof</summary>
#
# At $x = y$ the component on $y$ contributes $\Pi(y)\,(2\pi)^{-1/2}/s$, and all others together less than $e^{-1/2s^2} (2 \pi)^{-1/2} / s$. Take logarithms and
# average. A single Gaussian on data with variance $v > 0$: the best is $-\frac12 \log (2\pi e v)$, finite. The last line is Theorem D4 and Gibbs'
# inequality: $\mathbb E_u \log p(y + u) \le \log P(y)$ with $P(y) = \int_0^1 p(y + u)\,du$, $\sum_y P(y) \le 1$, hence $\mathbb E_\Pi \log P(y) \le \mathbb E_\Pi \log \Pi(y)$.
# </details>

# %% tags=["nbval-check-output"]
levels = torch.arange(17.0)
u, w = numerics.gauss_legendre(0.0, 1.0, 400)  # the noise, by quadrature
print(f"minus the entropy: {-entropy:.4f} nats\n")
print("   s      mean log-likelihood   the theorem's line   with uniform noise")
for s in (1.0, 0.3, 0.1, 1e-2, 1e-4, 1e-8):
    def log_p(x, s=s):
        return mixture_log_prob(x.unsqueeze(-1), levels[:, None], 2 * math.log(s), share.log())

    plain = share @ log_p(levels)
    line = -entropy - math.log(s) - 0.5 * math.log(2 * math.pi)
    noisy = share @ (log_p(levels[:, None] + u.squeeze(-1)) @ w)
    print(f"{s:6.0e} {plain:18.4f} {line:20.4f} {noisy:22.4g}")
spread = share @ (levels - share @ levels).square()
print(f"\nthe best single Gaussian: {-0.5 * (math.log(2 * math.pi) + 1 + spread.log()):.4f}")

# %% [markdown]
# Likelihood and line agree as soon as the components no longer touch, and grow by 2.3 nats for every factor of ten, for ever: $10^{-8}$ is not
# the end. With noise the same narrowing is ruinous.
#
# Nobody puts the means there by hand. Adam does. We watch 17 components with trained widths and weights, once with their means fixed on the levels, twice with trained means.

# %%
pixels = digits.train_x.flatten().double()


def train_mixture(noise: bool, free_means: bool) -> torch.Tensor:
    """Losses of 1000 Adam steps: a mixture of 17 Gaussians on single pixels, with or without uniform noise."""
    generator = torch.Generator().manual_seed(0)
    means = levels[:, None] + (0.5 if noise else 0.0) + free_means * 0.3 * torch.randn(17, 1, generator=generator)
    log_s, logits = torch.zeros(17, 1, requires_grad=True), torch.zeros(17, requires_grad=True)
    means.requires_grad_(free_means)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        x = minibatch(pixels, 256, generator)[:, None]
        x = x + noise * torch.rand(x.shape, generator=generator)
        return -mixture_log_prob(x, means, 2 * log_s, logits.log_softmax(0)).mean()

    trained = [value for value in (means, log_s, logits) if value.requires_grad]
    return fit(loss, trained, steps=1000, lr=0.02, progress=False).losses


runs = {"means on the levels": train_mixture(False, False), "means trained": train_mixture(False, True),
        "with uniform noise, means trained": train_mixture(True, True)}

# %%
fig, ax = plt.subplots(figsize=(8.6, 3.6))
for k, (label, losses) in enumerate(runs.items()):
    ax.plot(losses, color=plots.PALETTE[k], linewidth=1.4, label=label)
    print(f"{label:36s} mean of the last 100 losses {losses[-100:].mean():7.2f} nats")
ax.axhline(float(entropy), color=plots.INK, linestyle="--", linewidth=1.4, label="entropy of the levels")
ax.set(title="The degenerate fit as it happens", xlabel="Adam step", ylabel="negative log-likelihood (nats)",
       ylim=(-18, 9))
ax.legend(loc="lower left")
plots.show(fig, alt=(
    "Training loss against step: with means on the levels it falls in a straight line without end, with trained means it "
    "falls and then jumps about, with uniform noise it settles just above the entropy"
))

# %% [markdown]
# *What you see:* without noise the loss falls through the entropy, which no model of the *levels* can do, and goes on falling. With trained means the
# components collapse too, but after some 300 steps a minibatch moves a needle off its level, and the loss jumps: such a run looks like bad luck with the learning rate,
# and is the same disease. (It ends with one broad component that does all the work: the best single Gaussian, 3.21 nats.) With noise the loss settles just above the entropy, as D1 says of its expectation, but for the scatter of minibatches.
#
# A lower loss is no better model here: multiply the pixels by 2 and it changes by $\log 2$, shrink $s$ and it falls. **A density at a point is not a probability.** There
# are two ways out: make the *model* discrete, or make the *data* continuous.
#
# ## 2 · First way out: discretize the model
#
# Give every level the mass of the bin around it. The logistic distribution is the usual choice, because its distribution function is elementary:
# $F(x) = \sigma((x - \mu) / s)$.
#
# > **Theorem D2.** (Salimans et al. 2017.) Let $F$ be a distribution function. Define for levels $y = 0, \dots, L - 1$
# > $$P(y) = F(y + \tfrac12) - F(y - \tfrac12), \qquad \text{with } F(-\tfrac12) \text{ replaced by } 0 \text{ and } F(L - \tfrac12) \text{ by } 1.$$
# > Then $P(y) \ge 0$ and $\sum_y P(y) = 1$, for every $F$.
#
# <details><summary>Proof</summary>
#
# $F$ does not decrease, so no term is negative. The sum telescopes: all inner edges appear once with each sign, the outer ones are 1 and 0.
# </details>
#
# Two slips of the slides. They write $P(x) = \prod_j p(x_j \mid x_{1:j-1})$, densities on the right and a probability on the left: a density is no mass and may exceed 1.
# And the edge rule is stated for "$x - 0.5$" at pixel 0 and "$x + 0.5$" at 255: it is about the level $y$, and it is no cosmetic detail.

# %% tags=["nbval-check-output"]
def mass_without_edge_rule(y, mean, log_scale):
    """F(y + 1/2) - F(y - 1/2) for the outer levels, too."""
    return discretized_logistic_log_prob(y + 1, mean + 1, log_scale, num_levels=258).exp()


y = torch.arange(256.0)
print("                          sum over the 256 levels of P(y)       density at its peak")
print("  mean    scale      with the edge rule     without             p(mean)")
for mean, s in ((127.0, 10.0), (5.0, 10.0), (0.0, 0.1), (-40.0, 20.0), (1e4, 1.0)):
    log_s = math.log(s)
    with_rule = discretized_logistic_log_prob(y, mean, log_s, num_levels=256).exp().sum()
    without = mass_without_edge_rule(y, mean, log_s).sum()
    peak = logistic_log_prob(torch.tensor(mean), mean, log_s).exp()
    print(f"{mean:7.0f} {s:7.1f} {with_rule:19.12f} {without:18.6f} {peak:18.3f}")

# %% [markdown]
# The left sum is 1 whatever the parameters; the right one is not, and can vanish. Without the rule a network that is sure of black has to put its mean exactly *on* 0, with a small
# scale. With it, it may put the mean anywhere below: "at least this dark".
#
# ### Live: one discretized logistic
#
# Bins are those of this section, $[y - \frac12, y + \frac12)$. **Try:** a pixel that is always black. Move the mean to −3 and look at $P(0)$ with the rule and without; then the mean to the middle: where does the rule not matter?

# %%
discretized_logistic.show()

# %% [markdown]
# ### Exercise 1 · The mass of a bin (warm-up)
#
# No edges yet, and no logarithm.

# %% exercise="discretized_logistic_prob"
def discretized_logistic_prob(y: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """P(y) = F(y + 1/2) - F(y - 1/2) of a logistic distribution, entry by entry."""
    ### BEGIN SOLUTION
    return torch.sigmoid((y + 0.5 - mean) / scale) - torch.sigmoid((y - 0.5 - mean) / scale)
    ### END SOLUTION

# %% check="discretized_logistic_prob" points=1
check.discretized_logistic_prob(discretized_logistic_prob)
### BEGIN HIDDEN TESTS
check.hidden("discretized_logistic_prob", discretized_logistic_prob, seed=4041)
print("hidden tests ran to the end: discretized_logistic_prob 91d0")
### END HIDDEN TESTS

# %% [markdown]
# ### The logarithm of a difference
#
# A loss needs $\log P(y)$. Some seventeen scales above the mean (37 in float64) both values of $F$ are 1 to within rounding; before that their difference has few digits left, from there on it is nothing. The
# cure is an identity. With $a = (y + \frac12 - \mu)/s$, $b = (y - \frac12 - \mu)/s$:
# $$\sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,\bigl(1 - e^{-(a - b)}\bigr), \qquad \log P(y) = \log\sigma(a) + \log\sigma(-b) + \log\bigl(1 - e^{-1/s}\bigr).$$
# No difference of nearly equal numbers is left, the last term does not even depend on $y$, and at an edge the last term and one of the first two drop out.

# %%
def naive_log_prob(y, mean, log_scale, num_levels=256):
    """The definition as it stands: log(F(above) - F(below)), edges by torch.where."""
    above = torch.where(y == num_levels - 1, math.inf, (y + 0.5 - mean) / log_scale.exp())
    below = torch.where(y == 0, -math.inf, (y - 0.5 - mean) / log_scale.exp())
    return (torch.sigmoid(above) - torch.sigmoid(below)).log()


def stable_log_prob(y, mean, log_scale):
    return discretized_logistic_log_prob(y, mean, log_scale, num_levels=256)


print("float32, scale 1               log P(y)                     gradient in log s")
print("scales from the mean      definition     identity        definition     identity")
for distance in (1, 5, 10, 15, 20, 100):
    cells = {}
    for name, log_prob in (("definition", naive_log_prob), ("identity", stable_log_prob)):
        log_s = torch.zeros((), dtype=torch.float32, requires_grad=True)
        value = log_prob(torch.tensor(100.0 + distance, dtype=torch.float32), 100.0, log_s)
        cells[name] = value.item(), torch.autograd.grad(value, log_s)[0].item()
    (a, da), (b, db) = cells["definition"], cells["identity"]
    print(f"{distance:20d} {a:15.5f} {b:12.5f} {da:17.4f} {db:12.4f}")

# %% [markdown]
# At fifteen scales the definition is already off in the first decimal (float32), at twenty it gives minus infinity, and `nan` for a gradient: one such pixel ends a training run. The reference code of PixelCNN++ guards against it by one more case beside the two edges: where
# the mass is small, it takes the density at the bin's centre instead. The identity needs no such case.
#
# > **Theorem D3.** (Salimans et al. 2017.) A mixture of $K$ discretized logistics is described by $3K$ numbers for any number of levels, where a categorical distribution needs $L$. Its log-probability
# > and all gradients, computed by the identity and a log-sum-exp, are finite for all means in $[-10^4, 10^4]$ and log-scales in $[-12, 8]$.
#
# <details><summary>Proof</summary>
#
# Weights, means, log-scales: $3K$. $\log\sigma(a)$ is finite wherever $a$ is, with slope $\sigma(-a) \in (0, 1)$; over the box $|a| \le (10^4 + 256)\,e^{12} \approx 1.7 \cdot 10^9$, far from overflow
# even in float32. $1 - e^{-1/s}$ lies between $3 \cdot 10^{-4}$ and 1 there, so its logarithm is finite, too, with a slope in $\log s$ between $-1$ and 0; the slope of $a$ in $\log s$ is $-a$. A log-sum-exp of finite numbers is finite and has slopes in $[0, 1]$.
# </details>
#
# We count what is not finite over the box, and compare with the sum of probabilities, computed the long way in float64 where that still works.

# %%
def mixture_of(log_prob):
    """Mixture over the last dimension of any log P(y) of one logistic."""
    return lambda y, logits, mean, log_s: torch.logsumexp(
        logits.log_softmax(-1) + log_prob(y.unsqueeze(-1), mean, log_s), -1)


def ours(*args):
    """The library's mixture, on 256 levels."""
    return discretized_logistic_mixture_log_prob(*args, num_levels=256)


# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(1)
n, K = 20_000, 5
y = torch.randint(256, (n,), generator=generator).float()
mean = (2e4 * torch.rand(n, K, generator=generator) - 1e4).float()
log_s = (20 * torch.rand(n, K, generator=generator) - 12).float()
logits = torch.randn(n, K, generator=generator).float()
for name, log_prob in (("definition", mixture_of(naive_log_prob)), ("identity", ours)):
    parameters = [value.clone().requires_grad_() for value in (logits, mean, log_s)]
    value = log_prob(y, *parameters)
    slopes = torch.stack(torch.autograd.grad(value.sum(), parameters))
    bad = 100 * (1 - torch.isfinite(value).double().mean()), 100 * (1 - torch.isfinite(slopes).double().mean())
    print(f"{name:11s} not finite: {bad[0]:5.1f} % of the values, {bad[1]:5.1f} % of the gradients")
tame = [value.double()[:50] for value in (logits, mean / 50, log_s.abs() / 3 + 1)]
gap = (ours(y[:50].double(), *tame) - mixture_of(naive_log_prob)(y[:50].double(), *tame)).abs().max()
print(f"where both work, in float64, they differ by at most {gap:.0e} nats")

# %% [markdown]
# For colour, PixelCNN++ takes one component for all three channels of a pixel and lets red move the mean of green, and both that of blue, linearly: $10K$ numbers instead of $3 \cdot 256$, and channels that are
# not independent. Still a distribution: over all $5^3$ colours of a five-level pixel it sums to one.

# %% tags=["nbval-check-output"]
colours = torch.cartesian_prod(*3 * [torch.arange(5.0)])  # (125, 3)
parameters = [torch.randn(shape, generator=generator) for shape in ((2,), (3, 2), (3, 2), (3, 2))]
logits, mean, log_s, coefficients = parameters
log_P = rgb_logistic_mixture_log_prob(colours, logits, 2 + mean, log_s, coefficients.tanh(), num_levels=5)
print(f"sum over {len(colours)} colours: {log_P.exp().sum():.10f}")

# %% [markdown]
# ### Exercise 2 · With edges, and safe
#
# Now all of it: the logarithm, the edge rule, and no underflow.

# %% exercise="log_prob_with_edges"
def log_prob_with_edges(
    y: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, num_levels: int
) -> torch.Tensor:
    """log P(y) in nats of a discretized logistic on the levels 0, ..., num_levels - 1, entry by entry."""
    ### BEGIN SOLUTION
    s = log_scale.exp()
    low, high = y == 0, y == num_levels - 1
    left = torch.nn.functional.logsigmoid((y + 0.5 - mean) / s).masked_fill(high, 0.0)
    right = torch.nn.functional.logsigmoid(-(y - 0.5 - mean) / s).masked_fill(low, 0.0)
    width = torch.log(-torch.expm1(-1 / s)).expand_as(left).masked_fill(low | high, 0.0)
    return left + right + width
    ### END SOLUTION

# %% check="log_prob_with_edges" points=2
check.log_prob_with_edges(log_prob_with_edges)
### BEGIN HIDDEN TESTS
check.hidden("log_prob_with_edges", log_prob_with_edges, seed=4042)
print("hidden tests ran to the end: log_prob_with_edges 3ac7")
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Categorical or logistic?
#
# A categorical head knows no order: level 7 is no nearer to 8 than to 200. The slides draw a conclusion from that: *a value that is not in the training data will not be predicted.* A logistic mixture knows that numbers are neighbours. Does it matter
# on real data? The same two networks, a MADE and a PixelCNN, with either head, on the digits with their 17 levels.
#
# **Predict first:** which head has fewer parameters, which the better held-out likelihood? And how many bits will the categorical head spend on a level that it has never seen?

# %%
def train_model(name: str, head, train_x: torch.Tensor, seed: int = 0) -> PixelModel:
    """A MADE (400 steps) or PixelCNN (250 steps) over the digits' levels, by maximum likelihood."""
    generator = torch.Generator().manual_seed(seed)
    if name == "MADE":
        model, steps, lr = PixelModel.made((1, 8, 8), head, hidden=128, generator=generator), 400, 3e-3
    else:
        size = {"hidden": 24, "receptive_field": 3}
        model, steps, lr = PixelModel.pixel_cnn((1, 8, 8), head, **size, generator=generator), 250, 1e-2
    model.float()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return -model.log_prob(minibatch(train_x, 64, generator)).mean()

    fit(loss, model.parameters(), steps=steps, lr=lr, lr_decay_from=0.5, seed=seed, progress=False)
    return model


# %%
heads, trained = {"categorical": CategoricalHead(17), "mixture of 5": LogisticMixtureHead(17, 5)}, {}
print("network    head             numbers a pixel   parameters   bits/dim: training   held-out")
for name in ("MADE", "PixelCNN"):
    for kind, head in heads.items():
        trained[name, kind] = model = train_model(name, head, digits.train_x)
        with torch.no_grad():
            nats = [model.log_prob(x) for x in (digits.train_x, digits.test_x)]
        bits = [dq.bits_per_dim(value, 64, bin_width=1.0) for value in nats]
        error, size = bits[1].std() / 300**0.5, sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:10s} {kind:20s} {head.outputs:8d} {size:16,d} {bits[0].mean():16.3f} "
              f"{bits[1].mean():14.3f} ± {error:.3f}")

# %% [markdown]
# (The error counts the spread over the held-out digits, not over seeds; and these are a few hundred steps: with more, the MADEs begin to overfit, the mixture first. An independent distribution for each pixel needs 2.44 bits; lecture 03's Glow had 2.29.) The mixture gets by with fewer numbers a pixel, and these are
# *exact* log-probabilities, no bounds. With 17 levels a categorical head is still affordable; with 256 the gap in size is 256 to 15.
#
# Now the slides' sentence. We take level 11 away from the training digits (each such pixel becomes a 10 or a 12, by a coin) and ask what the two heads expect at held-out pixels where 11 is the truth.

# %%
coins = torch.randint(2, digits.train_x.shape, generator=torch.Generator().manual_seed(3))
without_11 = torch.where(digits.train_x == 11, 10.0 + 2.0 * coins, digits.train_x.double()).float()
truth = digits.test_x == 11
expected = {}
for kind, head in heads.items():
    model = train_model("MADE", head, without_11)
    with torch.no_grad():
        expected[kind] = head.level_log_probs(model.raw(digits.test_x)[truth]).exp().mean(0)  # (17,)
        costs = [-m.pixel_log_probs(digits.test_x)[truth].mean() / math.log(2) for m in (trained["MADE", kind], model)]
    print(f"{kind:14s} bits for a pixel of level 11: {costs[0]:5.2f} if seen in training, {costs[1]:5.2f} if not")
fig, ax = plt.subplots(figsize=(8.6, 3.3))
names = [str(level) for level in range(17)]
plots.bars(ax, torch.stack(list(expected.values())), groups=names, series=list(expected))
ax.set(title="What is expected where the truth is 11, never seen in training", xlabel="level",
       ylabel="mean probability")
ax.legend(loc="upper center")
plots.show(fig, alt=(
    "Mean predicted probability of each level at pixels of level 11: the categorical head has a hole at 11, the mixture of "
    "logistics runs smoothly through it"
))

# %% [markdown]
# *What you see:* a hole at 11 in one row of bars and none in the other. "Will not be predicted" is nearly right: a softmax never gives exactly zero, but it spends many bits more. The mixture pays a tenth of a bit, because 10 and 12 are evidence for 11.
#
# ## 4 · Second way out: dequantize the data
#
# A flow cannot be discretized like that: the mass of a cube under it has no formula. So leave the model a density, and move the data: $x = y + u$ with $u$ uniform on $[0, 1)^m$. What does the likelihood of such noisy data mean?
#
# **The bins differ from those above.** Discretization used $[y - \frac12, y + \frac12)$ with open ends; now level $y$ owns $[y, y + 1)$. It is the same model shifted by one half, except at the edges: mass beyond the outer bins was given to the edge
# levels there, and is lost here ($\sum_y P(y) \le 1$).
#
# > **Theorem D4.** (Theis et al. 2016.) Let $p$ be a density on $\mathbb R^m$ and $P(y) = \int_{[0,1)^m} p(y + u)\,du > 0$. Then
# > $$\mathbb E_{u \sim U} \log p(y + u) = \log P(y) - \mathrm{KL}\bigl(U \,\|\, p(u \mid y)\bigr) \le \log P(y), \qquad p(u \mid y) = \frac{p(y + u)}{P(y)}.$$
# > Training a density on uniformly dequantized data maximises a lower bound of the likelihood of a discrete model. Equality holds where $p$ is constant in the bin of $y$.
#
# <details><summary>Proof</summary>
#
# Written exercise W1, below. Where to begin: $p(u \mid y)$ is a density on the cube; write out the KL divergence from the uniform one.
# </details>
#
# Every gap is a number. The model: a mixture of three products of logistics, in one dimension and in two, some narrower than a bin. $P(y)$ comes from distribution functions, and once more from a quadrature of the density; the KL divergence uses the second, the gap the first.
# The library's `uniform_bound` comes from samples.

# %%
means = torch.tensor([[3.3, 4.6], [5.6, 3.2], [4.7, 5.8]])  # (3 components, 2 dimensions)
log_scales = torch.tensor([[-2.0, -1.2], [-1.6, -2.0], [-1.0, -1.8]])
log_weights = torch.tensor([0.5, 0.3, 0.2]).log()


def log_p(x: torch.Tensor) -> torch.Tensor:
    """The density, in one or two dimensions: (..., m) -> (...)."""
    m = x.shape[-1]
    parts = logistic_log_prob(x.unsqueeze(-2), means[:, :m], log_scales[:, :m])
    return torch.logsumexp(log_weights + parts.sum(-1), -1)


def log_P(y: torch.Tensor) -> torch.Tensor:
    """The exact log-mass of the bin [y, y + 1)^m."""
    m, s = y.shape[-1], log_scales[:, : y.shape[-1]].exp()
    z = y.unsqueeze(-2) - means[:, :m]
    mass = (torch.sigmoid((z + 1) / s) - torch.sigmoid(z / s)).prod(-1)
    return (log_weights.exp() * mass).sum(-1).log()


def cube(m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes inside the unit cube and weights: the trapezoidal rule in logit u, tame at the ends."""
    t = torch.arange(-30.0, 30.0, 0.1 if m == 1 else 0.4)
    grid = t[:, None] if m == 1 else torch.cartesian_prod(t, t)
    return torch.sigmoid(grid), ((t[1] - t[0]) * torch.sigmoid(grid) * torch.sigmoid(-grid)).prod(-1)

# %% tags=["nbval-check-output"]
bins = {1: torch.tensor([[3.0], [4.0], [6.0]]), 2: torch.tensor([[3.0, 4.0], [4.0, 5.0]])}
print("level      log P(y)   the same by quadrature      bound        gap     KL(U || p(u|y))")
for m, ys in bins.items():
    nodes, weights = cube(m)
    for y in ys:
        bound = weights @ log_p(y + nodes)
        log_mass = torch.logsumexp(log_p(y + nodes) + weights.log(), 0)
        gap = KL(torch.zeros_like(weights), log_p(y + nodes) - log_mass, weights)
        name = ", ".join(f"{level:.0f}" for level in y)
        print(f"{name:8s} {log_P(y):10.6f} {log_mass:21.6f} {bound:14.6f} {log_P(y) - bound:10.6f} {gap:15.6f}")

# %%
generator = torch.Generator().manual_seed(2)
draws = dq.uniform_bound(log_p, bins[2].expand(2000, 2, 2), num_samples=10, generator=generator)  # (2000, 2)
for y, row in zip(bins[2], draws.mT, strict=True):
    print(f"level {y.long().tolist()}: {row.mean():.4f} ± {row.std() / 2000**0.5:.4f} from 20 000 samples")

# %% [markdown]
# Two routes to $\log P(y)$ and one gap, and samples that agree with the bound. In the bin of 4 the density varies by a factor of two only, and little is lost; where a component is much narrower than a bin, or ends inside it, it is 0.3 to 0.7 nats.
#
# A frequent slip is noise in half a bin, $u \in [0, \frac12)$, with the same formula. Nothing warns: the training runs, the numbers look better. What is bounded then is $\log 2 \int_0^{1/2} p(y + u)\,du$, and a density that keeps to the lower half of each bin makes that twice its probability:
# "probabilities" that sum to 2 a pixel. With 64 pixels the flattery can reach $64 \log 2 = 44$ nats.
#
# ### Exercise 3 · The bound of uniform noise

# %% exercise="uniform_dequantization_bound"
def uniform_dequantization_bound(log_prob, y: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Estimate the bound of log P(y): log_prob maps (..., m) -> (...); y (B, m), u (S, B, m) -> (B,)."""
    ### BEGIN SOLUTION
    return log_prob(y + u).mean(0)
    ### END SOLUTION

# %% check="uniform_dequantization_bound" points=1
check.uniform_dequantization_bound(uniform_dequantization_bound)
### BEGIN HIDDEN TESTS
check.hidden("uniform_dequantization_bound", uniform_dequantization_bound, seed=4043)
print("hidden tests ran to the end: uniform_dequantization_bound 77be")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise W1 · The gap (written)
#
# Prove Theorem D4, the equality and not only the inequality. For which densities is there no gap? Why can a model trained on dequantized data not degenerate as in section 1?

# %% [markdown] written="D4" points=4
# ### BEGIN SOLUTION
# **Model answer.** $p(u \mid y) = p(y + u) / P(y)$ is not negative and integrates to one over the cube, by the definition of $P(y)$: it is a density on $[0, 1)^m$. The uniform density there is 1. So
# $$\mathrm{KL}(U \,\|\, p(u \mid y)) = \int_{[0,1)^m} 1 \cdot \log \frac{1}{p(u \mid y)}\,du = \int_{[0,1)^m} \bigl(\log P(y) - \log p(y + u)\bigr)\,du = \log P(y) - \mathbb E_u \log p(y + u),$$
# because $\log P(y)$ does not depend on $u$ and the cube has volume 1. A KL divergence is not negative, hence the inequality (it is Jensen's, $\mathbb E \log \le \log \mathbb E$, with the gap spelled out). If $p$ vanishes on a part of the bin both sides are infinite.
#
# The gap is zero if and only if $p(u \mid y) = 1$ almost everywhere, that is if $p$ is constant in the bin of $y$.
#
# For every $p$ the averaged bound is at most $\mathbb E_\Pi \log P(y)$, and since $\sum_y P(y) \le 1$ Gibbs' inequality bounds that by $-\mathrm H[\Pi]$. The objective has a ceiling which does not depend on the model, so nothing is gained by shrinking onto a point.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: recognises $p(y + u) / P(y)$ as a density on the cube, and the uniform density as 1.
# - 1 point: the equality: $\log P(y)$ is constant in $u$, the cube has volume one, the rest is the bound.
# - 1 point: no gap if and only if $p$ is constant (almost everywhere) in the bin.
# - 1 point: the ceiling: at most $\log P(y)$ for each level, and masses sum to at most one; so minus the entropy of the data bounds the objective.
# ### END MARK SCHEME

# %% [markdown]
# ## 5 · The unit: bits per dimension
#
# > **Theorem D7.** A model of $m$-dimensional data with log-likelihood $\ell$ (nats) has $-\ell / (m \log 2)$ bits per dimension. If the model is a density $p'$ of *scaled* data $x' = \delta x$, whose neighbouring levels lie $\delta$ apart, then
# > $$\text{bits per dimension} = -\frac{1}{\log 2}\left(\frac{\log p'(x')}{m} + \log\delta\right),$$
# > which for $\delta = 1/256$ adds 8 bits to the density's own. A uniform model has $\log_2 L$: 8 on 8-bit data, $\log_2 17 = 4.09$ on digits.
#
# <details><summary>Proof</summary>
#
# The density of $x' = \delta x$ is $\delta^{-m}$ times that of $x$ (change of variables, lecture 03). So $\log p(x) = \log p'(x') + m \log\delta$, and $\log p(x)$ is what bounds $\log P(y)$. Uniform: $P(y) = L^{-m}$.
# </details>
#
# Nearly every published comparison of likelihoods uses this unit, and the 8 bits are lost easily. So the library's function has no default for $\delta$: `bits_per_dim(log_prob, m, bin_width=...)`.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(3)
x = 256 * torch.rand(5, 64, generator=generator)  # levels plus noise, 64 pixels
rows = {"levels, 0 to 256": (x, 1.0), "scaled to [0, 1)": (x / 256, 1 / 256), "scaled to [-1, 1)": (x / 128 - 1, 1 / 128)}
print("the same Gaussian model, and a uniform one, on three scales\n")
print("data                 nats a picture   bits/dim   width forgotten   uniform")
for name, (scaled, width) in rows.items():
    offset = -1.0 if scaled.min() < 0 else 0.0
    nats = gaussian.gaussian_log_prob(scaled, 128 * width + offset, 2 * math.log(74 * width)).mean()
    uniform = torch.tensor(-64 * math.log(256 * width))
    bits = dq.bits_per_dim(nats, 64, bin_width=width)
    print(f"{name:18s} {nats:14.2f} {bits:13.4f} {dq.bits_per_dim(nats, 64, bin_width=1.0):13.4f} "
          f"{dq.bits_per_dim(uniform, 64, bin_width=width):15.4f}")
print(f"\nuniform on the digits' 17 levels: {dq.bits_per_dim(torch.tensor(-64 * math.log(17)), 64, bin_width=1.0):.4f}")

# %% [markdown]
# The nats depend on the scale, the bits do not. A model "with 0.2 bits per dimension" has usually forgotten the width.
#
# ### Exercise 4 · Bits per dimension

# %% exercise="bits_per_dim"
def bits_per_dim(log_prob: torch.Tensor, num_dims: int, bin_width: float) -> torch.Tensor:
    """Bits per dimension of data whose neighbouring levels lie bin_width apart: log_prob (B,) nats -> (B,)."""
    ### BEGIN SOLUTION
    return -(log_prob / num_dims + math.log(bin_width)) / math.log(2)
    ### END SOLUTION

# %% check="bits_per_dim" points=1
check.bits_per_dim(bits_per_dim)
### BEGIN HIDDEN TESTS
check.hidden("bits_per_dim", bits_per_dim, seed=4044)
print("hidden tests ran to the end: bits_per_dim 0e42")
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · Learned noise
#
# Uniform noise asks $p$ to fill each bin evenly: a staircase. A smooth network cannot, and pays the KL of D4. But nobody said that the noise has to be uniform. Call it $q(u \mid y)$, and this is lecture 01 once more: $u$ is a latent variable, $p(u \mid y)$ its posterior.
#
# > **Theorem D5.** (Ho et al. 2019.) For every density $q(u \mid y)$ on the unit cube
# > $$\mathbb E_{q(u \mid y)}\bigl[\log p(y + u) - \log q(u \mid y)\bigr] = \log P(y) - \mathrm{KL}\bigl(q(u \mid y) \,\|\, p(u \mid y)\bigr) \le \log P(y).$$
# > Uniform dequantization is the case $q = 1$. With $u = g(\epsilon, y)$ from a flow, $\epsilon \sim p(\epsilon)$,
# > $$\log q(u \mid y) = \log p(\epsilon) - \log\left|\det \frac{\partial g}{\partial \epsilon}\right|, \qquad \mathcal L = \mathbb E_{p(\epsilon)}\left[\log p(y + g(\epsilon, y)) - \log p(\epsilon) + \log\left|\det \frac{\partial g}{\partial \epsilon}\right|\right].$$
#
# <details><summary>Proof</summary>
#
# $\log p(y + u) = \log P(y) + \log p(u \mid y)$ for $u$ in the cube. Subtract $\log q(u \mid y)$ and average over $q$. The second line is the change of variables.
# </details>
#
# **The slides drop a factor.** One version writes the last integral as $\int \log\bigl(\dots\bigr)\,d\epsilon$, without $p(\epsilon)$: not an average but an integral over the whole line. Here is what it comes to, beside the right one, for a noise that happens to be uniform
# ($\epsilon$ logistic, $g = \sigma$).

# %% tags=["nbval-check-output"]
y = bins[1][0]
for reach in (10.0, 20.0, 40.0):
    epsilon = torch.arange(-reach, reach, 0.01)
    log_base = logistic_log_prob(epsilon, 0.0, 0.0)
    log_det = log_base  # of the sigmoid: its slope is the logistic density
    inner = log_p(y + torch.sigmoid(epsilon)[:, None]) - log_base + log_det
    right, slide = 0.01 * (log_base.exp() * inner).sum(), 0.01 * inner.sum()
    print(f"epsilon in ±{reach:2.0f}: weighted by p(epsilon) {right:9.4f}    without the weight {slide:9.2f}")
nodes, weights = cube(1)
print(f"the bound in the table of section 4            {weights @ log_p(y + nodes):9.4f}")

# %% [markdown]
# The weighted integral is the bound; the other one grows with the range of integration and means nothing.
#
# Now we let noise learn. $q(u \mid y)$ is the law of $u = \sigma(a(y) + b(y)\,\epsilon)$, where $\epsilon$ is logistic and $a, b$ come from a network that reads $y$ (in two dimensions couplings take the place of $a + b\,\epsilon$). At $a = 0$, $b = 1$ the noise is uniform: the family *contains* uniform dequantization, and training starts there.
# The model $p$ is kept fixed here: only the noise learns.

# %%
def train_noise(m: int) -> dq.VariationalDequantizer:
    """Noise for the fixed model, by the variational bound on the levels where it has its mass."""
    generator = torch.Generator().manual_seed(5)
    ys = torch.arange(2.0, 7.0)[:, None] if m == 1 else torch.cartesian_prod(*2 * [torch.arange(3.0, 6.0)])
    make = dq.VariationalDequantizer.autoregressive if m == 1 else dq.VariationalDequantizer.coupling
    noise = make(m, 17, generator=generator)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return -dq.variational_bound(log_p, noise, ys, num_samples=16, generator=generator).mean()

    fit(loss, noise.parameters(), steps=600, lr=3e-2, lr_decay_from=0.3, progress=False)
    return noise.requires_grad_(False)


noises = {m: train_noise(m) for m in (1, 2)}


def log_q(m: int, y: torch.Tensor) -> torch.Tensor:
    """log q(u|y) at the nodes of the cube: (N,)."""
    nodes, _ = cube(m)
    return noises[m].log_prob(nodes[:, None], y[None])[:, 0]


# %%
print("level      exact log P(y)   uniform bound   variational bound   gap left: measured   KL(q || p(u|y))")
for m, ys in bins.items():
    nodes, weights = cube(m)
    for y in ys:
        log_px, log_noise = log_p(y + nodes), log_q(m, y)
        uniform = weights @ log_px
        variational = weights @ (log_noise.exp() * (log_px - log_noise))
        gap = KL(log_noise, log_px - torch.logsumexp(log_px + weights.log(), 0), weights)
        name = ", ".join(f"{level:.0f}" for level in y)
        print(f"{name:8s} {log_P(y):13.5f} {uniform:17.5f} {variational:16.5f} "
              f"{log_P(y) - variational:19.5f} {gap:19.5f}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.6, 3.1), sharey=True)
nodes, weights = cube(1)
for ax, y in zip(axes, bins[1], strict=True):
    ideal = log_p(y + nodes) - log_P(y)
    ax.plot(nodes[:, 0], ideal.exp(), color=plots.PALETTE[0], label="ideal p(u|y)")
    ax.plot(nodes[:, 0], log_q(1, y).exp(), "--", color=plots.PALETTE[1], label="learned q(u|y)")
    ax.axhline(1.0, color=plots.INK, linestyle="--", linewidth=1.4, label="uniform noise")
    ax.set(title=f"y = {y.item():.0f}", xlabel="u", ylim=(0, 4.4))
axes[0].set_ylabel("density on the bin")
axes[0].legend()
plots.show(fig, alt=(
    "Ideal and learned noise in the bins of the levels 3, 4 and 6: the learned density follows the ideal one, which is a "
    "peak, nearly flat, and a steep slope"
))

# %% [markdown]
# *What you see:* the noise leans to where the density is, bin by bin. Two numbers a level cannot follow every bend, so a little KL is left: the last column of the table.
#
# ### Live: noise by hand
#
# Another model, with bins $[y, y + 1)$; the noise is $\sigma(a + b\,\epsilon)$ with logistic $\epsilon$, uniform at $a = 0$, $b = 1$. **Try:** find the best noise for level 1 by hand, then have the best of the family shown. At level 6 the density has two humps in one bin: how good can this family get?
# Come back after section 7: at level 1 set $a = -1$ and $b = 0.316$, raise $K$, and see the curves cross.

# %%
dequantization_noise.show()

# %% [markdown]
# ### Exercise 5 · The variational bound

# %% exercise="variational_dequantization_bound"
def variational_dequantization_bound(
    log_prob, noise, y: torch.Tensor, epsilon: torch.Tensor
) -> torch.Tensor:
    """Estimate the bound of log P(y): (B,). Here epsilon is standard normal, not logistic.

    noise(epsilon, y) returns u = g(epsilon, y), (S, B, m), and log|det dg/d epsilon|, (S, B);
    epsilon (S, B, m) is standard normal, y (B, m), log_prob (..., m) -> (...).
    """
    ### BEGIN SOLUTION
    u, log_det = noise(epsilon, y)
    log_q = gaussian.gaussian_log_prob(epsilon, 0.0, 0.0) - log_det
    return (log_prob(y + u) - log_q).mean(0)
    ### END SOLUTION

# %% check="variational_dequantization_bound" points=2
check.variational_dequantization_bound(variational_dequantization_bound)
### BEGIN HIDDEN TESTS
check.hidden("variational_dequantization_bound", variational_dequantization_bound, seed=4045)
print("hidden tests ran to the end: variational_dequantization_bound d15f")
### END HIDDEN TESTS

# %% [markdown]
# ## 7 · Weighted noise, and the order of the bounds
#
# If $u$ is a latent variable, lecture 02 applies as well: draw $K$ noises, average the *weights* $w_k = p(y + u_k) / q(u_k \mid y)$, then take the logarithm.
#
# > **Theorem D6.** (Hoogeboom et al. 2020.) For one density $p$ and a level $y$, with $q^*$ the best noise for it of a family that contains the uniform one, and $K \ge 1$,
# > $$\mathbb E_U \log p(y + u) \;\le\; \mathcal L(q^*) \;\le\; \mathbb E \log \frac1K \sum_{k=1}^K \frac{p(y + u_k)}{q^*(u_k \mid y)} \;\le\; \log P(y).$$
# > The $K$-sample bound with *uniform* noise and $\mathcal L(q^*)$ are not ordered.
#
# <details><summary>Proof</summary>
#
# The first step is what "best of a family that contains it" means. The others are Theorem I2 for the weights $w_k$, whose mean is $\int q\,p(y + u) / q\,du = P(y)$. That there is no order is shown by the numbers below: one example each way.
# </details>
#
# For independent weights the $K$-sample bound is a one-dimensional integral (lecture 02), so all of this is exact.

# %%
counts = [1, 2, 4, 8, 16, 64, 256]
curves = {}
for m, y in ((1, bins[1][0]), (2, bins[2][0])):
    nodes, weights = cube(m)
    log_joint = log_p(y + nodes) - log_P(y)  # relative to log P(y): the bounds are minus the gaps
    for name, log_noise in (("uniform", torch.zeros_like(weights)), ("learned", log_q(m, y))):
        curves[m, name] = exact_iwae_bound(log_joint, log_noise, weights, counts)
print("gap to log P(y), nats" + "".join(f"{f'K = {K}':>10s}" for K in counts))
for (m, name), bound in curves.items():
    print(f"{m}-dimensional, {name}" + "".join(f"{-value:10.5f}" for value in bound))

# %%
fig, axes = plt.subplots(1, 2, figsize=(10.6, 3.5), sharey=True)
for (m, name), bound in curves.items():
    k = int(name == "learned")
    axes[m - 1].plot(counts, -bound, marker="o", color=plots.PALETTE[k], label=f"{name} noise, K samples")
for m, ax in enumerate(axes, start=1):
    one_sample = -float(curves[m, "learned"][0])
    plots.reference_line(ax, "learned, one sample", y=one_sample, color=plots.PALETTE[1])
    plots.log_axes(ax)
    ax.set_xticks(counts, [str(K) for K in counts])
    ax.set(title=f"{m} dimension{'s' if m > 1 else ''}", xlabel="K")
axes[0].set_ylabel("gap to log P(y)  (nats)")
axes[0].legend(loc="lower left")
plots.show(fig, alt=(
    "Gap to the exact log-probability against the number of samples, on logarithmic axes, in one and in two dimensions: "
    "uniform noise starts twenty times higher than learned noise and falls below its single sample at sixteen samples"
))

# %% [markdown]
# *What you see:* both orders. With few samples the gap of uniform noise lies above the dashed line (one sample of the learned noise), from 16 samples on below it. Both gaps fall like $1/K$ in the end, as lecture 02 says. Learning the noise is paid for once, weighing costs
# $K$ passes of the model at every evaluation.
#
# ### Exercise 6 · Weights
#
# Careful with the logarithms: log-densities of pictures are thousands of nats.

# %% exercise="importance_weighted_dequantization"
def importance_weighted_dequantization(
    log_prob, y: torch.Tensor, u: torch.Tensor, log_q: torch.Tensor
) -> torch.Tensor:
    """One draw of the K-sample bound: y (B, m), u (K, B, m) drawn from q(u|y), log_q (K, B) -> (B,)."""
    ### BEGIN SOLUTION
    log_w = log_prob(y + u) - log_q
    return torch.logsumexp(log_w, 0) - math.log(len(u))
    ### END SOLUTION

# %% check="importance_weighted_dequantization" points=2
check.importance_weighted_dequantization(importance_weighted_dequantization)
### BEGIN HIDDEN TESTS
check.hidden("importance_weighted_dequantization", importance_weighted_dequantization, seed=4046)
print("hidden tests ran to the end: importance_weighted_dequantization a9c3")
### END HIDDEN TESTS

# %% [markdown]
# ## 8 · Where learned noise pays
#
# How much is there to gain? Write $\ell(u) = \log p(y + u)$. Then $\log P(y) = \log \mathbb E_u e^{\ell(u)}$, and the expansion in cumulants begins
# $$\log P(y) = \mathbb E_u\,\ell + \tfrac12 \mathrm{Var}_u\,\ell + \dots, \qquad \text{so} \qquad \mathrm{KL}(U \,\|\, p(u \mid y)) \approx \tfrac12 \mathrm{Var}_u \log p(y + u).$$
# If $\ell$ is nearly straight across the bin, with slope $\ell_j$ in dimension $j$, its variance is $\sum_j \ell_j^2 / 12$. For a Gaussian of conditional scale $s$ (in levels) the mean square of the slope is $1/s^2$: the gap is about $1/(24\,s^2)$ nats a dimension. Halving the number of
# levels halves $s$ and makes the gap four times as large.

# %% tags=["nbval-check-output"]
print("conditional scale s    exact mean gap (nats)    1/(24 s^2)    bits")
nodes, weights = cube(1)
y = torch.arange(-100.0, 100.0)[:, None, None]  # enough levels for all of these
for s in (0.5, 1.0, 2.0, 5.0, 13.0):
    log_px = gaussian.gaussian_log_prob(y + nodes, 0.3, 2 * math.log(s))  # (levels, N)
    log_mass = torch.logsumexp(log_px + weights.log(), -1)
    gap = (log_mass.exp() * (log_mass - log_px @ weights)).sum()
    print(f"{s:15.1f} {gap:23.6f} {1 / (24 * s**2):17.6f} {gap / math.log(2):10.5f}")

# %% [markdown]
# The best single Gaussian on 8-bit photo patches leaves a pixel a scale of about 13 levels (the recorded table below has its bits, from which that follows): nothing to gain. At $s = 1$ it is 0.06 bits. What is the scale of a *flow*?
#
# ### A flow on photo patches, at three bits
#
# 8 × 8 patches of the two photographs, in grey, quantised to 8 levels; test patches come from the right fifth of the pictures, which no training patch touches. A RealNVP behind a fixed whitening, three seeds at once, trained twice from the same start with the same batches: with uniform noise, and jointly with
# its noise $u_j = \sigma(a_j + b_j\,\epsilon_j)$, whose two numbers for a pixel come from a small network that reads the 3 × 3 pixels around it. The loss is `variational_bound` in both cases.

# %%
BITS, SEEDS = 3, 3
patches = data.photo_patches(bits=BITS, generator=torch.Generator().manual_seed(0))
held_out = patches.test_x[:500].expand(SEEDS, -1, -1)  # (E, B, m)


def new_models() -> tuple[Flow, dq.VariationalDequantizer]:
    """Three flows, and noise that starts uniform: the same ones at each call."""
    generator = torch.Generator().manual_seed(1)
    couplings = realnvp_transform(64, num_layers=6, hidden=(64, 64), members=SEEDS, generator=generator)
    whitening = FixedLinear.whitening(patches.train_x, noise_variance=1 / 12)
    noise = dq.VariationalDequantizer.neighbourhood((1, 8, 8), 2**BITS, members=SEEDS, generator=generator)
    return Flow(Compose([*couplings, whitening]), 64).float(), noise.float()


def train_flow(flow: Flow, noise: dq.Dequantizer, steps: int = 300) -> None:
    """Raise the bound in the parameters of both."""
    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        y = minibatch(patches.train_x, SEEDS * 128, generator).reshape(SEEDS, 128, 64)
        return -dq.variational_bound(flow.log_prob, noise, y, generator=generator).mean(-1) / 64  # (E,)

    parameters = [*flow.parameters(), *noise.parameters()]
    fit_many(loss, parameters, steps=steps, lr=4e-3, lr_decay_from=0.6, clip_norm=1.0, progress=False)


# %%
def measure(flow: Flow, noise: dq.Dequantizer, K: int = 16) -> tuple[torch.Tensor, ...]:
    """Held-out bits/dim of each seed: by the bound, by K samples (same draws), and half the variance of log w."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        log_w = [dq.dequantization_log_weights(flow.log_prob, noise, part, num_samples=K, generator=generator)
                 for part in held_out.split(100, 1)]
    log_w = torch.cat(log_w, -1)  # (E, K, B)
    nats = log_w.mean(-2), numerics.log_mean_exp(log_w, -2), -0.5 * log_w.var(-2)
    return tuple(dq.bits_per_dim(value.mean(-1), 64, bin_width=1.0) for value in nats)


def with_error(values: torch.Tensor) -> str:
    return f"{values.mean():10.4f} ± {values.std() / SEEDS**0.5:.4f}"


print("bits/dim             bound              16 samples        gap expected: half the variance")
bits = {}
for kind in ("uniform", "variational"):
    flow, noise = new_models()
    noise = dq.UniformDequantizer() if kind == "uniform" else noise
    train_flow(flow, noise)
    bits[kind] = measure(flow, noise)
    print(f"{kind:12s}" + "   ".join(with_error(value) for value in bits[kind]))
gains = [a - b for a, b in zip(*bits.values(), strict=True)]
print(f"{'gain':12s}" + "   ".join(with_error(value) for value in gains[:2]))

# %% [markdown]
# The gain is more than a hundred of its standard errors. (They cover initial weights, batches and noise, not other photographs.) Part of it is only a tighter bound: with 16 samples a picture both models look better than by their own bounds, the uniform one more so, and about two thirds of the gain are left. Sixteen samples are still a bound, so a part of that may be tightness, too.
# Half the variance of $\log p(y + u)$ tells beforehand that there is a gap of this order.
#
# What has the noise learned? A level of 3 bits hides 32 grey values of the camera. **Predict first:** where the four neighbours are brighter than a pixel, will its noise be put near the upper end of the bin? It would be a guess at the lost bits.

# %%
with torch.no_grad():
    u, _ = noise.rsample(held_out, 1, generator=torch.Generator().manual_seed(3))  # (E, 1, B, 64)
u = u[0, 0].reshape(-1, 8, 8)
picture = held_out[0].reshape(-1, 8, 8)
centre, inner = picture[:, 1:-1, 1:-1], u[:, 1:-1, 1:-1]
around = (picture[:, :-2, 1:-1] + picture[:, 2:, 1:-1] + picture[:, 1:-1, :-2] + picture[:, 1:-1, 2:]) / 4
difference = around - centre
steps = torch.arange(-4, 5) / 4  # in quarters of a level
rows = [inner[difference == step].double() for step in steps]
fig, ax = plt.subplots(figsize=(8.6, 3.3))
middle = torch.stack([row.mean() for row in rows])
quarter = torch.stack([row.quantile(torch.tensor([0.25, 0.75])) for row in rows])
plots.curve(ax, steps, middle, low=quarter[:, 0], high=quarter[:, 1], marker="o", label="learned: mean, middle half")
for edge in (0.25, 0.75):
    ax.axhline(edge, color=plots.INK, linestyle="--", linewidth=1.4,
               label="middle half of uniform noise" if edge < 0.5 else None)
ax.set(title="Learned noise leans towards the neighbours", xlabel="mean of the four neighbours − own level (levels)",
       ylabel="noise u", ylim=(0, 1))
ax.legend(loc="upper left")
print("mean noise: " + "   ".join(f"{step:+.2f}: {value:.2f}" for step, value in zip(steps, middle, strict=True)))
plots.show(fig, alt=(
    "Mean and middle half of the learned noise against how much brighter the four neighbours are: both rise from the lower "
    "part of the bin to the upper part, in a band narrower than that of uniform noise"
))

# %% [markdown]
# *What you see:* yes. Where the neighbours are one level brighter the noise has its mean near 0.7, where they are darker near 0.3, and its middle half is narrower than that of uniform noise. By D5 it aims at $p(u \mid y)$: a flow that has seen smooth pictures finds a bright value in the bin more likely beside bright neighbours. The
# learned noise is a small super-resolution of grey values. It takes a network that *can* say this: dense couplings that read a summary of the whole picture (`VariationalDequantizer.coupling`) gain less at every depth, as the record below shows. D5 says what the best noise is, not that a network finds it.
#
# ### Recorded: from two bits to eight
#
# The same experiment with more steps, larger networks and 64 samples, at 2, 3, 4, 5 and 8 bits, and on the digits. It was **not** computed here. *Dense* is the gain of the dense couplings. *Frozen* is local noise learned for the uniform model, which stays as it is: it can win back a part of that model's gap and no more. *Gap* is what 64 samples
# find of it (a lower bound); half the variance, and the mean square slope over 24, predict it; $s$ is the scale that belongs to the slope.
#
# > **Finding D8.** Real pixel values are not spread evenly (section 1). A flow on photo patches gains from variational over uniform noise (Ho et al. 2019) at every number of bits, the more the coarser the levels. The gap of uniform noise on the patches is about half the variance of $\log p(y + u)$. The smooth
# > formula $1/(24 s^2)$ overestimates it, because the flow's own scale $s$ is below one level at every number of bits tried here.

# %%
record = reproduce.load("dequantization")
print(textwrap.fill(record.provenance(), 100), "\n")
print("                     bits/dim         gain over uniform noise, by                 gap, predicted by")
print("data         levels uniform learned  the bound  64 samples dense  frozen    gap  ½ var. slope²/24    s")
models = {(row["data"], row["num_levels"], row["model"]): row["test"] for row in record.tables["bits_per_dim"]}
for row in record.tables["gains"]:
    key = row["data"].removeprefix("photo "), row["num_levels"]
    pair = [models[row["data"], key[1], kind] for kind in ("uniform", "variational")]
    print(f"{key[0]:12s} {key[1]:6d} {pair[0]:7.3f} {pair[1]:7.3f} {row['gain']:6.4f} ± {row['gain_se']:.4f} {row['gain_iw']:7.4f} "
          f"{row['gain_dense']:7.4f} {row['gain_afterwards']:7.4f} {row['gap']:6.3f} {row['predicted_variance']:7.3f} "
          f"{row['predicted']:9.3f} {row['scale']:5.2f}")
gaussian_bits = {row["num_levels"]: row["gaussian"] for row in record.tables["data"]}[256]
print(f"\na Gaussian on 8-bit patches: {gaussian_bits:.2f} bits/dim, so a scale of about "
      f"{2**gaussian_bits / math.sqrt(2 * math.pi * math.e):.0f} levels")

# %%
fig, ax = plt.subplots(figsize=(8.6, 3.6))
rows = [row for row in record.tables["gains"] if row["data"] == "photo patches"]
depth = [math.log2(row["num_levels"]) for row in rows]
lines = {"gain": "local noise", "gain_iw": "local noise, by 64 samples", "gain_dense": "dense noise",
         "gain_afterwards": "local noise, frozen flow", "gap": "gap of uniform noise (at least)"}
for k, (key, label) in enumerate(lines.items()):
    values, errors = ([row[name] for row in rows] for name in (key, f"{key}_se"))
    style = {"color": plots.INK, "linestyle": "--"} if key == "gap" else {"color": plots.PALETTE[k]}
    ax.errorbar(depth, values, errors, marker="o", capsize=4, label=label, **style)
plots.reference_line(ax, y=0.0)
ax.set(title="Learned noise pays where levels are coarse", xlabel="bits of the photographs", ylabel="gain (bits/dim)")
ax.legend()
plots.show(fig, alt=(
    "Gains of learned noise against the number of bits, below them the gain of dense noise, and the gap of uniform noise: all "
    "fall with the number of bits, and local noise gains most at every depth"
))

# %% [markdown]
# *What you see:* learned noise gains at every depth, from 0.21 bits a dimension at two bits to 0.07 at eight, Flow++'s finding. (Three members of one run each, on the same patches; every gain is more than 80 of its standard errors.) On the frozen flow it wins back two thirds to nearly nine tenths of the gap that 64 samples find; trained together it gains more than that, because the flow changes
# along with its noise. What noise is tried matters: dense couplings are nearly as good at two and three bits and find next to nothing at eight, where the local one finds 0.07.
#
# The textbook formula is of little use here. A good flow is no single Gaussian: where a picture is smooth, its scale is a fraction of a level, even at 8 bits, $1/(24 s^2)$ is outside its range, and the gap does not fall by a factor of four with every bit but stays near 0.14 bits up to five and 0.09 at eight. Half the variance of $\log p(y + u)$ lies within a tenth of
# what 64 samples find.
#
# On the digits nothing is gained for certain: by the bound the jointly trained model even loses, with a large scatter (a few held-out pixels that no training digit resembles cost it much), and half the variance is more than twice the gap. All flows stay above the 2.44 bits of independent categorical pixels here: a smooth flow has to learn to be flat on $[0, 1)$ where a pixel is always zero, and
# these were stopped after 200 steps, because they overfit 1497 pictures (lecture 03's Glow gets 2.29).
#
# ### Beside the published table
#
# Flow++ made the gap between flows and autoregressive models smaller. Its table (Ho et al. 2019, table 1; bits/dim at 8 bits in colour):
#
# | kind | model | CIFAR-10 | ImageNet 32 × 32 | ImageNet 64 × 64 |
# |---|---|---|---|---|
# | flows and VAEs | RealNVP | 3.49 | 4.28 | – |
# | | Glow | 3.35 | 4.09 | 3.81 |
# | | IAF-VAE | 3.11 | – | – |
# | | **Flow++** | **3.08** | **3.86** | **3.69** |
# | autoregressive | Multiscale PixelCNN | – | 3.95 | 3.70 |
# | | PixelCNN | 3.14 | – | – |
# | | PixelRNN | 3.00 | 3.86 | 3.63 |
# | | Gated PixelCNN | 3.03 | 3.83 | 3.57 |
# | | PixelCNN++ (logistic mixture) | 2.92 | – | – |
# | | Image Transformer | 2.90 | 3.77 | – |
# | | PixelSNAIL | 2.85 | 3.80 | 3.52 |
#
# Three warnings for readers of such tables. Numbers of flows are *bounds* (of dequantized likelihoods), those of PixelCNN++ are exact. The bits are those of one data set at one depth: our 0.7 bits at three
# bits of grey are no better than their 3.08 at eight bits of colour, and no worse. The paper names uniform noise as one of three design choices that held flows back, at 8 bits as well, with a far larger flow than ours.
#
# ### Opt-in: CIFAR-10
#
# The slides show the histogram of CIFAR-10's pixel values. It is a download of 163 MB, so it is off; set `DOWNLOAD = True` to have it (the file is cached, and checked by its hash).

# %%
DOWNLOAD = False
if DOWNLOAD:
    cifar, _ = data.cifar10("test", dtype=torch.uint8)
    fig, ax = plt.subplots(figsize=(8.6, 3.2))
    for channel, values in zip(("red", "green", "blue"), cifar.reshape(-1, 3, 1024).unbind(1), strict=True):
        counts = torch.bincount(values.flatten().long(), minlength=256).double()
        counts = counts / counts.sum()
        bits = -torch.special.xlogy(counts, counts).sum() / math.log(2)
        ax.step(range(256), counts, where="mid", linewidth=1.2, label=f"{channel}: {bits:.2f} bits")
    ax.set(title="CIFAR-10", xlabel="level", ylabel="share of the pixels")
    ax.legend()
    plots.show(fig, alt="Shares of the 256 levels in the three channels of CIFAR-10's test pictures")
else:
    print("CIFAR-10 was not asked for: set DOWNLOAD = True")

# %% [markdown]
# *What you see* if you asked for it: compare with the photographs of section 1. Are there levels that stand out, and in which channel?
#
# ## Equation ↔ function
#
# | equation | function |
# |---|---|
# | $F(y + \frac12) - F(y - \frac12)$ with open edges, its logarithm (D2) | `logistic_mixture.discretized_logistic_log_prob` |
# | $\log \sum_k w_k P_k(y)$; for three channels (D3) | `logistic_mixture.discretized_logistic_mixture_log_prob`, `logistic_mixture.rgb_logistic_mixture_log_prob` |
# | samples and means of the same | `logistic_mixture.discretized_logistic_mixture_sample`, `logistic_mixture.discretized_logistic_mixture_mean` |
# | $\prod_j P(y_j \mid y_{<j})$ with a MADE or PixelCNN (D3) | `pixel_models.PixelModel` |
# | a pixel's distribution: softmax, or mixture of logistics (D3) | `pixel_models.CategoricalHead`, `pixel_models.LogisticMixtureHead` |
# | $\mathbb E_u \log p(y + u)$ (D4) | `dequantization.uniform_bound` |
# | $\mathbb E_q[\log p(y + u) - \log q(u \mid y)]$ (D5) | `dequantization.variational_bound`, `dequantization.VariationalDequantizer` |
# | noise that reads a pixel's neighbours (D8) | `dequantization.VariationalDequantizer.neighbourhood` |
# | $\log \frac1K \sum_k p(y + u_k) / q(u_k \mid y)$ (D6) | `dequantization.importance_weighted_bound` |
# | the same, exact for any $K$ (D6) | `bounds.exact_iwae_bound` |
# | bits per dimension, scale included (D7) | `dequantization.bits_per_dim` |
# | $y + u$ that never leaves its bin | `dequantization.dequantize` |
#
# ## Summary
#
# - A density at a point is no probability. In a family that can shrink onto points, maximum likelihood on whole numbers has no maximum.
# - Discretizing gives each level the mass of its bin; the outer bins are open, or the sum is not one. Compute the logarithm by the identity, not as a difference.
# - A mixture of logistics knows that levels are neighbours. It needs $3K$ numbers, did better than a softmax on digits in a short training, and paid a tenth of a bit for a level that was missing from the training data, where the softmax paid ten bits.
# - Uniform noise turns a density's likelihood into a bound of a discrete model's; the gap is a KL divergence, and a number.
# - Bits per dimension compare models only if the scale of the data is in them.
# - Noise can be learned: it is a latent variable, with a posterior to aim at. Uniform ≤ learned ≤ learned and weighted ≤ exact.
# - It pays most where levels are coarse, and only if the noise can see what it needs: a pixel's neighbours.
#
# ## References
#
# - L. Theis, A. van den Oord, M. Bethge. [A note on the evaluation of generative models](https://arxiv.org/abs/1511.01844), 2016.
# - T. Salimans, A. Karpathy, X. Chen, D. P. Kingma. [PixelCNN++](https://arxiv.org/abs/1701.05517), 2017.
# - J. Ho, X. Chen, A. Srinivas, Y. Duan, P. Abbeel. [Flow++](https://arxiv.org/abs/1902.00275), 2019.
# - E. Hoogeboom, T. S. Cohen, J. M. Tomczak. [Learning discrete distributions by dequantization](https://arxiv.org/abs/2001.11235), 2020.
# - E. Hoogeboom, J. W. T. Peters, R. van den Berg, M. Welling. [Integer discrete flows and lossless compression](https://arxiv.org/abs/1905.07376), 2019 (a flow without densities).
# - M. Germain, K. Gregor, I. Murray, H. Larochelle. [MADE](https://arxiv.org/abs/1502.03509), 2015.
# - A. van den Oord et al. [Conditional image generation with PixelCNN decoders](https://arxiv.org/abs/1606.05328), 2016.
# - L. Dinh, J. Sohl-Dickstein, S. Bengio. [Density estimation using Real NVP](https://arxiv.org/abs/1605.08803), 2017.
# - Y. Burda, R. Grosse, R. Salakhutdinov. [Importance weighted autoencoders](https://arxiv.org/abs/1509.00519), 2016.

# %%
check.progress()
