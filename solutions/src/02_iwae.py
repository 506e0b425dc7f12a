# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · IWAE: a tighter bound, and its price
#
# **How tight can the bound get, and what does the gradient pay for it?**
#
# | | |
# |---|---|
# | You need | lecture 01 (ELBO, reparametrised gradient, sticking the landing) |
# | Time | 90 minutes of reading and running, 60 minutes of exercises |
# | Library files | `bounds` · `gaussian` · `gaussian_toy` · `linear_gaussian` · `divergences` · `vae` · `train` |
#
# Run the notebook from the top (*Run → Run All Cells*): it takes less than a minute on two cores, downloads
# nothing, and needs none of your answers to the exercises.

# %% [markdown]
# ## Where we are
#
# A variational autoencoder has four weak points. Lecture 01 was about the first, this one is about the second.
#
# | weak point | what goes wrong | where we treat it |
# |---|---|---|
# | the decoder $p(x \mid z, \theta)$ | too weak: blurred samples; too strong: it ignores $z$ | 01 posterior collapse |
# | **the bound** | the ELBO is not $\log p(x)$ | **this lecture** |
# | the prior $p(z)$ | it leaves holes where no code lives | 05 ELBO surgery |
# | the posterior $q(z \mid x, \phi)$ | a diagonal Gaussian is rarely the truth | 03 and 06 flows |
#
# The gap of the ELBO is $\mathrm{KL}(q(z \mid x) \| p(z \mid x))$. One way to close it is a better $q$
# (lectures 03 and 06). The way of this lecture keeps $q$ and draws *more samples* from it: the
# **importance-weighted autoencoder** (IWAE, Burda et al. 2016).
#
# ## After this lecture you can
#
# 1. estimate $p(x)$ without bias by importance sampling, and say why its logarithm is biased low (I1);
# 2. prove that the bound $\mathcal L_K$ rises with $K$, and find the mistake in a well-known proof (I2);
# 3. say which posterior the bound uses implicitly, and what $\mathcal L_K$ is *not* (I4);
# 4. predict the gap of $\mathcal L_K$ from one number, and name the case in which no $1/K$ law holds (I3);
# 5. explain how $K$ samples share one gradient (I5), and why a tighter bound can starve the encoder (I6);
# 6. repair that with the doubly reparametrised gradient, and say for which parameters it is right (I7);
# 7. use $\mathcal L_{5000}$ as a yardstick, and read its warning light, the effective sample size (I8).

# %%
import copy
import math
import time

import matplotlib.pyplot as plt
import torch
from torch.distributions import MultivariateNormal, Normal

from dgm_course import bounds, check, data, divergences, gaussian, nets, numerics, plots, vae
from dgm_course.demos import gradient_noise, importance_bound
from dgm_course.gaussian_toy import GaussianToy
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.train import fit, fit_many, minibatch

plots.use_style()
torch.set_default_dtype(torch.float64)  # the oracles are exact to 1e-10; digits run in float32 below
torch.set_num_threads(1)  # many small products: a second thread only gets in the way

# %% [markdown]
# ## 1 · An unbiased estimate of $p(x)$
#
# Write the evidence as an average over $q$, here called the *proposal*:
# $p(x) = \int p(x, z)\,dz = \mathbb E_{q}\,w(z)$ with the **importance weight**
# $w(z) = p(x, z) / q(z \mid x)$. Draw $K$ samples, average their weights, and you have an estimate of the
# one number that a VAE cannot compute.
#
# > **Theorem I1.** Let $q(z \mid x) > 0$ wherever $p(x, z) > 0$, let $z_1, \dots, z_K \sim q(z \mid x)$ be
# > independent and $w_k = p(x, z_k) / q(z_k \mid x)$. Then
# > $$\mathbb E\left[\tfrac1K \textstyle\sum_k w_k\right] = p(x), \qquad \mathcal L_K = \mathbb E \log \left(\tfrac1K \textstyle\sum_k w_k\right) \le \log p(x).$$
# > The average is unbiased for $p(x)$; its logarithm is biased low for $\log p(x)$, strictly unless the
# > average is constant.
#
# <details><summary>Proof</summary>
#
# $\mathbb E_q w = \int q(z \mid x)\,\frac{p(x, z)}{q(z \mid x)}\,dz = p(x)$, where the assumption guarantees
# that the integral misses no mass of the joint; an average of $K$ such weights has the same mean. The
# logarithm is strictly concave, so Jensen's inequality gives
# $\mathbb E \log \frac1K\sum_k w_k \le \log \mathbb E \frac1K\sum_k w_k = \log p(x)$.
# </details>
#
# Everything is a logarithm in practice: $\log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)$. For a
# picture it is a number like $-200$ or $-2000$, whose exponential is zero in float32, or in any float.
#
# We check both halves on the exact model of lecture 01, where $\log p(x)$ is known. The proposal is off on
# purpose: its mean is 0.3 away from the posterior's, its variance twice too large.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
model = LinearGaussian(
    W=torch.randn(5, 2, generator=generator), b=torch.zeros(5), sigma2=torch.tensor(0.5)
)
x, _ = model.sample(1, generator=generator)
post_mean, post_cov = (value[0] for value in model.posterior(x))
q = MultivariateNormal(post_mean + 0.3, 2 * post_cov)
log_px = model.log_prob(x).item()

