# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · ELBO surgery: the prior that the bound asks for
#
# **Which prior does the ELBO want, and should we give it what it wants?**
#
# | | |
# |---|---|
# | You need | lecture 01 (ELBO, KL), lecture 02 (importance-weighted likelihood), lecture 03 (flows) |
# | Time | 90 minutes of reading and running, 60 minutes of exercises |
# | Library files | `surgery` · `mixtures` · `priors` · `vae` · `flows` · `divergences` · `train` |
#
# Run the notebook from the top (*Run → Run All Cells*): it takes about a minute on two cores, downloads
# nothing, and needs none of your answers to the exercises.

# %% [markdown]
# ## Where we are
#
# A variational autoencoder has four weak points. This lecture is about the third.
#
# | weak point | what goes wrong | where we treat it |
# |---|---|---|
# | the decoder $p(x \mid z, \theta)$ | too weak: blurred samples; too strong: it ignores $z$ | 01 posterior collapse |
# | the bound | the ELBO is not $\log p(x)$ | 02 IWAE |
# | **the prior $p(z)$** | it puts mass where no code lives, and none where codes do | **this lecture** |
# | the posterior $q(z \mid x, \phi)$ | a diagonal Gaussian is rarely the truth | 03 and 06 flows |
#
# So far the prior was $\mathcal N(0, I)$, because it was at hand. The ELBO of *one* data point does not tell what
# is wrong with that. The ELBO of a data set does, once it is cut open: **ELBO surgery** (Hoffman & Johnson 2016).
#
# ## After this lecture you can
#
# 1. split the KL term of a data set's ELBO in two, sample by sample (S1);
# 2. say how much information a code can carry about $n$ data points, and estimate it in two ways (S2);
# 3. show that the prior enters the ELBO in one place only, a forward KL (S3);
# 4. name the optimal prior, and say why hardly anybody uses it (S4);
# 5. fit mixture, Vamp and flow priors, to a frozen encoder or jointly, and judge them on held-out data (S5);
# 6. choose the flow whose fast direction suits a prior (S6).

# %%
import math
import time

import matplotlib.pyplot as plt
import torch

from dgm_course import check, data, gaussian, mixtures, nets, numerics, plots, priors, surgery, vae
from dgm_course.bounds import iwae_bound
from dgm_course.demos import beta_surgery, prior_choice
from dgm_course.divergences import kl_divergence as KL
from dgm_course.flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow, solve_sequentially
from dgm_course.linear_gaussian import LinearGaussian
from dgm_course.train import fit, fit_many, minibatch

plots.use_style()
torch.set_default_dtype(torch.float64)  # the oracles are exact to 1e-10; digits run in float32 below
torch.set_num_threads(1)  # many small products: a second thread only gets in the way

# %% [markdown]
# ## 1 · The faces of the ELBO
#
# One number, written in several ways. For a data point $x$ and an approximate posterior $q(z \mid x)$,
#
# 1. energy and entropy: $\mathbb E_q \log p(x, z) + \mathrm H[q(z \mid x)]$;
# 2. evidence and gap: $\log p(x) - \mathrm{KL}(q(z \mid x) \| p(z \mid x))$;
# 3. reconstruction and price: $\mathbb E_q \log p(x \mid z) - \mathrm{KL}(q(z \mid x) \| p(z))$.
#
# The first is what one computes, the second says how far from the truth it is, the third is what a VAE trains. For a
# data set there is a fourth, the subject of this lecture. The encoder turns $x_1, \dots, x_n$ into $n$ densities. Their
# mixture
# $$q_{agg}(z) = \frac1n \sum_{i=1}^n q(z \mid x_i)$$
# is the **aggregated posterior**: the law of the code of a random data point. It is what the decoder meets in training.
# The prior is what it meets when the model samples.
#
# We compute all four on the exact model of lecture 01, with one latent, six data points and a $q$ that is off on purpose.
# Every term is an integral over the line, by quadrature.

# %%
generator = torch.Generator().manual_seed(4)
model = LinearGaussian(W=torch.tensor([[1.0], [0.6], [-0.4]]), b=torch.zeros(3), sigma2=torch.tensor(0.15))
x = 1.5 * model.sample(6, generator=generator)[0]  # more spread than the model expects
post_mean, post_cov = model.posterior(x)
mean = post_mean + 0.1 * torch.randn(6, 1, generator=generator)  # (n, d) = (6, 1)
log_var = (1.3 * post_cov).log().expand(6, 1, 1)[..., 0]

grid, weights = numerics.gauss_legendre(-9.0, 9.0, 800)
log_q = gaussian.gaussian_log_prob(grid, mean[:, None], log_var[:, None])  # (n, N): log q(z|x_i)
log_prior = gaussian.gaussian_log_prob(grid, 0.0, 0.0)  # (N,)
log_joint = model.log_joint(x[:, None], grid)  # (n, N)
log_agg = mixtures.mixture_log_prob(grid, mean, log_var)  # (N,)

# %% tags=["nbval-check-output"]
def expected(values: torch.Tensor) -> torch.Tensor:
    """E_q of values (n, N), averaged over the data."""
    return (weights * log_q.exp() * values).sum(-1).mean()


reconstruction = expected(log_joint - log_prior)
log_px = model.log_prob(x)
information, marginal = KL(log_q, log_agg, weights).mean(), KL(log_agg, log_prior, weights)
faces = {
    "energy + entropy": expected(log_joint) + gaussian.gaussian_entropy(log_var).mean(),
    "evidence - gap": (log_px - KL(log_q, log_joint - log_px[:, None], weights)).mean(),
    "reconstruction - KL": reconstruction - KL(log_q, log_prior, weights).mean(),
    "reconstruction - information - KL(q_agg || p)": reconstruction - information - marginal,
}
for name, value in faces.items():
    print(f"{name:46s} {value:.10f}")

# %% [markdown]
# Four times the same number. The last line is new: the KL to the prior came apart into two terms, and only one of them
# knows the prior.
#
# ## 2 · The cut
#
# > **Theorem S1.** Let $q(z \mid x_1), \dots, q(z \mid x_n)$ be densities with finite $\mathrm{KL}(q(z \mid x_i) \| p(z))$.
# > With the index $i$ uniform on $1, \dots, n$ and $z \sim q(z \mid x_i)$,
# > $$\frac1n \sum_{i=1}^n \mathrm{KL}(q(z \mid x_i) \| p(z)) = \mathbb I_q[x, z] + \mathrm{KL}(q_{agg}(z) \| p(z)), \qquad \mathbb I_q[x, z] = \frac1n \sum_{i=1}^n \mathrm{KL}(q(z \mid x_i) \| q_{agg}(z)).$$
# > It holds sample by sample: $\log \frac{q(z \mid x_i)}{p(z)} = \log \frac{q(z \mid x_i)}{q_{agg}(z)} + \log \frac{q_{agg}(z)}{p(z)}$ for every $z$ and $i$.
#
# <details><summary>Proof</summary>
#
# The derivation is written exercise W1, below. Where to begin: the last line of the theorem, and the law of $z$ when
# $i$ is forgotten.
# </details>
#
# $\mathbb I_q[x, z]$ is the **mutual information** between the index of the data point and its code, under the encoder.
# $\mathrm{KL}(q_{agg} \| p)$ is the **marginal KL**. They are of different kinds: the first is what the code is *for*,
# the second is what goes wrong between training and sampling. The ELBO charges one price for both.
#
# The library estimates both from the same samples. We compare with the integrals above.

# %%
terms = surgery.elbo_surgery(mean, log_var, num_samples=20_000, generator=torch.Generator().manual_seed(1))
identity = (terms.kl - terms.mutual_information - terms.marginal_kl).abs().max()
print(f"largest violation of the identity in {terms.kl.numel()} samples: {identity:.0e}\n")
exact = {"kl": KL(log_q, log_prior, weights).mean(), "mutual_information": information, "marginal_kl": marginal}
for name, value in exact.items():
    estimate = surgery.Estimate.of(getattr(terms, name))
    print(f"{name:20s} quadrature {value:.4f}    samples {estimate.mean:.4f} ± {estimate.standard_error:.4f}")