averages = {}
for K in (1, 10, 100):  # fresh samples for each K: 400 000 weights in groups of K
    z = q.mean + torch.randn(400_000, 2, generator=generator) @ q.scale_tril.T
    log_w = torch.cat([bounds.elbo(model.log_joint(x, part), q.log_prob(part)) for part in z.split(100_000)])
    averages[K] = bounds.iwae_bound(log_w.reshape(K, -1)) - log_px  # log(average / p(x))
    print(f"K = {K:3d}   E[average] / p(x) = {averages[K].exp().mean():.2f}   "
          f"E[log average] - log p(x) = {averages[K].mean():.2f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
for (K, log_ratio), color in zip(averages.items(), plots.PALETTE, strict=False):
    style = dict(density=True, histtype="step", linewidth=2.2, color=color)
    axes[0].hist(log_ratio.exp(), bins=torch.linspace(0, 7.2, 73), label=f"K = {K}", **style)
    axes[1].hist(log_ratio, bins=torch.linspace(-8, 2, 81), **style)
    axes[1].plot(log_ratio.mean(), 0, "^", color=color, markersize=11, clip_on=False, zorder=5)
plots.reference_line(axes[0], "p(x)", x=1.0)
plots.reference_line(axes[1], "log p(x)", x=0.0)
axes[0].set(title="The average weight is unbiased", xlabel="average of K weights / p(x)", ylabel="density")
axes[1].set(title="Its logarithm is biased low", xlabel="log average − log p(x)  (nats)", ylim=(0, 3.3))
axes[0].legend()
plots.show(fig, alt=(
    "Histograms of the average of 1, 10 and 100 weights: all balance at p(x); their logarithms have means "
    "below log p(x), closer with larger K"
))

# %% [markdown]
# *What you see:* on the left all three histograms balance at 1, however skewed they are. On the right the
# triangles mark the means: each lies below $\log p(x)$, and the more samples, the closer (a single weight has a
# long tail to the left). The bias comes from
# the *spread* of the average, so averaging more weights removes it.
#
# ### Exercise 1 · Log-weights (warm-up)
#
# For the model $p(z) = \mathcal N(0, I)$, $p(x \mid z) = \mathcal N(z, I)$ and the encoder
# $q(z \mid x) = \mathcal N(\texttt{q\_mean}, \mathrm{diag}\,e^{\texttt{q\_log\_var}})$, compute $\log w_k$ for
# $K$ given samples of each $x$. `q_log_var` is the logarithm of the *variance*. Keep every constant. You may
# use `gaussian.gaussian_log_prob`.

# %% exercise="log_weights"
def log_weights(
    x: torch.Tensor, z: torch.Tensor, q_mean: torch.Tensor, q_log_var: torch.Tensor
) -> torch.Tensor:
    """log p(x, z_k) - log q(z_k | x) in nats: (B, d), (K, B, d), (B, d), (B, d) -> (K, B)."""
    ### BEGIN SOLUTION
    log_prior = gaussian.gaussian_log_prob(z, 0.0, 0.0)  # (K, B)
    log_likelihood = gaussian.gaussian_log_prob(x, z, 0.0)
    return log_prior + log_likelihood - gaussian.gaussian_log_prob(z, q_mean, q_log_var)
    ### END SOLUTION

# %% check="log_weights" points=1
check.log_weights(log_weights)
### BEGIN HIDDEN TESTS
check.hidden("log_weights", log_weights, seed=4721)
print("hidden tests ran to the end: log_weights 9d41")
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · The bound rises with K
#
# So $\mathcal L_K$ deserves the name of a bound. $K$ samples of the ELBO average the logarithms,
# $\frac1K\sum_k \log w_k$; $\mathcal L_K$ takes the logarithm of the average. For $K = 1$ they are the same.
#
# > **Theorem I2.** Let $\mathcal L_1$ be finite. For $K \ge M \ge 1$
# > $$\log p(x) \ge \mathcal L_K \ge \mathcal L_M, \qquad \mathcal L_1 = \mathrm{ELBO}.$$
#
# <details><summary>Proof</summary>
#
# The derivation is written exercise W1, below. Where to begin: the average of $K$ numbers is also the average,
# over all subsets of $M$ *distinct* indices, of the subsets' averages.
# </details>
#
# Here is a setting in which both sides are exact: one latent dimension, posterior $\mathcal N(0, 1)$, proposal
# $\mathcal N(0.7, 1.2^2)$, all numbers relative to $\log p(x)$. The left column integrates the definition of
# $\mathcal L_K$ over all $K$ samples at once, a quadrature in $K$ dimensions. The right one never sees more
# than one sample: with $S = \frac1K\sum_k w_k / p(x)$ it uses
# $$\log S = \int_0^\infty \frac{e^{-t} - e^{-tS}}{t}\,dt, \qquad \mathbb E\,e^{-tS} = \left(\mathbb E_q\, e^{-t w / K p(x)}\right)^K,$$
# which turns *any* $K$ into a one-dimensional integral.

# %% tags=["nbval-check-output"]
grid, weights = numerics.gauss_legendre(-14.0, 14.0, 1000)
grid = grid[:, 0]
posterior = Normal(torch.tensor(0.0), torch.tensor(1.0))
proposal = Normal(torch.tensor(0.7), torch.tensor(1.2))
log_p, log_q = posterior.log_prob(grid), proposal.log_prob(grid)

for K, num_nodes in ((1, 100), (2, 100), (3, 80), (4, 32)):
    nodes, mass = numerics.gauss_hermite(num_nodes, num_dims=K)  # all K samples at once
    samples = proposal.mean + proposal.stddev * nodes
    average = bounds.iwae_bound(posterior.log_prob(samples) - proposal.log_prob(samples), dim=1)
    exact = bounds.exact_iwae_bound(log_p, log_q, weights, K)
    print(f"L_{K} - log p(x) = {(mass * average).sum():.5f} = {exact:.5f}")

# %% [markdown]
# ### The slide's proof, and the number that refutes it
#
# **The slide of the lecture series** proves $\mathcal L_K \ge \mathcal L_M$ by drawing $M$ indices
# $k_1, \dots, k_M$ uniformly from $1, \dots, K$, *independently*. The first step is right: their average has
# the same mean. So is Jensen's inequality. The last step claims that the inner average,
# $\mathbb E \log \frac1M \sum_m w_{k_m}$, is $\mathcal L_M$. It is not. Take $K = 4$ and $M = 2$: with probability
# $1/4$ both draws hit the same index, and then they are one sample, not two.

# %% tags=["nbval-check-output"]
nodes, mass = numerics.gauss_hermite(28, num_dims=4)  # four samples, by quadrature
samples = proposal.mean + proposal.stddev * nodes
log_weight = posterior.log_prob(samples) - proposal.log_prob(samples)  # (N, 4)


def inner_average(pairs: list[tuple[int, int]]) -> torch.Tensor:
    """E log of the mean weight of a pair of indices, averaged over the pairs."""
    values = torch.stack([bounds.iwae_bound(log_weight[:, list(pair)], dim=1) for pair in pairs])
    return (mass * values.mean(dim=0)).sum()


everything = [(i, j) for i in range(4) for j in range(4)]
L = dict(zip((1, 2, 4), bounds.exact_iwae_bound(log_p, log_q, weights, [1, 2, 4]), strict=True))
print(f"indices with replacement (slide)  {inner_average(everything):.5f}")
print(f"3/4 L_2 + 1/4 L_1                 {0.75 * L[2] + 0.25 * L[1]:.5f}")
print(f"distinct indices                  {inner_average([(i, j) for i, j in everything if i != j]):.5f}")
print(f"L_2                               {L[2]:.5f}      L_4 {L[4]:.5f}")

# %% [markdown]
# The claim survives, the proof does not: with replacement it shows
# $\mathcal L_4 \ge \frac34 \mathcal L_2 + \frac14 \mathcal L_1$, which is less than what it promises.
#
# ### Exercise W1 · Repair the proof (written)
#
# Prove Theorem I2. Say how the $M$ indices are drawn, where that matters, and where Jensen's inequality is
# used. Why is $\log p(x) \ge \mathcal L_K$ a separate step?

# %% [markdown] written="I2" points=4
# ### BEGIN SOLUTION
# **Model answer.** Let $I \subset \{1, \dots, K\}$ be a subset of $M$ *distinct* indices, uniform among all
# subsets of that size and independent of the samples. Each index lies in $I$ with probability $M/K$, so for
# any numbers $w_1, \dots, w_K$
# $$\mathbb E_I\left[\frac1M \sum_{k \in I} w_k\right] = \frac1M \sum_{k=1}^K \frac MK\, w_k = \frac1K \sum_{k=1}^K w_k.$$
# Insert this into $\mathcal L_K$ and apply Jensen's inequality to the expectation over $I$, for fixed samples:
# $$\mathcal L_K = \mathbb E_{z}\log \mathbb E_I\left[\frac1M\sum_{k \in I} w_k\right] \ge \mathbb E_z \mathbb E_I \log \left[\frac1M\sum_{k \in I} w_k\right] = \mathbb E_I\, \mathbb E_z \log \left[\frac1M\sum_{k \in I} w_k\right].$$
# The order may be exchanged, since $I$ takes finitely many values and the inner expectations are finite
# ($\mathcal L_1 > -\infty$ bounds them from below: the logarithm of a mean is at least the mean of the
# logarithms; and $\log p(x)$ from above). Now fix $I$. Because its indices are distinct, the $z_k$, $k \in I$,
# are $M$ independent samples of $q$, and the inner expectation is $\mathcal L_M$, whatever $I$ is. Hence
# $\mathcal L_K \ge \mathcal L_M$. With replacement this last step fails: a repeated index gives fewer than $M$
# independent samples. For $M = 2$ the right side is a mixture of $\mathcal L_1$ and $\mathcal L_2$; for $M \ge 3$
# averages with unequal weights come in as well.
#
# The upper bound needs an argument of its own, as the first one only compares bounds with each other:
# $\mathcal L_K = \mathbb E \log \frac1K\sum_k w_k \le \log \mathbb E \frac1K\sum_k w_k = \log p(x)$, by Jensen's
# inequality and Theorem I1. For $K = 1$, $\mathcal L_1 = \mathbb E_q \log w$ is the ELBO by definition.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: the average over subsets of $M$ distinct indices equals the average of all $K$ weights, with the
#   reason (each index is in the subset with probability $M/K$).
# - 1 point: Jensen's inequality, applied to the expectation over the *indices* for fixed samples, in the right
#   direction.
# - 1 point: why the inner expectation is $\mathcal L_M$, using that the indices are distinct (and so the
#   samples independent); names what goes wrong with replacement.
# - 1 point: $\mathcal L_K \le \log p(x)$ as a second use of Jensen's inequality, with the unbiasedness of the
#   average weight.
# ### END MARK SCHEME

# %% [markdown]
# ### Exercise 2 · The bound
#
# One draw of the bound for each $x$: the logarithm of the average of the $K$ weights, from their logarithms.
# It has to survive log-weights of $-1000$ and of $+1000$.

# %% exercise="iwae_bound"
def iwae_bound(log_w: torch.Tensor) -> torch.Tensor:
    """log (1/K) sum_k w_k in nats, one value for each x: (K, B) -> (B,)."""
    ### BEGIN SOLUTION
    return torch.logsumexp(log_w, dim=0) - math.log(log_w.shape[0])
    ### END SOLUTION

# %% check="iwae_bound" points=2
check.iwae_bound(iwae_bound)
### BEGIN HIDDEN TESTS
check.hidden("iwae_bound", iwae_bound, seed=4722)
print("hidden tests ran to the end: iwae_bound 1e8a")
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · The posterior behind the weights
#
# Which approximate posterior does $\mathcal L_K$ use? Draw $z_1, \dots, z_K \sim q$ and keep *one* of them,
# chosen with probability proportional to its weight. The law of the survivor is a new density, richer than
# $q$: it needs no new parameter, only more samples.
#
# > **Theorem I4.** Let $q(z \mid x)$ and $p(x, z)$ be positive for the same $z$, and $\mathcal L_1$ finite. For given
# > $z_2, \dots, z_K$ let the importance-weighted ($IW$) and the expected ($EW$) posterior be
# > $$\tilde q_{IW}(z \mid z_{2:K}) = \frac{p(x, z)}{\frac1K\left(w(z) + \sum_{k=2}^K w_k\right)}, \qquad q_{EW}(z) = \mathbb E_{z_2, \dots, z_K \sim q}\; \tilde q_{IW}(z \mid z_{2:K}).$$
# > $q_{EW}$ is a density, that of the survivor; $\tilde q_{IW}$ is in general not normalised for $K > 1$. With
# > $\mathrm{ELBO}(\tilde q) = \int \tilde q \log (p(x, z) / \tilde q)\,dz$,
# > $$\mathcal L_K = \mathbb E_{z_2, \dots, z_K}\, \mathrm{ELBO}(\tilde q_{IW}) \le \mathrm{ELBO}(q_{EW}) \le \log p(x).$$
# > The first inequality is strict unless $\tilde q_{IW}$ is the same for almost all $z_{2:K}$.
#
# <details><summary>Proof</summary>
#
# By symmetry all $K$ samples contribute alike to $\mathbb E \log \bar w$ with $\bar w = \frac1K\sum_k w_k$.
# $\mathbb E_{z_1}$ of $\tilde q_{IW}(z_1)/q(z_1) = w_1 / \bar w$, averaged over the samples, is
# $\mathbb E\,\frac1K\sum_k w_k/\bar w = 1$, so $q_{EW}$ integrates to one, and
# $\mathbb E \log \bar w = \mathbb E\,\frac{w_1}{\bar w} \log \bar w$ (symmetrise: $\frac1K \sum_k w_k / \bar w = 1$).
# The last expression is $\mathbb E_{z_{2:K}} \int \tilde q_{IW}(z) \log \frac{p(x, z)}{\tilde q_{IW}(z)}\,dz$,
# because $p(x,z)/\tilde q_{IW} = \bar w$. The map $\tilde q \mapsto \int \tilde q \log (p/\tilde q)$ is strictly
# concave, also for densities that are not normalised: Jensen gives the first inequality, and C1 of lecture 01
# the second, as $q_{EW}$ is normalised.
# </details>
#
# **The slide of the lecture series says** that $\mathcal L(q^*) = \mathcal L_K(q)$ for $q^* = q_{EW}$. In the
# setting of section 2 with $K = 2$ both sides are integrals over the plane:

# %% tags=["nbval-check-output"]
others = (log_p - log_q)[None, None]  # log w(z_2): (K - 1, 1, z_2)
log_q_iw = bounds.importance_weighted_log_prob(log_p[:, None], log_q[:, None], others)  # (z, z_2)
q_iw, mass = log_q_iw.exp(), weights * log_q.exp()  # mass of z_2 ~ q
expected_elbo = weights @ (q_iw * (log_p[:, None] - log_q_iw)) @ mass
q_ew = q_iw @ mass  # the expected posterior, by averaging over z_2


def elbo_of(log_density: torch.Tensor) -> torch.Tensor:
    """ELBO of a density on the grid, relative to log p(x)."""
    return -divergences.kl_divergence(log_density, log_p, weights)


print(f"q_EW integrates to                {(weights * q_ew).sum():.6f}")
print(f"L_2 (section 2)                   {L[2]:.5f}")
print(f"E ELBO(q_IW), not normalised      {expected_elbo:.5f}")
print(f"ELBO(q_EW)                        {elbo_of(q_ew.log()):.5f}   the slide's claim: equal to L_2")
library = bounds.implicit_posterior_log_prob(log_p, log_q, weights, 2)  # no plane: the integral of section 2
print(f"the same from the library         {elbo_of(library):.5f}")

# %% [markdown]
# The slide's equality is off by 0.06 nats, half of the gap. The right reading is better news: the posterior
# that you can actually *sample* is closer to the truth than the bound says.
#
# In two dimensions we can look at it. The latent is $z = (z_1, z_2)$, the data point $x = 1$ comes from
# $p(x \mid z) = \mathcal N(z_2 + z_1^2 / 2,\ 0.3^2)$: the posterior is a bent ridge, and $q$ is the diagonal
# Gaussian with the best ELBO. `implicit_posterior_log_prob` computes $q_{EW}$ without sampling, for any $K$.
#
# **Predict first:** which shape will $q_{EW}$ have for $K = 10$: wider than $q$, bent, or bent with a hole?

# %%
axis, axis_weights = numerics.gauss_legendre(-5.0, 5.0, 110)
axis = axis[:, 0]
nodes = torch.cartesian_prod(axis, axis)  # (12100, 2): z1, z2
area = torch.outer(axis_weights, axis_weights).flatten()


def log_joint(z: torch.Tensor) -> torch.Tensor:
    """log p(x = 1, z): a standard normal prior and a bent likelihood, (..., 2) -> (...)."""
    likelihood = Normal(z[..., 1] + 0.5 * z[..., 0] ** 2, 0.3).log_prob(torch.ones(()))
    return gaussian.gaussian_log_prob(z, 0.0, 0.0) + likelihood


# %%
q_mean, q_log_var = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
eps, mass = numerics.gauss_hermite(24, num_dims=2)


def negative_elbo(step: int, generator: torch.Generator) -> torch.Tensor:
    """-E_q[log p(x, z)] - H(q), by quadrature."""
    expected = (mass * log_joint(q_mean + (0.5 * q_log_var).exp() * eps)).sum()
    return -expected - gaussian.gaussian_entropy(q_log_var)


fit(negative_elbo, [q_mean, q_log_var], steps=300, lr=0.05, lr_decay_from=0.5, progress=False)
print("best diagonal Gaussian: mean", q_mean.detach().numpy().round(2),
      "standard deviations", (0.5 * q_log_var).exp().detach().numpy().round(2))

# %%
log_joint_grid = log_joint(nodes)
log_q_grid = gaussian.gaussian_log_prob(nodes, q_mean, q_log_var).detach()
evidence = torch.logsumexp(log_joint_grid + area.log(), dim=0)
given = (log_joint_grid, log_q_grid, area)
pictures = {f"q_EW, K = {K}": bounds.implicit_posterior_log_prob(*given, K) for K in (1, 10, 100)}
pictures["posterior p(z | x)"] = log_joint_grid - evidence

fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.9), sharex=True, sharey=True)
for ax, (name, log_density) in zip(axes, pictures.items(), strict=True):
    density = log_density.exp().reshape(110, 110).T  # rows z2, columns z1
    ax.pcolormesh(axis.numpy(), axis.numpy(), density.numpy(), vmin=0, shading="gouraud")
    kl = divergences.kl_divergence(log_density, pictures["posterior p(z | x)"], area)
    ax.set(title=name, xlabel="z₁", xlim=(-2.9, 2.9), ylim=(-2.9, 2.4), aspect="equal")
    ax.text(0.04, 0.04, f"KL {kl:.3f}", color="white", transform=ax.transAxes)
    ax.grid(False)