# %%
fig, ax = plt.subplots(figsize=(8.6, 3.3))
z = grid.squeeze(-1)
for k, log_density in enumerate(log_q):
    ax.fill_between(z, log_density.exp() / 6, color=plots.PALETTE[0], alpha=0.25, linewidth=0,
                    label="q(z|x_i) / 6" if k == 0 else None)
ax.plot(z, log_agg.exp(), color=plots.PALETTE[0], label="q_agg(z)")
ax.plot(z, log_prior.exp(), "--", color=plots.PALETTE[1], label="p(z)")
ax.set(title="Six posteriors, their mixture, and the prior", xlim=(-4.5, 5.2), ylim=(0, None), xlabel="z",
       ylabel="density")
ax.legend()
plots.show(fig, alt=(
    "Six narrow posteriors along the line; their average q_agg has several bumps and gaps and is wider than the "
    "standard normal prior"
))

# %% [markdown]
# *What you see:* the information is the average divergence of the heaps (scaled back up by 6) from the blue line, the marginal KL the divergence of
# the blue line from the orange one. Two heaps stand alone: their codes name their data point. Four overlap in pairs: their codes
# leave open which of the two it was. So the information lies below $\log 6 = 1.79$ nats. Where the orange line lies far above the
# blue one, the model will sample codes that the decoder was hardly trained on.
#
# ### Exercise 1 · The aggregated posterior (warm-up)
#
# Everything rests on this density. Careful: it is a *mixture of products*, and far from all components it still has a
# logarithm.

# %% exercise="aggregated_posterior_log_prob"
def aggregated_posterior_log_prob(
    z: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor
) -> torch.Tensor:
    """log (1/n) sum_i N(z; mean_i, diag exp(log_var_i)) in nats: (m, d), (n, d), (n, d) -> (m,)."""
    ### BEGIN SOLUTION
    log_q = gaussian.gaussian_log_prob(z.unsqueeze(-2), mean, log_var)  # (m, n)
    return torch.logsumexp(log_q, dim=-1) - math.log(mean.shape[0])
    ### END SOLUTION

# %% check="aggregated_posterior_log_prob" points=1
check.aggregated_posterior_log_prob(aggregated_posterior_log_prob)
### BEGIN HIDDEN TESTS
check.hidden("aggregated_posterior_log_prob", aggregated_posterior_log_prob, seed=5051)
print("hidden tests ran to the end: aggregated_posterior_log_prob 5c1e")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise W1 · The cut (written)
#
# Prove Theorem S1. Say which expectation each log-ratio is averaged over, and where the aggregated posterior comes in.
# Why are both terms on the right never negative? When is the marginal KL zero?

# %% [markdown] written="S1" points=4
# ### BEGIN SOLUTION
# **Model answer.** Let $i$ be uniform on $1, \dots, n$ and $z \sim q(z \mid x_i)$. By definition of the KL divergence
# $$\frac1n \sum_i \mathrm{KL}(q(z \mid x_i) \| p(z)) = \mathbb E_i\,\mathbb E_{z \sim q(z \mid x_i)} \log \frac{q(z \mid x_i)}{p(z)}.$$
# Wherever $q(z \mid x_i) > 0$ also $q_{agg}(z) \ge q(z \mid x_i) / n > 0$, so we may multiply and divide by it:
# $$\log \frac{q(z \mid x_i)}{p(z)} = \log \frac{q(z \mid x_i)}{q_{agg}(z)} + \log \frac{q_{agg}(z)}{p(z)}.$$
# The first ratio averages to $\frac1n \sum_i \mathrm{KL}(q(z \mid x_i) \| q_{agg}(z)) = \mathbb I_q[x, z]$. The second does not depend
# on $i$: it is a function of $z$ alone, and the law of $z$, when $i$ is forgotten, is
# $\frac1n \sum_i q(z \mid x_i) = q_{agg}(z)$. So it averages to $\mathbb E_{q_{agg}} \log \frac{q_{agg}(z)}{p(z)} = \mathrm{KL}(q_{agg} \| p)$.
# The sum may be split because the first ratio lies at or below $\log n$ and its negative part is integrable (it is a
# KL integrand), and the left side is finite.
#
# $\mathbb I_q$ is an average of KL divergences, the marginal KL is one: none is negative (Jensen's inequality). The
# marginal KL is zero if and only if $p = q_{agg}$ almost everywhere.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: writes the left side as one expectation over the index *and* $z \sim q(z \mid x_i)$.
# - 1 point: inserts $q_{agg}$ into the ratio; notes that it is positive where $q(z \mid x_i)$ is.
# - 1 point: why the second ratio averages over $q_{agg}$: it depends on $z$ only, whose law without the index is the mixture.
# - 1 point: both terms are KL divergences (or averages of them), hence not negative; zero marginal KL means $p = q_{agg}$.
# ### END MARK SCHEME

# %% [markdown]
# ## 3 · Information has a ceiling
#
# How much can a code say about $n$ data points? It can at best tell which of them it came from.
#
# > **Theorem S2.** For $n$ data points $0 \le \mathbb I_q[x, z] \le \log n$. It is 0 if and only if all posteriors are the
# > same, and $\log n$ if and only if no two of them overlap. Gaussians always overlap, so they only approach $\log n$.
# > With $q(i \mid z) = q(z \mid x_i) / \sum_j q(z \mid x_j)$ it has a second form,
# > $$\mathbb I_q[x, z] = \log n - \mathbb E_{q_{agg}(z)}\, \mathrm H[q(i \mid z)].$$
#
# <details><summary>Proof</summary>
#
# The second form and both limits are written exercise W2. The upper limit holds for every single sample, too:
# $q_{agg}(z) \ge q(z \mid x_i) / n$, so $\log q(z \mid x_i) - \log q_{agg}(z) \le \log n$.
# </details>
#
# **Predict first:** the codes' means stay where they are, and all posteriors become narrower and narrower, without end.
# The average KL to the prior then grows without end. What does the information do, and where does the rest go?

# %%
generator = torch.Generator().manual_seed(2)
widths = torch.logspace(-3, 0, 18)
sizes = (10, 100, 1000)
info, total = torch.zeros(3, 18), torch.zeros(3, 18)
for row, n in enumerate(sizes):
    codes = torch.randn(n, 2, generator=generator)  # means of the posteriors, in the plane
    for column, width in enumerate(widths):
        log_width = torch.full_like(codes, 2 * math.log(width))
        info[row, column] = surgery.mutual_information(codes, log_width, num_samples=8, generator=generator).mean
        total[row, column] = gaussian.gaussian_kl(codes, log_width).mean()
print(f"n = 1000, width 0.001: KL {total[2, 0]:.2f} = information {info[2, 0]:.2f} + "
      f"marginal KL {total[2, 0] - info[2, 0]:.2f}    log n = {math.log(1000):.2f}")

# %%
fig, ax = plt.subplots(figsize=(8.6, 3.6))
for k, n in enumerate(sizes):
    color = plots.PALETTE[k]
    ax.plot(widths, info[k], color=color, label=f"information, n = {n}")
    plots.reference_line(ax, f"log {n}", y=math.log(n), color=color)
ax.plot(widths, total[2], ":", color=plots.INK, label="average KL, n = 1000")
plots.log_axes(ax, "x")
ax.set(title="Information runs into log n", xlabel="width of each posterior (standard deviation)",
       ylabel="nats", ylim=(0, 14))
ax.legend(loc="upper right")
plots.show(fig, alt=(
    "Mutual information against the width of the posteriors for 10, 100 and 1000 data points: each curve rises as the "
    "width falls and flattens at log n, while the average KL goes on rising"
))

# %% [markdown]
# *What you see:* the information rises as the posteriors narrow, until each code is unmistakable, and then it stops at
# $\log n$: with 1000 data points, at 6.9 nats. The KL goes on. Everything beyond the ceiling is marginal KL: the encoder pays for
# precision that no data point needs, and $q_{agg}$ becomes a cloud of needles.
#
# A warning follows from the ceiling: an encoder's information measured on a *small* data set says as much about the data
# set's size as about the encoder.

# %%
codes = torch.randn(100, 2, generator=generator)
for width in (0.03, 0.3, 1.0):
    log_width = torch.full_like(codes, 2 * math.log(width))
    settings = {"num_samples": 8, "generator": generator}
    first = surgery.mutual_information(codes, log_width, **settings)
    second = surgery.index_information(codes, log_width, **settings)
    print(f"width {width:4.2f}   by log q(z|x_i) - log q_agg(z): {first.mean:.3f} ± {first.standard_error:.3f}"
          f"     by log n - H[q(i|z)]: {second.mean:.3f} ± {second.standard_error:.3f}")