axes[0].set_ylabel("z₂")
plots.show(fig, alt=(
    "Densities over two latents: the Gaussian q for K = 1, a bent one for K = 10, for K = 100 the bent ridge "
    "of the posterior but for its far ends"
))

# %% [markdown]
# *What you see* (each panel on a colour scale of its own): $K = 1$ is $q$ itself. With $K = 10$ the density bends, with
# $K = 100$ it follows the ridge, and the number in the corner, $\mathrm{KL}(q_{EW} \| p(z \mid x))$ in nats, falls from 0.55 to 0.17. $q$ supplies the
# candidates and the weights choose among them. What $q$ hardly ever proposes, no weight brings back: the far ends
# of the ridge come last.
#
# ### Exercise 3 · Normalised weights
#
# The probability with which each sample survives: $\hat w_k = w_k / \sum_j w_j$, separately for each $x$.
# Same caution as before: log-weights may be huge.

# %% exercise="normalized_weights"
def normalized_weights(log_w: torch.Tensor) -> torch.Tensor:
    """w_k / sum_j w_j for each x: (K, B) -> (K, B)."""
    ### BEGIN SOLUTION
    return torch.softmax(log_w, dim=0)
    ### END SOLUTION

# %% check="normalized_weights" points=1
check.normalized_weights(normalized_weights)
### BEGIN HIDDEN TESTS
check.hidden("normalized_weights", normalized_weights, seed=4723)
print("hidden tests ran to the end: normalized_weights 60bf")
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · How fast the gap closes
#
# > **Theorem I3.** If $\mathcal L_1 > -\infty$, then $\mathcal L_K \to \log p(x)$ as $K \to \infty$. If
# > moreover $\mathbb E_q w^2 < \infty$ (and $\mathcal L_1$ is finite), then
# > $$K\left(\log p(x) - \mathcal L_K\right) \to \tfrac12\, \chi^2\left(p(z \mid x) \,\|\, q\right), \qquad \chi^2(p \| q) = \mathbb E_q\left[(p/q)^2\right] - 1.$$
# > For a posterior of precision (inverse variance) $a$ and a proposal of precision $b$, whose means differ by
# > $\delta$, in one dimension: $\chi^2 + 1 = \frac{a}{\sqrt{b(2a - b)}} \exp \frac{a b \delta^2}{2a - b}$, finite if and only if
# > $b < 2a$.
#
# <details><summary>Proof</summary>
#
# Let $S_K$ be the average of $K$ weights divided by $p(x)$, so that $\mathbb E S_K = 1$. By the strong law
# $S_K \to 1$ almost surely and in mean; no bound on $w$ is needed for that. Since
# $\frac1K\sum_k \log (w_k/p(x)) \le \log S_K \le S_K - 1$, the logarithms lie between two sequences that
# converge in mean, hence $\mathbb E \log S_K \to 0$.
#
# For the rate write $\log p(x) - \mathcal L_K = \mathbb E f(S_K)$ with $f(s) = s - 1 - \log s \ge 0$. By the
# central limit theorem $K (S_K - 1)^2$ tends in law to $\chi^2 N^2$ with $N$ standard normal, and its mean *is*
# $\chi^2$ for every $K$: so it is uniformly integrable. Where $S_K \ge \frac12$, $f(s) \le (s - 1)^2$ and
# $f(s) = \frac12 (s-1)^2 (1 + o(1))$, so this part of $K\,\mathbb E f(S_K)$ tends to $\chi^2/2$. The event
# $S_K < \frac12$ has a probability that falls exponentially in $K$, also given one of the weights (a sum of
# non-negative variables with a variance); and there $f(S_K) \le -\frac1K\sum_k \log (w_k/p(x))$, whose
# expectation over the event is at most $\mathbb E |\log (w_1/p(x))|$, finite, times such a probability. The last
# formula is a Gaussian integral.
# </details>
#
# **The slide's condition is another one,** that the weight is *bounded*. That is more than is needed. For Gaussians
# it means $b < a$, a proposal wider than the posterior. Below are three proposals for a posterior
# $\mathcal N(0, 1)$, all with the right mean: one with bounded weights ($b = 0.6$), one with unbounded weights of
# finite variance ($b = 1.5$), one whose weights have no variance ($b = 3$). And it is less than is needed: a weight
# that is *zero* with positive probability is bounded, but then all $K$ of them may be zero, and
# $\mathcal L_K = -\infty$ for every $K$. Every number below is an exact integral.

# %% tags=["nbval-check-output"]
counts = torch.logspace(0, 5, 26).round()
precisions = (0.6, 1.5, 3.0)
gaps, chi2 = {}, {}
print("K * gap at K =     1       10      100     1000    10000   chi^2 / 2")
for b in precisions:
    log_qb = Normal(torch.tensor(0.0), torch.tensor(b**-0.5)).log_prob(grid)
    gaps[b] = -bounds.exact_iwae_bound(log_p, log_qb, weights, counts)  # log p(x) - L_K
    chi2[b] = gaussian.gaussian_chi2(torch.zeros(1), torch.zeros(1), 0.0, -math.log(b)).item()
    at = {int(K): gap.item() for K, gap in zip(counts, gaps[b], strict=True)}
    scaled = "".join(f"{K * at[K]:9.4f}" for K in (1, 10, 100, 1000, 10_000))
    print(f"b = {b}       {scaled}   {chi2[b] / 2:.4f}")
half = torch.where((grid > 0) & (grid < 1), 0.0, -math.inf)  # p(z | x) uniform on [0, 1]
wide = torch.where(grid.abs() < 1, -math.log(2.0), -math.inf)  # q uniform on [-1, 1]: w is 0 or 2 p(x)
wide_mass = wide - torch.logsumexp(wide + weights.log(), dim=0)
nothing = bounds.exact_iwae_bound(half, wide_mass, weights, [1, 1000])
print(f"weights 0 or 2 p(x): L_1 and L_1000 are {nothing.tolist()}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.6))
plots.log_axes(ax)
for b, color in zip(precisions, plots.PALETTE, strict=False):
    ax.plot(counts, gaps[b], color=color, label=f"b = {b}: exact")
    if math.isfinite(chi2[b]):
        law = dict(linestyle=(0, (2, 2)), linewidth=1.6, label=f"b = {b}: χ²/2K")
        ax.plot(counts, bounds.iwae_gap(chi2[b], counts), color=color, **law)
ax.plot(counts, 0.5 * counts**-0.5, color=plots.INK, linestyle=(0, (4, 2)), linewidth=1.6)
ax.annotate("slope −1/2", (2e3, 0.5 * 2e3**-0.5), (4, 6), textcoords="offset points", color=plots.INK)
ax.set(xlabel="number of samples K", ylabel="log p(x) − L_K  (nats)",
       title="A 1/K law, where the weights have a variance")
ax.legend()
plots.show(fig, alt=(
    "Exact gaps against K on log axes: for b = 0.6 and 1.5 they fall onto chi^2/2K, for b = 3 the slope "
    "tends to -1/2"
))

# %% [markdown]
# *What you see:* the dotted lines are $\chi^2/2K$, one number known before any bound is computed. The first
# two proposals meet theirs, the second without a bounded weight. For $b = 3$ there is no such number: the gap
# falls like $K^{-a/(b-a)} = K^{-1/2}$ (up to logarithms), so that ten times the samples buy only half a digit.
# A proposal that is too *narrow* is the expensive mistake. Convergence itself needs a finite $\mathcal L_1$, no more
# and no less: the last printed line is a bounded weight for which nothing converges.
#
# ### Exercise 4 · Predict the gap
#
# In practice $\chi^2$ is estimated from $N$ weights of $q$: $\hat\chi^2$ is their mean square, divided by the
# square of their mean, minus 1 (both means with $1/N$). Return the predicted gap of $\mathcal L_K$, for each
# $x$. Log-weights may be huge.

# %% exercise="iwae_gap"
def iwae_gap(log_w: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Predicted log p(x) - L_K in nats, K = num_samples, from N log-weights of each x: (N, B) -> (B,)."""
    ### BEGIN SOLUTION
    shares = torch.softmax(log_w, dim=0)  # w_n / sum of all: any constant factor of the weights cancels
    count = log_w.shape[0]
    chi2 = count * ((shares - 1 / count) ** 2).sum(dim=0)  # their variance over their mean squared
    return chi2 / (2 * num_samples)
    ### END SOLUTION

# %% check="iwae_gap" points=2
check.iwae_gap(iwae_gap)
### BEGIN HIDDEN TESTS
check.hidden("iwae_gap", iwae_gap, seed=4724)
print("hidden tests ran to the end: iwae_gap a73c")
### END HIDDEN TESTS

# %% [markdown]
# ### Live: K, and where the proposal sits
#
# A posterior with two modes, of which a Gaussian $q$ covers one or both. The *effective sample size*
# $\left(\sum_k w_k\right)^2 / \sum_k w_k^2$, between 1 and $K$, says how many equal weights would be as good (more in
# section 9). **Try:** make $q$ narrow and put it on the left mode, then raise $K$. When does the effective sample
# size warn you, and when does it not?

# %%
importance_bound.show()

# %% [markdown]
# ## 5 · K samples share one gradient
#
# > **Theorem I5.** Let $w_k > 0$ be differentiable. With the normalised weights
# > $\hat w_k = w_k / \sum_j w_j$
# > $$\nabla \log \left(\tfrac1K \textstyle\sum_k w_k\right) = \sum_k \hat w_k\, \nabla \log w_k.$$
#
# <details><summary>Proof</summary>
#
# $\nabla \log \sum_k w_k = \sum_k \nabla w_k / \sum_j w_j$ and $\nabla w_k = w_k \nabla \log w_k$.
# </details>
#
# Compare with $K$ samples of the ELBO, where each gets the weight $1/K$. Here the samples compete: one good
# sample may take the whole gradient, and a single heavy weight makes the step as noisy as $K = 1$.

# %% tags=["nbval-check-output"]
noise = torch.Generator().manual_seed(1)
theta = torch.randn(3, generator=noise).requires_grad_()
inputs = torch.randn(5, 3, generator=noise)  # K = 5 samples, each with a log-weight 2 sin(a . theta)


def log_weight_of(row: torch.Tensor) -> torch.Tensor:
    """A differentiable log-weight of one sample."""
    return 2 * torch.sin(row @ theta)


samples_log_w = torch.stack([log_weight_of(row) for row in inputs])
each = torch.stack([torch.autograd.grad(log_weight_of(row), theta)[0] for row in inputs])  # (5, 3)
shared = bounds.iwae_gradient(samples_log_w.detach(), each)
(through,) = torch.autograd.grad(bounds.iwae_bound(samples_log_w), theta)
print("normalised weights       ", [round(v, 3) for v in bounds.normalized_weights(samples_log_w).tolist()])
print("weighted sum of gradients", [round(v, 6) for v in shared.tolist()])
print("autograd of the bound    ", [round(v, 6) for v in through.tolist()])

# %% [markdown]
# ## 6 · Tighter, and worse to train on
#
# A stochastic gradient is useful if its mean stands out from its noise. For an estimator $\Delta$ that averages
# $M$ independent draws (*outer samples*) of the gradient with $K$ *inner samples*, the **signal-to-noise ratio** is
# $\mathrm{SNR} = |\mathbb E \Delta| / \sigma(\Delta)$, entry by entry.
#
# > **Theorem I6** (Rainforth et al. 2018). Let the weights and their derivatives have the moments that a
# > second-order expansion needs, and let $\nabla_\theta \log p(x)$ and $\nabla_\phi\,\chi^2(p(z \mid x) \| q)$ not be
# > zero. Once $K \gg \chi^2$,
# > $$\mathrm{SNR}(\theta) \text{ grows as } \sqrt{MK}, \qquad \mathrm{SNR}(\phi) \text{ falls as } \sqrt{M/K}.$$
# > Near the optimum of $\phi$ this holds from small $K$ on; at the optimum $\phi$ has no signal at all.
#
# <details><summary>Proof idea</summary>
#
# Let $\bar w$ be the average weight; $\log \bar w = \log p(x) + (S - 1) - \frac12 (S-1)^2 + \dots$ with $S = \bar w/p(x)$. The noise comes
# from the linear term, $\nabla S$ around its mean: an average of $K$ independent terms, $\sigma = O(1/\sqrt K)$,
# for $\theta$ and $\phi$ alike. The signal differs. For $\theta$ it tends to $\nabla_\theta \log p(x) \neq 0$,
# so the ratio is $O(\sqrt K)$. For $\phi$, $\log p(x)$ and $\mathbb E S = 1$ do not depend on $q$; what is left
# is $-\frac12\nabla_\phi \mathrm{Var}(S) = -\nabla_\phi\,\chi^2/2K$: signal $O(1/K)$, ratio $O(1/\sqrt K)$.
# $M$ averages divide $\sigma$ by $\sqrt M$ and leave the mean. The better the bound, the less it depends on
# $q$; that is its whole point, and its price.
# </details>
#
# We measure it on the paper's own example, where everything is Gaussian: $p(z) = \mathcal N(\mu, I)$,
# $p(x \mid z) = \mathcal N(z, I)$, $q(z \mid x) = \mathcal N(Ax + b, \frac23 I)$ in 20 dimensions, with
# $\theta = \mu$, $\phi = (A, b)$ and an encoder mean that is off by 0.01 in each dimension. At one $x$ the gradient
# of $A$ is that of the mean times $x$, so the mean's gradient stands for $\phi$'s. Two details decide
# whether such a figure means anything. The ratio is taken along the direction of the exact gradient: entry by
# entry, the estimated mean of $\phi$'s gradient is lost in its own Monte Carlo error. And that mean comes from
# an estimator that has less noise and the same mean: the green line below, which is section 7's.

# %%
sample_counts = [1, 3, 10, 30, 100, 300, 1000]
toy = GaussianToy.near_optimum(0.01, dtype=torch.float32)
snr_of: dict[str, list[float]] = {"θ": [], "φ": [], "φ, DReG": []}
for K in sample_counts:
    seeded = torch.Generator().manual_seed(K)
    estimates = toy.projected(toy.gradients(K, max(4000, 40_000 // K), generator=seeded))
    signal = estimates.dreg.mean()  # the mean of φ's gradient, from the quieter estimator
    snr_of["θ"].append(bounds.signal_to_noise(estimates.theta).item())
    snr_of["φ"].append(bounds.signal_to_noise(estimates.phi, mean=signal).item())
    snr_of["φ, DReG"].append(bounds.signal_to_noise(estimates.dreg).item())
for name, values in snr_of.items():
    first = 2 if "DReG" in name else 0  # DReG's law holds once K is well above chi^2
    slope = numerics.log_log_slope(torch.tensor(sample_counts).double()[first:], torch.tensor(values)[first:])
    print(f"{name:8s} SNR at K = 1: {values[0]:.3f}, at K = 1000: {values[-1]:.4f}; "
          f"slope from K = {sample_counts[first]}: {slope:+.2f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
budget = 1000
for (name, values), color in zip(snr_of.items(), plots.PALETTE, strict=False):
    axes[0].plot(sample_counts, values, marker="o", color=color, label=name)
    at_budget = [value * (budget / K) ** 0.5 for value, K in zip(values, sample_counts, strict=True)]
    axes[1].plot(sample_counts, at_budget, marker="o", color=color)
for ax in axes:
    plots.log_axes(ax)
    ax.set(xlabel="samples per bound, K")
axes[0].set(ylabel="signal-to-noise ratio", title="One estimate: θ gains, φ loses")
axes[1].set(title="The same 1000 samples: K × M = 1000", ylabel="signal-to-noise ratio")
for (name, values), color, drop in zip(snr_of.items(), plots.PALETTE, (-20, 8, -20), strict=False):
    style = dict(textcoords="offset points", color=color, weight="bold")
    axes[0].annotate(name, (100, values[4]), (0, drop), **style)
plots.show(fig, alt=(
    "Signal-to-noise against K: theta rises with slope 1/2, phi falls with slope -1/2, DReG rises; with a "
    "fixed budget K times M theta is level, DReG falls from 7 to 3 and phi falls with slope -1"
))

# %% [markdown]
# *What you see:* on the left, slopes near $+\frac12$ for $\theta$ and $-\frac12$ for $\phi$. At $K = 1000$ a
# gradient of the encoder is noise with two thousandths of signal. On the right every point spends the same 1000
# samples, as $M = 1000/K$ averaged estimates of a $K$-sample bound. For $\theta$ it does not matter how they are
# spent; for $\phi$ all of them should go into $M$ (with the green estimator a small $K$ is best as well, but a
# large one costs no more than a factor of three). Outer samples help both; inner samples tighten the bound and
# take the encoder's signal away.
#
# ### Live: the gradient's noise
#
# The same toy, its encoder's mean off by 0.05. **Try:** raise $K$ and watch the middle histogram: which share of
# $\phi$'s gradients points the wrong way? At $K = M = 1$ the ratio is 0.27: which $M$ gives that back at $K = 50$?

# %%
gradient_noise.show()

# %% [markdown]
# ### Exercise 5 · The signal-to-noise ratio
#
# From $R$ independent estimates of a gradient with $P$ entries: for each entry the absolute value of the mean
# over the sample standard deviation (with $R - 1$).

# %% exercise="snr"
def snr(gradients: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio of each entry: (R, P) -> (P,)."""
    ### BEGIN SOLUTION
    return gradients.mean(dim=0).abs() / gradients.std(dim=0)
    ### END SOLUTION

# %% check="snr" points=1
check.snr(snr)
### BEGIN HIDDEN TESTS
check.hidden("snr", snr, seed=4725)
print("hidden tests ran to the end: snr 4c15")
### END HIDDEN TESTS

# %% [markdown]
# ## 7 · Two estimators that keep the signal
#
# The plain gradient of $\phi$ contains two parts: how $z_k$ moves with $\phi$, and how $\log q(z_k \mid x)$
# changes at fixed $z_k$. For $K = 1$ the second part has mean zero and may be dropped: *sticking the landing*
# (lecture 01). For $K > 1$ it may not; but a second reparametrisation turns it into squared weights.
#
# > **Theorem I7** (Roeder et al. 2017; Tucker et al. 2019). Let $z_k = g(\varepsilon_k, \phi)$, and let
# > $\frac{\partial \log w_k}{\partial z_k}$ be taken with the $\phi$ inside $\log q$ held fixed. Then
# > $$\nabla_\phi \mathcal L_K = \mathbb E \sum_k \hat w_k^2\, \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi},$$
# > the *doubly reparametrised gradient* (DReG). Its signal-to-noise ratio grows as $\sqrt K$ once
# > $K \gg \chi^2(p(z \mid x) \| q)$. At $K = 1$ it is sticking the landing, which is identically zero where
# > $q$ is the posterior.
#
# <details><summary>Proof</summary>
#
# By I5 the plain gradient is $\sum_k \hat w_k \left(\partial_{z} \log w_k\,\partial_\phi z_k - \partial_\phi \log q(z_k)\right)$.
# For fixed other samples the second part is $-\mathbb E_{z_k \sim q}\left[\hat w_k\,\partial_\phi \log q(z_k)\right]$: a
# score-function estimator of the gradient of $\mathbb E_{z_k \sim q}\, f(z_k)$ with $f = \hat w_k$ held fixed. Its
# reparametrised form is $-\mathbb E\,\partial_{z_k} \hat w_k\,\partial_\phi z_k$, and
# $\partial_{z_k} \hat w_k = (\hat w_k - \hat w_k^2)\,\partial_{z} \log w_k$. Adding up,
# $\hat w_k - (\hat w_k - \hat w_k^2) = \hat w_k^2$. For the ratio: the $\hat w_k$ are about $1/K$, so the sum is
# $1/K$ times an average of $K$ nearly independent terms; mean and deviation are $O(1/K)$ and $O(K^{-3/2})$. At
# $K = 1$ and $q = p(z \mid x)$, $\log w = \log p(x)$ does not depend on $z$.
# </details>
#
# First the means: the same 20 000 sets of $K = 5$ samples, three estimators, on the exact model of section 1.

# %% tags=["nbval-check-output"]
x0, given = x[0], (post_mean + 0.2, torch.diagonal(post_cov).log() + 0.3)
settings = dict(num_samples=5, num_estimates=20_000)
rows = {
    name: bounds.iwae_gradient_estimates(
        lambda z: model.log_joint(x0, z), *given, **settings, estimator=name,
        generator=torch.Generator().manual_seed(2),
    )[:, 0]  # the derivative with respect to the first mean
    for name in ("plain", "dreg", "sticking the landing")
}
for name, values in rows.items():
    difference = values - rows["plain"]
    off = (difference.mean() / difference.std() * 20_000**0.5).nan_to_num()
    verdict = "" if name == "plain" else f"   off by less than 5 standard errors: {bool(off.abs() < 5)}"
    print(f"{name:21s} mean {values.mean():6.2f}{verdict}")

# %% [markdown]
# Dropping the score is wrong at $K = 5$; squaring the weights makes up for it. Now the noise, as $q$ approaches
# the posterior: the proposal has the posterior's covariance shape (diagonal here), and its mean is `offset` away.

# %%
line = LinearGaussian(torch.eye(2), torch.zeros(2), torch.tensor(0.5))  # a diagonal posterior
x_line = torch.tensor([1.0, -0.5])
line_mean, line_cov = line.posterior(x_line)
offsets = torch.linspace(0, 1, 21)
curves = {("plain", 1): [], ("sticking the landing", 1): [], ("plain", 10): [], ("dreg", 10): []}
for (name, K), values in curves.items():
    for offset in offsets:
        draws = bounds.iwae_gradient_estimates(
            lambda z: line.log_joint(x_line, z), line_mean + offset, torch.diagonal(line_cov).log(),
            num_samples=K, num_estimates=4000, estimator=name, generator=torch.Generator().manual_seed(3),
        )
        values.append(draws[:, 0].std().item())
for (name, K), values in curves.items():
    print(f"K = {K:2d}, {name:21s} standard deviation at offset 0: {values[0]:.1e}")

# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
labels = {"plain": "plain", "dreg": "DReG", "sticking the landing": "sticking the landing"}
for (name, K), values in curves.items():
    style = {1: "-", 10: (0, (4, 1.5))}[K]
    ax.plot(offsets, values, linestyle=style, color=plots.PALETTE[0 if name == "plain" else 2],
            label=f"K = {K}, {labels[name]}")
ax.set(xlabel="distance of q's mean from the posterior's, each dimension", ylabel="standard deviation",
       title="Noise that vanishes at the optimum", ylim=(-0.05, 2.6))
ax.legend(ncols=2, loc="upper left")
plots.show(fig, alt=(
    "Standard deviation of four gradient estimators against the offset of q: the plain ones stay up at "
    "offset 0, sticking the landing and DReG go to zero"
))

# %% [markdown]
# *What you see:* the plain estimators keep shaking at the optimum, and averaging inside the bound ($K = 10$)
# only divides that noise. DReG falls to zero there, up to rounding: when $q$ is the posterior every weight equals
# $p(x)$, nothing is left to learn, and it knows. Sticking the landing, which is DReG at $K = 1$, is zero as well, here
# along the whole line, but only because this $q$ has the posterior's covariance.
#
# ### In a training loop
#
# $\hat w_k^2$ is right for $\phi$ only, and only with the $\phi$ inside $\log q$ held fixed. The decoder keeps
# $\hat w_k$. (Without these two conditions the gradient of $\sum_k \hat w_k^2 \log w_k$ is right for neither of them.)
# `vae.dreg_loss` does both in one backward pass: the loss is $\sum_k \hat w_k \log w_k$ with constant weights, and the
# gradient that arrives at $z_k$ on its way to the encoder is multiplied by $\hat w_k$ once more.
#
# ### Exercise 6 · The weights of DReG
#
# Return $\hat w_k^2$ for each $x$, as **constants**: no gradient may flow through them.

# %% exercise="dreg_weights"
def dreg_weights(log_w: torch.Tensor) -> torch.Tensor:
    """Squared normalised weights, without gradient: (K, B) -> (K, B)."""
    ### BEGIN SOLUTION
    return torch.softmax(log_w.detach(), dim=0) ** 2
    ### END SOLUTION

# %% check="dreg_weights" points=2
check.dreg_weights(dreg_weights)
### BEGIN HIDDEN TESTS
check.hidden("dreg_weights", dreg_weights, seed=4726)
print("hidden tests ran to the end: dreg_weights e290")
### END HIDDEN TESTS

# %% [markdown]
# ## 8 · Training on the bound
#
# Does a tighter bound train a better model? Scikit-learn's digits again, binarised, 1497 for training and 300
# held out; 16 latents, one hidden layer of 128 units on either side. Four seeds of each $K$ are trained at once.
# The only line that differs from a VAE is the loss. Quality is the held-out $-\mathcal L_{1000}$, the same yardstick
# for all models. Steps with $K = 50$ are expensive, so there are only 200 of them, once with the plain gradient and
# once with DReG. (The second cell takes about half of the notebook's time.)
#
# **Predict first:** after the same number of steps, which $K$ gives the best model? And after the same number
# of seconds? Does a quieter gradient of the encoder matter?

# %%
digits = data.digits()  # binary, float32
SEEDS = 4


def train_digits(K: int, steps: int, dreg: bool = False) -> dict[int, tuple[float, vae.VAE]]:
    """Train SEEDS VAEs on L_K; return {step: (CPU seconds, model)} for every 50th step."""
    kind = {"members": SEEDS, "generator": torch.Generator().manual_seed(4)}
    decoder = vae.BernoulliDecoder(nets.MLP([16, 128, 64], **kind))
    model = vae.VAE(nets.MLP([64, 128, 32], **kind), decoder, latent_dim=16).float()
    snapshots, start = {}, time.process_time()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = minibatch(digits.train_x, 64, generator)
        if dreg:
            return vae.dreg_loss(model, batch, num_samples=K, generator=generator)  # (SEEDS,)
        log_w = model.log_weights(batch, num_samples=K, generator=generator)  # (SEEDS, K, 64)
        return -bounds.iwae_bound(log_w, dim=-2).mean(-1)

    def keep(step: int, loss: torch.Tensor) -> None:
        if (step + 1) % 50 == 0:
            snapshots[step + 1] = (time.process_time() - start, copy.deepcopy(model))

    fit_many(loss, model.parameters(), steps=steps, lr=5e-3, progress=False, callbacks=[keep])
    return snapshots


# %%
def held_out(model: vae.VAE, num_samples: int) -> dict[str, torch.Tensor]:
    """-L_K and -ELBO (nats) and active units of each seed on the held-out digits: each (SEEDS,)."""
    noise = torch.Generator().manual_seed(5)  # the same for all models
    log_w = vae.importance_log_weights(model, digits.test_x, num_samples=num_samples, generator=noise)
    values = {"bound": -bounds.iwae_bound(log_w, dim=-2).mean(-1), "elbo": -log_w.mean((-2, -1))}
    values["active"] = vae.active_units(model.encode(digits.test_x)[0].detach()).sum(-1)
    return {name: value.double() for name, value in values.items()}


def mean_se(values: torch.Tensor) -> str:
    """Mean and standard error over the seeds."""
    return f"{values.mean():6.2f} ± {values.std() / len(values) ** 0.5:.2f}"


runs = {"K = 1": (1, 1200), "K = 5": (5, 1200), "K = 50": (50, 200), "K = 50, DReG": (50, 200, True)}
trained = {name: train_digits(*run) for name, run in runs.items()}
print("               steps   CPU seconds   held-out -L_1000    held-out -ELBO   active units of 16")
for step in (200, 1200):
    for name in (name for name in trained if step in trained[name]):
        seconds, model = trained[name][step]
        row = "    ".join(mean_se(values) for values in held_out(model, 1000).values())
        print(f"{name:14s} {step:5d}   {seconds:11.1f}   {row}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.3), sharey=True)
for (name, snapshots), color in zip(trained.items(), plots.PALETTE, strict=False):
    quality = torch.stack([held_out(model, 50)["bound"] for _, model in snapshots.values()])  # (., SEEDS)
    style = dict(error=quality.std(1) / SEEDS**0.5, color=color, marker="o", markersize=4, label=name)
    plots.curve(axes[0], list(snapshots), quality.mean(1), **style)
    plots.curve(axes[1], [seconds for seconds, _ in snapshots.values()], quality.mean(1), **style)
axes[0].set(xlabel="training steps", ylabel="held-out −L₅₀ (nats)", title="At equal steps K = 50 wins")
axes[1].set(xlabel="CPU seconds of training", title="At equal seconds it loses")
axes[1].set_xlim(0, None)
axes[0].legend()
plots.show(fig, alt=(
    "Held-out bound against training steps, where a larger K is better, and against seconds, where K = 50 is "
    "far behind K = 1 and K = 5"
))

# %% [markdown]
# *What you see:* at equal steps the order is that of Burda et al. (2016): the larger $K$, the better the model, by
# far more than the error bars (seeds: initialisation and batches, not the data). The ELBO of the same models gets
# *worse*, for two reasons. Part is the objective: an encoder trained for $K = 50$ need not be close to the posterior,
# it only has to propose one good sample in fifty. Part is section 6: with DReG, the same objective and a quieter
# gradient, the model is better by both measures. Burda et al. also found more active units with larger $K$, and so it
# is here: after 1200 steps the VAE has switched off some of its 16 latents (how many depends on the seeds), the model
# with $K = 5$ hardly any. The price is on the right: a step with $K = 50$ costs about ten times as much. In the same
# seconds $K = 1$ and $K = 5$ are level, and $K = 50$ is far behind. (The figure measures with 50 samples, to be quick,
# which flatters the small $K$ a little; the table has 1000.)
#
# ## 9 · The yardstick and its warning light
#
# Whatever a VAE was trained on, one draw of $\log \bar w$ with $K = 5000$, for short "$\mathcal L_{5000}$", is the usual
# estimate of its test log-likelihood. How far can one trust it?
#
# > **Theorem I8.** $\mathcal L_K \le \log p(x)$ for every $K$: the estimate errs low, on average. The *effective
# > sample size* $\mathrm{ESS} = \left(\sum_k w_k\right)^2 / \sum_k w_k^2$ satisfies $1 \le \mathrm{ESS} \le K$ and, if
# > $\mathbb E_q w^2 < \infty$,
# > $$\mathrm{ESS}/K \to \frac{1}{1 + \chi^2(p(z \mid x) \| q)}, \qquad \underbrace{\log p(x) - \mathcal L_K \approx \frac{\chi^2}{2K}}_{\text{bias}}, \qquad \underbrace{\sigma(\log \bar w) \approx \sqrt{\chi^2/K}}_{\text{scatter of one draw}}.$$
# > In terms of the ESS these are about $1/(2\,\mathrm{ESS})$ and, much larger, $1/\sqrt{\mathrm{ESS}}$. A low ESS warns. A
# > high one does **not** certify: if $q$ misses a mode of the posterior, no sample reports it.
#
# <details><summary>Proof</summary>
#
# The first statement is I1. Cauchy–Schwarz gives $\mathrm{ESS} \le K$, and
# $\left(\sum w\right)^2 \ge \sum w^2$ for non-negative numbers gives $\mathrm{ESS} \ge 1$. By the law of large
# numbers $\mathrm{ESS}/K = \left(\frac1K\sum w\right)^2 / \frac1K\sum w^2 \to p(x)^2/\mathbb E_q w^2$, which is
# $1/(1 + \chi^2)$. The bias is I3, the scatter that of the linear term: $\log \bar w = \log p(x) + (S - 1) + \dots$ with
# $\mathrm{Var}(S) = \chi^2/K$. For the last statement it is enough to exhibit a case: the cell after next.
# </details>
#
# First where the truth is known: linear-Gaussian data with 2 latents, and proposals whose mean is 0.1 off and whose
# variance is 1, 4 and 400 times the posterior's.

# %% tags=["nbval-check-output"]
W = torch.tensor([[1.0, 0.0], [0.0, 1.5], [0.0, 0.0]])
truth = LinearGaussian(W, torch.zeros(3), 0.5)
x_six, _ = truth.sample(6, generator=torch.Generator().manual_seed(6))
exact_log_px = truth.log_prob(x_six)
six_mean, six_cov = truth.posterior(x_six)
six_log_var = torch.diagonal(six_cov, dim1=-2, dim2=-1).log()  # (6, 2): this posterior is diagonal
for spread in (1.0, 4.0, 400.0):
    q_given = (six_mean + 0.1, six_log_var + math.log(spread))
    z = gaussian.gaussian_sample(*q_given, sample_shape=(5000,), generator=torch.Generator().manual_seed(7))
    log_w = truth.log_joint(x_six, z) - gaussian.gaussian_log_prob(z, *q_given)  # (5000, 6)
    share = bounds.effective_sample_size(log_w).mean() / 5000
    predicted = (1 / (1 + gaussian.gaussian_chi2(six_mean, six_log_var, *q_given))).mean()
    error = (bounds.iwae_bound(log_w) - exact_log_px).abs().max()
    print(f"variance x {spread:3.0f}   ESS / K {share:.3f}   1 / (1 + chi^2) {predicted:.3f}   "
          f"1 / sqrt(ESS) {(share * 5000) ** -0.5:.2f}   largest |L_5000 - log p(x)| {error:.2f}")

# %% [markdown]
# And the case in which the light stays green: a posterior with two equal modes at $\pm 6$, of which $q$ covers
# one.

# %% tags=["nbval-check-output"]
modes = torch.tensor([-6.0, 6.0])
z = modes[1] + 0.5 * torch.randn(5000, generator=torch.Generator().manual_seed(8))
log_joint_z = torch.logsumexp(Normal(modes, 0.5).log_prob(z[:, None]) - math.log(2), dim=1)  # log p(x) = 0
log_w = log_joint_z - Normal(modes[1], 0.5).log_prob(z)
print(f"ESS / K          {bounds.effective_sample_size(log_w) / 5000:.2f}")
print(f"L_5000           {bounds.iwae_bound(log_w):.3f}")
print("log p(x)          0.000   (what is missing: log 2 = 0.693)")

# %% [markdown]
# Every weight is $\frac12$, all samples agree, and half of $p(x)$ is missing. This does not contradict the theorem:
# $\chi^2$ is astronomically large here, and its limit needs more samples than anyone draws. The other mode has to be
# looked for by other means: a wider $q$, another start, annealed importance sampling (Neal 2001).
#
# Now two models of section 8, $K = 1$ and $K = 50$ after 200 steps. Their ELBOs differ by four nats in favour of the
# first.
#
# **Predict first:** which is the better model, and whose $\mathcal L_{5000}$ needs the warning light more?

# %%
pair = {name: nets.member(trained[name][200][1], 0) for name in ("K = 1", "K = 50")}  # the first seed of each
log_ws = {
    name: vae.importance_log_weights(model, digits.test_x, generator=torch.Generator().manual_seed(9))
    for name, model in pair.items()
}  # each (5000, 300): 5000 samples are the default
bound_counts = [1, 5, 10, 50, 100, 500, 1000, 5000]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.3))
for (name, log_w), color in zip(log_ws.items(), plots.PALETTE[::2], strict=False):
    by_count = [-bounds.iwae_bound(log_w.reshape(-1, K, 300), dim=1).mean().item() for K in bound_counts]
    axes[0].plot(bound_counts, by_count, marker="o", color=color, label=f"trained with {name}")
    ess = bounds.effective_sample_size(log_w)  # (300,)
    axes[1].hist(ess, bins=torch.logspace(0, 3.7, 31), histtype="step", linewidth=2.2, color=color)
    gap = bounds.iwae_gap(bounds.chi2_from_log_weights(log_w), 5000).mean()
    print(f"{name:6s}  -ELBO {by_count[0]:.2f}  -L_5000 {by_count[-1]:.2f}  predicted gap {gap:.3f}   "
          f"ESS: median {ess.median():.0f}, lowest {ess.min():.0f}   scatter of a digit {ess.median() ** -0.5:.2f}")
plots.log_axes(axes[0], "x")
plots.log_axes(axes[1], "x")
axes[0].set(xlabel="samples of the yardstick, K", ylabel="held-out −L_K (nats)",
            title="The ELBO ranks them the wrong way round")
axes[1].set(xlabel="effective sample size of 5000", ylabel="held-out digits", title="The warning light")
axes[0].legend()
plots.show(fig, alt=(
    "Left: the K = 1 model has the better ELBO, the K = 50 model the better L_5000; the curves cross near "
    "K = 5. Right: effective sample sizes, lower for K = 50"
))

# %% [markdown]
# *What you see:* the curves cross. By the ELBO the first model is better by four nats, by $\mathcal L_{5000}$ the
# second by nearly two: the ELBO had measured the *encoder*. The right panel says how far to trust that. The typical
# digit of the $K = 50$ model has an effective sample size near a hundred: a bias of 0.005 nats, and a scatter of a
# tenth, which averages out over 300 digits. The worst digits have less than ten, and are only known to a third of a nat
# or worse. In which direction are they off? The same twelve digits again, with twenty times as many fresh samples:

# %%
lowest = bounds.effective_sample_size(log_ws["K = 50"]).argsort()[:12]
fresh = vae.importance_log_weights(
    pair["K = 50"], digits.test_x[lowest], num_samples=100_000, generator=torch.Generator().manual_seed(10)
)
excess = bounds.iwae_bound(log_ws["K = 50"][:, lowest]) - bounds.iwae_bound(fresh)  # (12,)
print(f"L_5000 - L_100000 of the 12 digits with the lowest ESS: mean {excess.mean():+.2f}, from "
      f"{excess.min():+.2f} to {excess.max():+.2f} nats; positive for {int((excess > 0).sum())} of 12")

# %% [markdown]
# All twelve are too *high*, by 0.4 nats on average: a low ESS means that a heavy weight happened to fall, although the
# estimate errs low on average. In the mean over all digits none of this explains a nat. What no number here can exclude is a mode
# that $q$ never proposed.
#
# ## Equation ↔ function
#
# | equation | function |
# |---|---|
# | $\log w_k$ (I1) | `bounds.elbo`, `vae.VAE.log_weights` |
# | $\log \frac1K\sum_k w_k$ (I1, I2) | `bounds.iwae_bound`, exactly: `bounds.exact_iwae_bound` |
# | $\tilde q_{IW}$, $q_{EW}$ (I4) | `bounds.importance_weighted_log_prob`, `bounds.implicit_posterior_log_prob` |
# | $\hat w_k$ (I5) | `bounds.normalized_weights` |
# | $\chi^2$, $\chi^2/2K$ (I3) | `gaussian.gaussian_chi2`, `divergences.chi2_divergence`, `bounds.chi2_from_log_weights`, `bounds.iwae_gap` |
# | $\sum_k \hat w_k \nabla \log w_k$ (I5) | `bounds.iwae_gradient`, `bounds.iwae_gradient_estimates` |
# | the same with $K$ in the thousands, in little memory (I5) | `bounds.streamed_iwae_bound` |
# | SNR (I6), the toy | `bounds.signal_to_noise`, `gaussian_toy.GaussianToy` |
# | $\sum_k \hat w_k^2\, \partial \log w_k$ (I7), in a training loop | `bounds.dreg_gradient`, `vae.dreg_loss` |
# | $\mathcal L_{5000}$, ESS (I8) | `vae.importance_log_weights`, `bounds.effective_sample_size` |
#
# ## Summary
#
# - The average of $K$ importance weights is unbiased for $p(x)$; its logarithm is a lower bound on average, and
#   the more samples, the tighter. The proof needs distinct indices.
# - Behind the bound stands a richer posterior, the law of a sample that survives the weights. Its ELBO is *above*
#   $\mathcal L_K$, not equal to it.
# - The gap falls as $\chi^2/2K$ if the weights have a variance, and more slowly if $q$ is too narrow.
# - The $K$ samples share one gradient by their weights. For $\theta$ its signal-to-noise ratio rises as
#   $\sqrt K$, for $\phi$ it falls as $1/\sqrt K$; $M$ outer samples raise both by $\sqrt M$. DReG repairs $\phi$, and is
#   for $\phi$ only.
# - Trained on digits, a larger $K$ wins at equal steps, keeps more latents active, and has the worse ELBO; at equal
#   seconds $K = 50$ loses.
# - $\mathcal L_{5000}$ is a yardstick that errs low on average; one draw scatters by $1/\sqrt{\mathrm{ESS}}$. A low ESS
#   warns, a high one certifies nothing.
#
# **Open question of the lecture, answered:** *which $q^*$ gives $\mathcal L(q^*) = \log p(x)$, and which
# $\mathcal L(q^*) = \mathcal L_K(q)$?* The first is the posterior alone (C1). For the second the lecture series
# names $q_{EW}$, whose ELBO is larger; densities with exactly that ELBO exist (on the way from $q$ to $q_{EW}$,
# for instance), but the weights single none of them out. $\mathcal L_K$ belongs to unnormalised densities,
# averaged over the other samples.
#
# ## References
#
# - Y. Burda, R. Grosse, R. Salakhutdinov. [Importance Weighted Autoencoders](https://arxiv.org/abs/1509.00519), 2016.
# - C. Cremer, Q. Morris, D. Duvenaud. [Reinterpreting Importance-Weighted Autoencoders](https://arxiv.org/abs/1704.02916), 2017.
# - T. Rainforth et al. [Tighter Variational Bounds are Not Necessarily Better](https://arxiv.org/abs/1802.04537), 2018.
# - G. Tucker, D. Lawson, S. Gu, C. J. Maddison. [Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives](https://arxiv.org/abs/1810.04152), 2019.
# - G. Roeder, Y. Wu, D. Duvenaud. [Sticking the Landing](https://arxiv.org/abs/1703.09194), 2017.
# - J. Domke, D. Sheldon. [Importance Weighting and Variational Inference](https://arxiv.org/abs/1808.09034), 2018.
# - S. Nowozin. [Debiasing Evidence Approximations](https://openreview.net/forum?id=HyZoi-WRb), 2018.
# - R. M. Neal. [Annealed Importance Sampling](https://arxiv.org/abs/physics/9803008), 2001.
# - A. Kong. [A Note on Importance Sampling using Standardized Weights](https://galton.uchicago.edu/techreports/tr348.pdf), 1992 (effective sample size).

# %%
check.progress()