# %% [markdown]
# Both forms estimate one number. The second averages the first over all indices that could have produced the sample, so its
# error is smaller here; it needs all $n$ probabilities at once.
#
# ### Exercise 2 · Mutual information
#
# From samples `z[s, i]` of $q(z \mid x_i)$, estimate $\mathbb I_q[x, z]$ by the first form. Mind whose density each sample is
# scored with.

# %% exercise="mutual_information"
def mutual_information(z: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """Estimate of I_q[x, z] in nats: z (S, n, d), mean and log_var (n, d) -> scalar."""
    ### BEGIN SOLUTION
    log_q = gaussian.gaussian_log_prob(z.unsqueeze(-2), mean, log_var)  # (S, n, n): sample s, i by posterior j
    log_own = torch.diagonal(log_q, dim1=-2, dim2=-1)  # (S, n)
    log_agg = torch.logsumexp(log_q, dim=-1) - math.log(mean.shape[0])
    return (log_own - log_agg).mean()
    ### END SOLUTION

# %% check="mutual_information" points=2
check.mutual_information(mutual_information)
### BEGIN HIDDEN TESTS
check.hidden("mutual_information", mutual_information, seed=5052)
print("hidden tests ran to the end: mutual_information 77d0")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise W2 · Two forms of one information (written)
#
# Show that $\frac1n \sum_i \mathrm{KL}(q(z \mid x_i) \| q_{agg}(z)) = \log n - \mathbb E_{q_{agg}(z)} \mathrm H[q(i \mid z)]$, and
# derive both limits of Theorem S2 from it, with their conditions for equality.

# %% [markdown] written="S2" points=4
# ### BEGIN SOLUTION
# **Model answer.** The joint law of index and code is $q(i, z) = \frac1n q(z \mid x_i)$, with marginals $\frac1n$ and $q_{agg}(z)$. By Bayes'
# rule $q(i \mid z) = \frac{q(z \mid x_i)}{n\,q_{agg}(z)}$, the ratio in the theorem. Hence, wherever the joint is positive,
# $$\log \frac{q(z \mid x_i)}{q_{agg}(z)} = \log n + \log q(i \mid z).$$
# Average over the joint law. The left side becomes $\frac1n\sum_i \mathrm{KL}(q(z \mid x_i) \| q_{agg})$. On the right we first take the
# mean over $i$ given $z$, then over $z \sim q_{agg}$: $\log n + \mathbb E_{q_{agg}} \sum_i q(i \mid z) \log q(i \mid z) = \log n - \mathbb E_{q_{agg}} \mathrm H[q(i \mid z)]$.
#
# The entropy of a law on $n$ possibilities lies in $[0, \log n]$, so $0 \le \mathbb I_q \le \log n$. $\mathbb I_q = 0$ iff $\mathrm H = \log n$ for
# $q_{agg}$-almost every $z$, i.e. $q(i \mid z) = 1/n$, i.e. $q(z \mid x_i) = q_{agg}(z)$ for all $i$: all posteriors are the same.
# $\mathbb I_q = \log n$ iff $\mathrm H = 0$ almost everywhere: each $z$ has one index with $q(i \mid z) = 1$, so at most one of the
# densities $q(z \mid x_i)$ is positive there: no two of them overlap. Gaussian densities are positive everywhere, so for them $\mathbb I_q < \log n$ (if $n > 1$).
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: the joint law and Bayes' rule, $q(i \mid z) = q(z \mid x_i) / (n\,q_{agg}(z))$.
# - 1 point: $\log q(z \mid x_i) / q_{agg}(z) = \log n + \log q(i \mid z)$, averaged over the joint, the inner mean over $i$ given $z$.
# - 1 point: the range of an entropy gives both limits.
# - 1 point: the conditions for equality, with the reason.
# ### END MARK SCHEME

# %% [markdown]
# ## 4 · Surgery on a real encoder
#
# Put the cut into the ELBO of a data set.
#
# > **Theorem S3.** Let $p(z \mid \lambda)$ be a prior with parameters $\lambda$. Under the assumptions of S1
# > $$\frac1n \sum_{i=1}^n \mathcal L_i = \underbrace{\frac1n \sum_{i=1}^n \mathbb E_{q(z \mid x_i)} \log p(x_i \mid z, \theta)}_{\text{reconstruction}} - \underbrace{\mathbb I_q[x, z]}_{\text{information}} - \underbrace{\mathrm{KL}(q_{agg}(z) \| p(z \mid \lambda))}_{\text{marginal KL}},$$
# > and $\lambda$ enters only the last term, a *forward* KL: fitting the prior is maximum likelihood on codes $z \sim q_{agg}$.
#
# <details><summary>Proof</summary>
#
# Insert S1 into $\mathcal L_i = \mathbb E_q \log p(x_i \mid z) - \mathrm{KL}(q(z \mid x_i) \| p(z \mid \lambda))$ and average. Neither the
# reconstruction nor $\mathbb I_q$ contains $p(z \mid \lambda)$. And
# $\mathrm{KL}(q_{agg} \| p_\lambda) = -\mathrm H[q_{agg}] - \mathbb E_{q_{agg}} \log p(z \mid \lambda)$, whose first term does not depend on $\lambda$.
# </details>
#
# Numerically: the gradient of the ELBO with respect to a Gaussian prior's mean and log-variance, once from the closed form of
# the KL of each posterior, which knows nothing of surgery, once from the integral of the marginal KL; the reverse KL beside them.

# %% tags=["nbval-check-output"]
prior_parameters = torch.tensor([0.4]).requires_grad_(), torch.tensor([-0.3]).requires_grad_()
log_p = gaussian.gaussian_log_prob(grid, *prior_parameters)
sides = {
    "average ELBO": -gaussian.gaussian_kl(mean, log_var, *prior_parameters).mean(),  # and terms without lambda
    "- KL(q_agg || p)": -KL(log_agg, log_p, weights),
    "- KL(p || q_agg)": -KL(log_p, log_agg, weights),
}
for name, value in sides.items():
    by_mean, by_log_var = torch.autograd.grad(value, prior_parameters, retain_graph=True)
    print(f"d / d lambda of {name:17s}:  mean {by_mean.item():+.8f}   log-variance {by_log_var.item():+.8f}")

# %% [markdown]
# The first two lines agree in every digit. The third does not: the reverse KL would fit another prior. (*Forward*: from the law of the codes to
# the prior, as in lecture 03, F2.)
#
# Now a real encoder: handwritten digits, eight latents, and a KL weight $\beta$ from $1/16$ to $8$. Eight VAEs, one for each
# $\beta$, are trained at once (a stack of networks, as in lecture 01), on the objective *reconstruction* $- \beta\,$*KL*.
# **Predict first:** as $\beta$ falls the KL is charged less and less. Which of its two parts grows, and which one stops?

# %%
digits = data.digits()  # binary, float32: 1497 for training, 300 held out
betas = 2.0 ** torch.arange(-4, 4, dtype=torch.float32)


def train_ladder(latent_dim: int) -> vae.VAE:
    """VAEs on digits, one for each beta, trained at once."""
    stack = {"members": len(betas), "generator": torch.Generator().manual_seed(1)}
    decoder = vae.BernoulliDecoder(nets.MLP([latent_dim, 64, 64], **stack))
    model = vae.VAE(nets.MLP([64, 64, 2 * latent_dim], **stack), decoder, latent_dim).float()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        terms = model.terms(minibatch(digits.train_x, 128, generator), generator=generator)
        return vae.vae_loss(terms, beta=betas)

    fit_many(loss, model.parameters(), steps=600, lr=1e-2, lr_decay_from=0.5, progress=False)
    return model


ladder = train_ladder(8)

# %%
with torch.no_grad():
    terms = surgery.vae_surgery(ladder, digits.train_x, num_samples=8, generator=torch.Generator().manual_seed(0))
names = ("reconstruction", "mutual_information", "marginal_kl", "elbo")
parts = {name: surgery.Estimate.of(getattr(terms, name)) for name in names}
print("beta    reconstruction    information      marginal KL      ELBO          (nats; largest standard error "
      f"{max(part.standard_error.max() for part in parts.values()):.3f})")
for k, beta in enumerate(betas):
    print(f"{beta:6.4g}  " + "   ".join(f"{parts[name].mean[k]:z13.2f}" for name in names))
times = torch.unique(digits.train_x, dim=0, return_counts=True)[1].double()  # how often each picture occurs
ceiling = math.log(times.sum()) - (times / times.sum() * times.log()).sum()
print(f"log n = {math.log(len(digits.train_x)):.2f}; {(times > 1).sum()} pictures occur more than once, "
      f"which lowers the ceiling to {ceiling:.2f}")

# %%
fig, ax = plt.subplots(figsize=(8.6, 3.8))
shown = {"minus reconstruction": -parts["reconstruction"].mean, "information": parts["mutual_information"].mean,
         "marginal KL": parts["marginal_kl"].mean, "minus ELBO, their sum": -parts["elbo"].mean}
for (label, values), color in zip(shown.items(), [plots.PALETTE[k] for k in (0, 2, 1)] + [plots.INK], strict=True):
    ax.plot(betas, values, "--" if label.endswith("sum") else "-", marker="o", color=color, label=label)
plots.reference_line(ax, "ceiling", y=ceiling.item(), color=plots.PALETTE[2], at_start=True)
plots.log_axes(ax, "x")
ax.set_xticks(betas.tolist(), [f"1/{round(1 / b)}" if b < 1 else f"{b:g}" for b in betas.tolist()])
ax.set(xlabel="β", ylabel="nats", ylim=(0, None), title="Three terms of the ELBO as β moves (digits, 8 latents)")
ax.legend(loc="upper center", ncols=2)
plots.show(fig, alt=(
    "Reconstruction cost, information and marginal KL against beta: towards small beta the information flattens at "
    "log n and the marginal KL goes on rising; towards large beta both vanish and the reconstruction gets worse"
))

# %% [markdown]
# *What you see:* from right to left, a code comes into being. First it is information that grows, and reconstruction improves
# with it. From $\beta = 1/4$ down the information comes to its ceiling. That is a little below $\log n$ here: some digits are the same picture, pixel by
# pixel, and no encoder can tell equal pictures apart. Every other digit has its own unmistakable code,
# and all that still grows is the marginal KL, the price of a $q_{agg}$ unlike the prior. The ELBO itself is best near $\beta = 1$, as it should be on the
# data that it was trained on: there the training objective *is* the ELBO.
#
# ### Latent by latent
#
# Each latent $z_j$ by itself has an aggregated posterior, and Theorem S1 holds for it: $\mathrm{KL}_j = \mathbb I_q[x, z_j] + \mathrm{KL}(q_{agg}(z_j) \| p(z_j))$.
# Here is the VAE with $\beta = 2$, latents sorted by their KL.

# %%
with torch.no_grad():
    codes = nets.member(ladder, 5).encode(digits.train_x)  # beta = 2
    settings = {"num_samples": 8, "generator": torch.Generator().manual_seed(0)}
    by_latent = surgery.elbo_surgery_per_dim(*codes, **settings)  # (d, S, n)
    together = surgery.elbo_surgery(*codes, **settings)  # (S, n)
order = by_latent.kl.mean((-2, -1)).argsort(descending=True)
print(f"{'nats':20s}{'each latent':52s}  sum    all latents together")
for name in ("kl", "mutual_information", "marginal_kl"):
    values = getattr(by_latent, name).mean((-2, -1))[order]
    print(f"{name:20s}" + " ".join(f"{value:z6.2f}" for value in values)
          + f"  {values.sum():z6.2f}  {getattr(together, name).mean():z6.2f}")

# %% [markdown]
# Some latents have collapsed: their KL is zero, and so are both of its parts. The KLs of the others add up to the whole KL (up to the draws of $z$, here and below), because prior and
# posteriors factorise. Information does not add up: given $x$ the latents are independent, but over the data set they tell partly
# the same story. The sum exceeds the whole by the *total correlation* $\mathrm{KL}(q_{agg}(z) \| \prod_j q_{agg}(z_j))$, and it is in exactly this amount that the marginal
# KLs fall short: a prior that fits each latent's marginal still misses how they hang together.
#
# ### The aggregated posterior as a picture
#
# With two latents one can look at it. Here is $q_{agg}$ of the digits for a small $\beta$ and for $\beta = 1$, beside the prior, all
# three with the same colours. Each panel is an exact density: a mixture of 1497 Gaussians on a grid.

# %%
plane = train_ladder(2)
axis = torch.linspace(-4.0, 4.0, 161, dtype=torch.float32)
cells = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    plane_codes = plane.encode(digits.train_x)  # (8, n, 2) each
    log_maps = mixtures.mixture_log_prob(cells.expand(len(betas), -1, -1), *plane_codes)
log_maps = torch.cat([log_maps, gaussian.gaussian_log_prob(cells, 0.0, 0.0)[None]]).reshape(-1, 161, 161).mT
fig, axes = plt.subplots(1, 3, figsize=(11.4, 3.3), sharey=True)
for ax, k, title in zip(axes, (1, 4, -1), ("q_agg, β = 1/8", "q_agg, β = 1", "p = N(0, I)"), strict=True):
    plots.heat_map(ax, axis, axis, log_maps[k].exp(), label="density", vmin=0, vmax=0.25)
    ax.set(title=title, xlabel="z_1", aspect="equal")
axes[0].set_ylabel("z_2")
plots.show(fig, alt=(
    "Heat maps: the aggregated posterior at beta 1/8 is wide, ragged and full of holes; at beta 1 it resembles the "
    "prior with valleys between the digits' classes; the prior is a smooth disc"
))

# %% [markdown]
# *What you see:* at $\beta = 1/8$ the codes spread far beyond the prior's disc and leave holes inside it; at $\beta = 1$ they are pressed
# together until they nearly fill it, with valleys left between heaps. Samples of the prior come from the disc, valleys and all.
#
# What does the decoder make of a hole? Take the eight-latent VAE with $\beta = 1/4$, whose marginal KL is several nats. We decode codes
# from $q_{agg}$, as in training, and codes from the prior, as in sampling. The number is the mean of $\log q_{agg}(z) - \log p(z)$
# over many codes of each kind: over $q_{agg}$ it is the marginal KL, over $p$ minus the reverse one.

# %%
quarter = nets.member(ladder, 2)  # beta = 1/4
generator = torch.Generator().manual_seed(3)
with torch.no_grad():
    codes = priors.AggregatedPosterior(*quarter.encode(digits.train_x))
    normal = priors.StandardNormalPrior(8).float()
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 2.2))
    for ax, prior, name in zip(axes, (codes, normal), ("Codes from q_agg", "Codes from the prior"), strict=True):
        z = prior.sample(4000, generator)
        log_ratio = codes.log_prob(z) - normal.log_prob(z)
        decoded = quarter.decoder.mean(z)
        plots.image_grid(ax, decoded[:12].reshape(-1, 8, 8), columns=6, vmin=0, vmax=1)
        ax.set_title(f"{name}: mean log-ratio {log_ratio.mean():+.1f}")
        pixels = torch.cdist((decoded > 0.5).float(), digits.test_x, p=1).min(dim=1).values.mean()
        print(f"{name:21s} share with q_agg(z) < p(z) / 10: {(log_ratio < -math.log(10)).float().mean():.2f}   "
              f"pixels off the nearest held-out digit: {pixels:.1f}")
plots.show(fig, alt=(
    "Decoded codes: those from the aggregated posterior look like digits, those from the prior often like several at once"
))

# %% [markdown]
# *What you see:* nearly all codes of the prior lie where $q_{agg}$ is less than a tenth of $p$: there training never put a code. At 64 pixels the eye
# hardly tells what that does to the pictures; the last number does. What the decoder makes of the prior's codes is farther from any real digit.
#
# The ELBO sees this only in part: its marginal KL, the positive number, is an average over codes of *data*. How strange the prior's codes are to
# the decoder is the reverse KL, the negative one with its sign turned, and no ELBO contains it.
#
# ### Live: β against the three terms
#
# The slider chooses one of the two-latent VAEs. **Try:** go to the smallest $\beta$ and compare the information with $\log n$ and the
# picture with the prior's circles; then go to the largest and watch the code disappear.

# %%
beta_surgery.show(plane, betas, digits.train_x, digits.train_y)

# %% [markdown]
# ### Exercise 3 · Surgery
#
# Two batches of latents are at hand: `z[s, i]` from $q(z \mid x_i)$, and `z_prior` from the prior $\mathcal N(0, I)$. Return the three
# terms of Theorem S3 (all as they stand there, with $p(z) = \mathcal N(0, I)$), such that reconstruction − information − marginal KL is the
# ELBO *of these samples*, to the last digit. Which batch do you need?

# %% exercise="elbo_surgery"
def elbo_surgery(
    z: torch.Tensor, z_prior: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor,
    log_likelihood: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(reconstruction, mutual information, marginal KL) in nats, scalars.

    z and z_prior (S, n, d), mean and log_var (n, d), log_likelihood (S, n) = log p(x_i | z_si).
    """
    ### BEGIN SOLUTION
    log_q = gaussian.gaussian_log_prob(z, mean, log_var)  # (S, n): each sample by its own posterior
    log_all = gaussian.gaussian_log_prob(z.unsqueeze(-2), mean, log_var)  # (S, n, n): by all of them
    log_agg = torch.logsumexp(log_all, dim=-1) - math.log(mean.shape[0])
    log_prior = gaussian.gaussian_log_prob(z, 0.0, 0.0)
    return log_likelihood.mean(), (log_q - log_agg).mean(), (log_agg - log_prior).mean()
    ### END SOLUTION

# %% check="elbo_surgery" points=2
check.elbo_surgery(elbo_surgery)
### BEGIN HIDDEN TESTS
check.hidden("elbo_surgery", elbo_surgery, seed=5053)
print("hidden tests ran to the end: elbo_surgery 0b39")
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · The optimal prior
#
# The slides: *"$\mathcal N(0, I)$ over-regularises; $q_{agg}$ is optimal, overfits and is highly expensive."* Let us measure.
#
# > **Theorem S4.** Fix the encoder and the decoder. Among all priors the training ELBO is largest for $p = q_{agg}$, and replacing $p$ by it
# > raises the training ELBO by exactly $\mathrm{KL}(q_{agg} \| p)$ a data point. Held-out data, whose own aggregated posterior is
# > $q_{test}$, gain
# > $$\mathrm{KL}(q_{test} \| p) - \mathrm{KL}(q_{test} \| q_{agg}),$$
# > which can have either sign. One density of $q_{agg}$ costs $O(n)$.
#
# <details><summary>Proof</summary>
#
# By S3 the prior enters the training ELBO as $-\mathrm{KL}(q_{agg} \| p) \le 0$, with equality iff $p = q_{agg}$: that is the optimum, and the gain. For
# held-out data S3 holds with $q_{test}$ in the place of $q_{agg}$; only its last term changes, from $-\mathrm{KL}(q_{test} \| p)$ to
# $-\mathrm{KL}(q_{test} \| q_{agg})$. Nothing forces the new term to be the larger one: where held-out
# codes fall into a hole of $q_{agg}$ it can be as negative as you like. One density is a sum of $n$ terms.
# </details>
#
# Numbers first, on the line: the six posteriors of section 1 are the training data. Two sets of held-out posteriors: one like them, one
# in the gaps between them. Left side: each point's own ELBO under both priors. Right side: divergences of mixtures.

# %% tags=["nbval-check-output"]
def gain_by_elbo(test_mean: torch.Tensor) -> torch.Tensor:
    """Change of the held-out ELBO when q_agg replaces p: the average of E_q[log q_agg - log p]."""
    test_log_q = gaussian.gaussian_log_prob(grid, test_mean[:, None], log_var[: len(test_mean), None])
    return (weights * test_log_q.exp() * (log_agg - log_prior)).sum(-1).mean()


def gain_by_divergences(test_mean: torch.Tensor) -> torch.Tensor:
    """KL(q_test || p) - KL(q_test || q_agg)."""
    log_test = mixtures.mixture_log_prob(grid, test_mean, log_var[: len(test_mean)])
    return KL(log_test, log_prior, weights) - KL(log_test, log_agg, weights)


gap = torch.tensor([[-1.55], [0.65]])  # the valleys between the heaps of section 2
for name, test_mean in {"training": mean, "alike": mean + 0.15, "in a gap": gap}.items():
    print(f"{name:9s} gain by ELBO {gain_by_elbo(test_mean):+.8f}   "
          f"by divergences {gain_by_divergences(test_mean):+.8f}")
print(f"KL(q_agg || p) =       {marginal:+.8f}")

# %% [markdown]
# And on digits. From here on, four VAEs with different initial weights and batches are trained at once; every number is a mean
# over the four, ± its standard error. The error bars cover initialisation and training noise, not the choice of the 300 held-out digits.

# %%
SEEDS, LATENTS = 4, 8


def new_networks() -> tuple[torch.nn.Module, vae.BernoulliDecoder]:
    """Encoders and decoders of SEEDS VAEs."""
    stack = {"members": SEEDS, "generator": torch.Generator().manual_seed(1)}
    return nets.MLP([64, 128, 2 * LATENTS], **stack), vae.BernoulliDecoder(nets.MLP([LATENTS, 128, 64], **stack))


def train(prior: priors.Prior | None, networks: tuple, steps: int = 500) -> tuple[vae.VAE, float]:
    """Train encoder, decoder and prior jointly on the ELBO; the seconds it took."""
    model = vae.VAE(*networks, LATENTS, prior=prior).float()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = torch.stack([minibatch(digits.train_x, 128, generator) for _ in range(SEEDS)])
        return vae.vae_loss(model.terms(batch, generator=generator))

    history = fit_many(loss, model.parameters(), steps=steps, lr=2e-2, lr_decay_from=0.5, progress=False)
    return model, history.seconds


def mean_se(values: torch.Tensor) -> str:
    """Mean and standard error over the seeds."""
    return f"{values.mean():6.2f} ± {values.std() / SEEDS**0.5:.2f}"


# %%
standard, standard_seconds = train(None, new_networks())
standard.requires_grad_(False)  # from here on frozen
train_codes, test_codes = standard.encode(digits.train_x), standard.encode(digits.test_x)
settings = {"num_samples": 16, "generator": torch.Generator().manual_seed(0)}
gains = {
    "training data": surgery.elbo_surgery(*train_codes, **settings),
    "held-out data": surgery.elbo_surgery(*test_codes, components=train_codes, **settings),
    "training data, each without its own posterior": surgery.elbo_surgery(
        *train_codes, leave_one_out=True, **settings
    ),
}
print("gain in the ELBO when q_agg replaces N(0, I), nats:")
for name, terms in gains.items():
    print(f"  {name:46s} {mean_se(terms.marginal_kl.mean((-2, -1)))}")
optimal = priors.AggregatedPosterior(*train_codes)
z = train_codes[0][:, :500]
for name, log_prob in {"N(0, I)": standard.prior_log_prob, "q_agg": optimal.log_prob}.items():
    start = time.perf_counter()
    [log_prob(z) for _ in range(10)]
    print(f"  time of 10 x 500 x {SEEDS} densities under {name:8s}: {time.perf_counter() - start:.4f} s")

# %% [markdown]
# The optimal prior gains about a nat on the data that it was made of, and less than half of that on new digits: the rest is memory. The
# third line needs no held-out data: a training digit whose own posterior is left out of $q_{agg}$ is in the place of a new one.
# So the overfitting of this prior can be seen in training. And every density costs 1497 Gaussians (in time tens
# of times as much as one, which is mostly overhead).

# %% [markdown]
# ## 6 · Priors that learn
#
# Between "knows nothing" and "remembers everything" lie priors with parameters $\lambda$, fitted by the forward KL of S3:
#
# - a **mixture of Gaussians**, $\sum_k w_k\, \mathcal N(z; \mu_k, \mathrm{diag}\,\sigma_k^2)$, with all its parameters free;
# - the **VampPrior** (*va*riational *m*ixture of *p*osteriors, Tomczak & Welling 2018), $\frac1K \sum_k q(z \mid u_k)$: the aggregated posterior of
#   $K$ made-up data points, the *pseudo-inputs* $u_k$, which are learned;
# - a **flow prior**, $\log p(z) = \log \mathcal N(f(z); 0, I) + \log|\det J_f(z)|$ (RealNVP, MAF: lecture 03).
#
# Whatever the prior, its log-density takes the place of $\log \mathcal N(z; 0, I)$ in the ELBO. With a flow, $f$ from codes to noise:
# $$\mathcal L = \mathbb E_{q(z \mid x)}\left[\log p(x \mid z, \theta) + \log \mathcal N(f(z); 0, I) + \log|\det J_f(z)| - \log q(z \mid x)\right].$$
#
# ### Exercise 4 · Mixture prior
#
# `logits` are free numbers; the weights are their softmax.

# %% exercise="mog_log_prob"
def mog_log_prob(
    z: torch.Tensor, means: torch.Tensor, log_vars: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """log sum_k w_k N(z; mean_k, diag exp(log_var_k)) in nats: (m, d), (K, d), (K, d), (K,) -> (m,)."""
    ### BEGIN SOLUTION
    log_components = gaussian.gaussian_log_prob(z.unsqueeze(-2), means, log_vars)  # (m, K)
    return torch.logsumexp(torch.log_softmax(logits, dim=-1) + log_components, dim=-1)
    ### END SOLUTION

# %% check="mog_log_prob" points=1
check.mog_log_prob(mog_log_prob)
### BEGIN HIDDEN TESTS
check.hidden("mog_log_prob", mog_log_prob, seed=5054)
print("hidden tests ran to the end: mog_log_prob e4a7")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 5 · VampPrior
#
# `encoder(u)` gives the means and the log-variances of $q(z \mid u_k)$. The pseudo-inputs are what is trained: gradients have to reach them.

# %% exercise="vamp_prior_log_prob"
def vamp_prior_log_prob(z: torch.Tensor, pseudo_inputs: torch.Tensor, encoder) -> torch.Tensor:
    """log (1/K) sum_k q(z | u_k) in nats: z (m, d), pseudo_inputs (K, p), encoder(u) -> two (K, d) -> (m,)."""
    ### BEGIN SOLUTION
    mean, log_var = encoder(pseudo_inputs)  # (K, d) each
    log_q = gaussian.gaussian_log_prob(z.unsqueeze(-2), mean, log_var)  # (m, K)
    return torch.logsumexp(log_q, dim=-1) - math.log(len(pseudo_inputs))
    ### END SOLUTION

# %% check="vamp_prior_log_prob" points=2
check.vamp_prior_log_prob(vamp_prior_log_prob)
### BEGIN HIDDEN TESTS
check.hidden("vamp_prior_log_prob", vamp_prior_log_prob, seed=5055)
print("hidden tests ran to the end: vamp_prior_log_prob 93f2")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 6 · Flow prior
#
# `transform(noise)` returns `(z, log_det)`, `transform.inverse(z)` returns `(noise, log_det)`, each with the log-determinant of the
# map just applied. The base is $\mathcal N(0, I)$.

# %% exercise="flow_prior_log_prob"
def flow_prior_log_prob(z: torch.Tensor, transform) -> torch.Tensor:
    """log p(z) of a flow prior in nats: (m, d) -> (m,)."""
    ### BEGIN SOLUTION
    noise, log_det = transform.inverse(z)
    return gaussian.gaussian_log_prob(noise, 0.0, 0.0) + log_det
    ### END SOLUTION

# %% check="flow_prior_log_prob" points=2
check.flow_prior_log_prob(flow_prior_log_prob)
### BEGIN HIDDEN TESTS
check.hidden("flow_prior_log_prob", flow_prior_log_prob, seed=5056)
print("hidden tests ran to the end: flow_prior_log_prob 2d68")
### END HIDDEN TESTS

# %% [markdown]
# ### One frozen encoder, all priors
#
# > **Finding S5.** On the training data a mixture prior and a flow prior cannot end up with a larger marginal KL than $\mathcal N(0, I)$ at their
# > optimum, for they contain it (all means 0 and variances 1; the identity map). A VampPrior need not contain it: with too few
# > pseudo-inputs it can be *worse*.
#
# The encoder and the decoder of section 5 are frozen now; each prior is fitted to the codes alone. For comparison the two
# priors that need no fitting: $\mathcal N(0, I)$ and $q_{agg}$. (Learning rates were chosen by the training objective.) **Predict first:** $q_{agg}$ overfits, as
# section 5 showed. Does that make it worse on held-out digits than a mixture of 50 Gaussians?

# %%
KINDS = ("mixture, K = 50", "VampPrior, [0, 1]", "VampPrior, free", "RealNVP, 4 layers", "MAF, 2 layers")


def make_prior(kind: str, encoder: torch.nn.Module, codes: tuple | None = None) -> priors.Prior:
    """SEEDS priors of a kind; a mixture may start from codes."""
    stack = {"members": SEEDS, "generator": torch.Generator().manual_seed(3)}
    if kind == "mixture, K = 50":
        prior = priors.MixturePrior(50, LATENTS, **stack).float()
        if codes is not None:
            prior.start_from(*codes, stack["generator"])
        return prior
    if kind.startswith("VampPrior"):
        start, bounds = digits.train_x[:50].expand(SEEDS, 50, 64), (0.0, 1.0) if "[0, 1]" in kind else None
        return priors.VampPrior(encoder, start, LATENTS, bounds=bounds, members=SEEDS)
    make = priors.FlowPrior.realnvp if kind.startswith("RealNVP") else priors.FlowPrior.maf
    return make(LATENTS, num_layers=4 if kind.startswith("RealNVP") else 2, **stack).float()


def fit_frozen(prior: priors.Prior, steps: int = 400) -> float:
    """Fit a prior to the frozen codes by its forward KL; the seconds it took."""
    lr = 0.01 if isinstance(prior, priors.FlowPrior) else 0.2 if getattr(prior, "bounds", None) else 0.03
    return fit_many(
        lambda step, generator: priors.cross_entropy(prior, *train_codes, batch_size=128, generator=generator),
        prior.own_parameters(), steps=steps, lr=lr, lr_decay_from=0.5, progress=False,
    ).seconds


# %%
@torch.no_grad()
def measure(model: vae.VAE) -> dict[str, torch.Tensor]:
    """What we know of SEEDS VAEs, one number each (nats): averages over training or held-out digits."""
    settings = {"num_samples": 8, "generator": torch.Generator().manual_seed(0)}
    train = surgery.vae_surgery(model, digits.train_x, **settings)
    test = surgery.vae_surgery(model, digits.test_x, **settings)
    log_w = vae.importance_log_weights(model, digits.test_x, **settings | {"num_samples": 200})
    values = {"information": train.mutual_information, "marginal KL": train.marginal_kl,
              "train ELBO": train.elbo, "held-out ELBO": test.elbo}
    averages = {name: value.mean((-2, -1)) for name, value in values.items()}
    return averages | {"held-out L200": iwae_bound(log_w, dim=-2).mean(-1)}


def print_row(name: str, found: dict[str, torch.Tensor], prior: priors.Prior | None, seconds: float) -> None:
    """One line of the table."""
    size = 0 if prior is None else sum(p.numel() for p in prior.own_parameters()) // SEEDS
    print(f"{name:17s}" + "".join(f"{mean_se(value):>14s}" for value in found.values()) + f"{size:8d}{seconds:6.1f}")


COLUMNS = ("information", "marginal KL", "train ELBO", "held-out ELBO", "held-out L200")
HEADER = " " * 17 + "".join(f"{column:>14s}" for column in COLUMNS) + " weights     s"

# %%
frozen, widths = {"N(0, I)": measure(standard)}, {}
print(HEADER)
print_row("N(0, I)", frozen["N(0, I)"], None, 0.0)
for kind in KINDS:
    prior = make_prior(kind, standard.encoder, train_codes)
    seconds = fit_frozen(prior)
    frozen[kind] = measure(vae.VAE(standard.encoder, standard.decoder, LATENTS, prior=prior))
    print_row(kind, frozen[kind], prior, seconds)
    if kind.startswith("VampPrior"):
        widths[kind] = prior.components()[1]
frozen["q_agg, K = 1497"] = measure(vae.VAE(standard.encoder, standard.decoder, LATENTS, prior=optimal))
print_row("q_agg, K = 1497", frozen["q_agg, K = 1497"], None, 0.0)
widths = {name: (0.5 * log_var).exp().mean() for name, log_var in {"digits": train_codes[1], **widths}.items()}
print("mean width of a posterior at " + ", ".join(f"{name}: {width:.2f}" for name, width in widths.items()))

# %% [markdown]
# Read it column by column. *Information* does not move: it is the encoder's. The *marginal KL* does, and the training ELBO by the same
# amount, as S3 says. On training data nothing beats $q_{agg}$. On *held-out* digits, by the ELBO, the mixture of 50 draws level with
# it, at a thirtieth of its components.
#
# So the answer to the prediction: "overfits" does not mean "is worse". $q_{agg}$ loses more than half of its gain on the way to held-out data and is
# still among the best there; the importance-weighted likelihood $\mathcal L_{200}$ (lecture 02) even puts it first. What speaks against it is the
# price of a density.
#
# The VampPrior comes twice, both with $K = 50$: with pseudo-inputs that stay pictures, in $[0, 1]$ as in the paper, and with free ones (the encoder
# takes any numbers). As pictures they gain nothing here by the ELBO: the posteriors of pictures are narrow, and in this short training fifty of them do
# not cover the codes of this encoder, which was trained without them. Free ones find inputs at which the encoder answers with wider posteriors (last line), and do
# as well as the mixture. By likelihood both gain: the ELBO asks how well a prior fits the codes of *this* $q$, importance
# weights pick, among 200 codes, those that decoder and prior both like.
#
# The flows gain about half of that. All learned priors had the same 400 steps, which are too few for the flows and for pictures:
# `fit_frozen(prior, steps=2000)` takes them further. (*Weights* counts the prior's own parameters:
# $q_{agg}$ has none, it carries the data. *s* is the training time in seconds, of four priors at once.)
#
# ### Too few pseudo-inputs
#
# Here no encoder can help, and there is no noise of training to average over: 200 codes in the plane, and an encoder whose posteriors have the width 0.15 at *every* input.

# %%
class FixedWidth(torch.nn.Module):
    """q(z|u) = N(u, 0.15^2 I)."""

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return torch.cat([u, torch.full_like(u, 2 * math.log(0.15))], dim=-1)


generator = torch.Generator().manual_seed(0)
points = torch.randn(200, 2, generator=generator)
codes = FixedWidth()(points).chunk(2, -1)
counts, sweep = (3, 10, 30, 100), {"mixture": [], "VampPrior": []}
for K in counts:
    mixture, vamp = priors.MixturePrior(K, 2), priors.VampPrior(FixedWidth(), points[:K], 2)
    mixture.start_from(*codes, generator)
    for prior, row in zip((mixture, vamp), sweep.values(), strict=True):
        fit(lambda step, generator, prior=prior: priors.cross_entropy(prior, *codes, generator=generator),
            prior.own_parameters(), steps=400, lr=0.05, lr_decay_from=0.5, progress=False)
        with torch.no_grad():
            row.append(surgery.marginal_kl(*codes, prior.log_prob, num_samples=64, generator=generator))
normal = surgery.marginal_kl(*codes, num_samples=64, generator=generator).mean.item()  # the same for all K

# %%
fig, ax = plt.subplots(figsize=(8.6, 3.3))
for label, row in sweep.items():
    ax.plot(counts, [found.mean for found in row], marker="o", label=label)
    print(f"{label:10s}" + "   ".join(f"K = {K}: {found.mean:6.3f} ± {found.standard_error:.3f}"
                                      for K, found in zip(counts, row, strict=True)))
print(f"N(0, I)   {normal:.3f}")
plots.reference_line(ax, "N(0, I)", y=normal)
plots.log_axes(ax)
ax.set_xticks(counts, [str(K) for K in counts])
ax.set(title="A VampPrior needs enough pseudo-inputs", xlabel="components or pseudo-inputs K",
       ylabel="marginal KL (nats)")
ax.legend()
plots.show(fig, alt=(
    "Marginal KL on training data against the number of components: the mixture lies below N(0, I) for every number, "
    "the VampPrior at nats for few pseudo-inputs and below N(0, I) only for many"
))

# %% [markdown]
# *What you see:* the mixture is never worse than $\mathcal N(0, I)$, even with three components: it chooses its widths. The VampPrior cannot: ten narrow heaps
# leave most of the 200 codes in the dark, and it takes many to break even.
#
# ### Trained jointly
#
# A prior that may move lets the encoder move as well. The same priors again, now trained together with encoder and decoder from the start, for as many
# steps as the standard VAE (so with fewer in all than above, where the prior's own came on top; and the mixture starts at random, as there are no codes
# to start from).

# %%
joint, models = {"N(0, I)": frozen["N(0, I)"]}, {}
print(HEADER)
print_row("N(0, I)", joint["N(0, I)"], None, standard_seconds)
for kind in KINDS:
    networks = new_networks()
    prior = make_prior(kind, networks[0])
    models[kind], seconds = train(prior, networks)
    joint[kind] = measure(models[kind])
    print_row(kind, joint[kind], prior, seconds)

# %%
fig, axes = plt.subplots(1, 2, figsize=(10.6, 3.4), sharey=True)
short = ("N(0, I)", "mixture", "Vamp\n[0, 1]", "Vamp\nfree", "RealNVP", "MAF")
titles = {"held-out ELBO": "Held-out ELBO", "held-out L200": "Held-out bound L_200"}
for ax, (name, title) in zip(axes, titles.items(), strict=True):
    for table, label, shift in ((frozen, "frozen encoder", -0.1), (joint, "trained jointly", 0.1)):
        gain = torch.stack([table[kind][name] - frozen["N(0, I)"][name] for kind in joint])
        style = {"fmt": "o", "capsize": 4, "color": plots.PALETTE[int(shift > 0)], "label": label}
        ax.errorbar(torch.arange(6) + shift, gain.mean(-1), gain.std(-1) / SEEDS**0.5, **style)
    plots.reference_line(ax, y=0.0)
    ax.set_xticks(range(6), short)
    ax.set(title=title)
axes[0].set_ylabel("gain over N(0, I)  (nats)")
axes[0].legend(loc="center left")
plots.show(fig, alt=(
    "Gain in held-out ELBO and likelihood over the standard normal prior for mixture, VampPrior, RealNVP and MAF: trained "
    "jointly all gain about half a nat, on a frozen encoder less, and the ELBO of a VampPrior with pictures not at all"
))

# %% [markdown]
# *What you see:* trained jointly every prior does better, by either yardstick. The VampPrior with pictures has most to gain: now the encoder comes to
# meet it. With eight latents and 1497 digits the smallest
# prior, the mixture, is hard to beat. The papers find VampPrior and flows ahead at a larger scale; these four seeds neither show that nor contradict it.
#
# Does $\mathcal N(0, I)$ *over-regularise*, as the slides say? Not in the sense that it holds back information: that hardly changes from prior to prior. What the
# others gain is nearly all marginal KL.
#
# Two more questions of the slides. *"Do we really need the multimodal prior?"* Held-out digits say yes: a single Gaussian could only correct mean and
# scale, and 50 of them gain half a nat and more. *"Is it beneficial to couple the prior with the variational posterior, or is the mixture enough?"* Coupling is
# what the VampPrior does; with free pseudo-inputs it ties with the mixture, frozen and jointly. At this scale the mixture is enough.
#
# ### What the pseudo-inputs look like

# %%
vamp = nets.member(models["VampPrior, [0, 1]"], 0)
with torch.no_grad():
    chosen = vamp.prior.pseudo_inputs[:12]
    centre, spread = (value[:12] for value in vamp.prior.components())
    z = gaussian.gaussian_sample(centre, spread, sample_shape=(4,), generator=torch.Generator().manual_seed(6))
    samples = vamp.decoder.mean(z)  # (4, 12, 64)
fig, ax = plt.subplots(figsize=(8.6, 3.9))
plots.image_grid(ax, torch.cat([chosen[None], samples]).reshape(-1, 8, 8), columns=12, vmin=0, vmax=1)
ax.set_title("Twelve pseudo-inputs (top row) and four samples of each")
plots.show(fig, alt=(
    "Top row: twelve learned pseudo-inputs, most like frayed digits; below each four decoded samples, most of its class"
))

# %% [markdown]
# *What you see:* nobody asked the pseudo-inputs to look like digits, only to have useful posteriors. In this short training they stay
# close to the digits from which they started, a little frayed. Down most columns the samples agree with one another: a
# pseudo-input stands for one heap of codes, so a VampPrior can be asked for samples *like this one*.
#
# ### Live: choose the prior
#
# The two-latent encoder with $\beta = 1/4$, frozen, and every prior in several sizes. **Try:** the VampPrior at its smallest; then $q_{agg}$ at its
# largest, and compare its two bars.

# %%
fitted = prior_choice.fit_priors(nets.member(plane, 2).encoder, digits.train_x, steps=200)
prior_choice.show(fitted, digits.test_x)

# %% [markdown]
# ## 7 · Which flow can be a prior?
#
# The slides ask: *"Is it OK to use IAF for the VAE prior?"*
#
# > **Theorem S6.** Training a prior takes the density of given codes $z \sim q(z \mid x)$, that is the flow's inverse. Let one autoregressive layer act on $d$ latents. For a MAF that
# > takes one network pass; for an IAF the noise has to be found dimension by dimension, in $d$ passes. Sampling the
# > prior is the other way round.
#
# <details><summary>Proof</summary>
#
# MAF: $\varepsilon_j = (z_j - \hat\mu_j(z_{<j})) / \hat\sigma_j(z_{<j})$: all networks read $z$, which is given. IAF: $z_j = \mu_j(\varepsilon_{<j}) + \sigma_j(\varepsilon_{<j})\,\varepsilon_j$:
# the networks read $\varepsilon$, which is sought. $\varepsilon_1$ needs nothing; each pass makes one more $\varepsilon_j$ known. So $d$ passes suffice, and with this scheme
# no fewer do (one more pass reads off the log-determinant).
# </details>
#
# We count the passes of the textbook's inversion ($d = 32$, and one for the log-determinant), and time the library's own, which is cleverer,
# both ways: density with gradient, as training needs them, and sampling.

# %%
z = torch.randn(256, 32, generator=torch.Generator().manual_seed(7))  # codes, d = 32
Layer = MaskedAutoregressiveFlow | InverseAutoregressiveFlow


def passes_at_once(layer: Layer) -> int:
    """Network passes of the fast direction."""
    return count_passes(layer.net, lambda: layer.parameters_at(z))


def passes_one_by_one(layer: Layer) -> int:
    """Network passes of the textbook's sequential direction."""
    return count_passes(layer.net, lambda: solve_sequentially(layer.net, layer.step, z))


def count_passes(net: torch.nn.Module, run) -> int:
    passes = []
    counter = net.register_forward_hook(lambda *_: passes.append(1))
    run()
    counter.remove()
    return len(passes)


# %%
ways = {"maf": (passes_at_once, passes_one_by_one), "iaf": (passes_one_by_one, passes_at_once)}
for name, (density, sample) in ways.items():
    prior = getattr(priors.FlowPrior, name)(32, num_layers=1, generator=torch.Generator().manual_seed(8))
    layer = prior.flow.transform[0]
    torch.nn.init.normal_(layer.net.layers[-1].weight, std=0.1, generator=torch.Generator().manual_seed(9))
    seconds = {}
    for task in (lambda prior=prior: prior.log_prob(z).mean().backward(), lambda prior=prior: prior.sample(256)):
        task()  # warm
        start = time.perf_counter()
        for _ in range(5):
            task()
        seconds[task] = (time.perf_counter() - start) / 5
    milliseconds = [f"{1000 * value:.1f} ms" for value in seconds.values()]
    print(f"{name.upper()}: passes for a density {density(layer):2d}, for a sample {sample(layer):2d}     "
          f"the library's density with gradient {milliseconds[0]}, its sampling {milliseconds[1]}")

# %% [markdown]
# So no: an IAF prior *can* be trained (it is a proper density, and the library inverts it cleverly, block by block), but each
# step pays for the inversion and its gradient, while a MAF prior pays only when one samples. For a *posterior* it is the other way round: there one samples in every
# step, and an IAF is the natural choice (lecture 06).
#
# The slides also ask: *"Is it possible to use a non-invertible model in the VAE prior?"* Yes. Training asks for one thing, $\log p(z)$ at given codes with its gradient, and
# sampling for another. Whatever offers both will do: the mixture above is no flow, nor is the VampPrior, and a plain autoregressive
# model over (possibly discrete) codes is the prior of VQ-VAE. What will *not* do is a prior without a tractable density, such as a generator network: for that,
# lecture 07 has another way to measure a distance.
#
# ## Equation ↔ function
#
# | equation | function |
# |---|---|
# | $\log \sum_j w_j\,\mathcal N(z; \mu_j, \sigma_j^2)$, for very many $j$ (S1, S4) | `mixtures.mixture_log_prob` |
# | $q(j \mid z)$ (S2) | `mixtures.mixture_responsibilities` |
# | reconstruction, $\mathbb I_q$, $\mathrm{KL}(q_{agg} \Vert p)$, sample by sample (S1, S3) | `surgery.elbo_surgery`, `surgery.Estimate` |
# | the same for each latent dimension (S1) | `surgery.elbo_surgery_per_dim` |
# | $\mathbb I_q$ by densities, by the entropy of the index (S2) | `surgery.mutual_information`, `surgery.index_information` |
# | $\mathrm{KL}(q_{agg} \Vert p)$ (S3) | `surgery.marginal_kl` |
# | $-\mathbb E_{q_{agg}} \log p(z \mid \lambda)$ (S3) | `priors.cross_entropy` |
# | $p = q_{agg}$ (S4) | `priors.AggregatedPosterior` |
# | $\sum_k w_k\,\mathcal N(\mu_k, \sigma_k^2)$ (S5) | `priors.MixturePrior` |
# | $\frac1K \sum_k q(z \mid u_k)$ (S5) | `priors.VampPrior` |
# | $\log \mathcal N(f(z); 0, I) + \log\lvert\det J_f\rvert$ (S5, S6) | `priors.FlowPrior` |
# | any of them in a model | `vae.VAE`, argument `prior` |
#
# ## Summary
#
# - The KL term of a data set's ELBO is information plus marginal KL, sample by sample. Information is what the code is for; the marginal KL is the
#   mismatch between the codes of data and the prior.
# - Information cannot exceed $\log n$. Narrower posteriors then only add marginal KL.
# - The prior enters the ELBO as a forward KL: fitting it is density estimation on codes.
# - The optimal prior is the aggregated posterior. It gains exactly the marginal KL on training data, much less on held-out data, and costs $n$ Gaussians a
#   density. Leaving out each point's own posterior comes close to predicting the held-out gain.
# - Should we give the ELBO what it wants? Nearly: a mixture of 50 Gaussians, or a VampPrior with free pseudo-inputs, has all of the held-out gain of
#   $q_{agg}$ at a thirtieth of its price; flows had half of it in the same number of steps. A VampPrior with too few pseudo-inputs can be worse than no
#   learning at all.
# - A prior needs a fast density: MAF or RealNVP, not IAF.
#
# ## References
#
# - M. D. Hoffman, M. J. Johnson. [ELBO surgery: yet another way to carve up the variational evidence lower bound](https://approximateinference.org/accepted/HoffmanJohnson2016.pdf), 2016.
# - J. M. Tomczak, M. Welling. [VAE with a VampPrior](https://arxiv.org/abs/1705.07120), 2018.
# - X. Chen et al. [Variational Lossy Autoencoder](https://arxiv.org/abs/1611.02731), 2017 (an autoregressive flow as the prior).
# - L. Dinh, J. Sohl-Dickstein, S. Bengio. [Density Estimation using Real NVP](https://arxiv.org/abs/1605.08803), 2017.
# - G. Papamakarios, T. Pavlakou, I. Murray. [Masked Autoregressive Flow for Density Estimation](https://arxiv.org/abs/1705.07057), 2017.
# - M. Rosca, B. Lakshminarayanan, S. Mohamed. [Distribution Matching in Variational Inference](https://arxiv.org/abs/1802.06847), 2018.
# - A. van den Oord, O. Vinyals, K. Kavukcuoglu. [Neural Discrete Representation Learning](https://arxiv.org/abs/1711.00937), 2017.
# - Y. Burda, R. Grosse, R. Salakhutdinov. [Importance Weighted Autoencoders](https://arxiv.org/abs/1509.00519), 2016.

# %%
check.progress()
