# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Posterior collapse
#
# **When does a decoder stop listening to its latent code, and what brings it back?**
#
# | | |
# |---|---|
# | You need | Gaussians, the Kullback–Leibler divergence, gradient descent; no earlier lecture |
# | Time | 90 minutes of reading and running, 60 minutes of exercises |
# | Library files | `gaussian` · `linear_gaussian` · `linear_vae` · `em` · `bounds` · `nets` · `vae` · `train` |
#
# Run the notebook from the top (*Run → Run All Cells*): it takes less than a minute on two cores, downloads
# nothing, and needs none of your answers to the exercises.

# %% [markdown]
# ## Where we are
#
# A *variational autoencoder* (VAE) explains data $x$ by a latent code $z$: a prior $p(z)$, a decoder
# $p(x \mid z, \theta)$, and an encoder $q(z \mid x, \phi)$ that stands in for the posterior nobody can
# compute. It has four weak points, and the course is organised around them:
#
# | weak point | what goes wrong | where we treat it |
# |---|---|---|
# | **the decoder** $p(x \mid z, \theta)$ | too weak: blurred samples; too strong: it ignores $z$ | **this lecture** |
# | the bound | the ELBO is not $\log p(x)$ | 02 IWAE |
# | the prior $p(z)$ | it leaves holes where no code lives | 05 ELBO surgery |
# | the posterior $q(z \mid x, \phi)$ | a diagonal Gaussian is rarely the truth | 03 and 06 flows |
#
# ## After this lecture you can
#
# 1. write $\log p(x)$ as ELBO plus a KL divergence, and say exactly when the bound is tight (C1);
# 2. run the EM algorithm and explain why it never goes downhill (C2);
# 3. choose between two gradient estimators and predict their variances (C3);
# 4. tell the approximation gap from the amortisation gap (C4);
# 5. predict, *before training*, which latent directions of a linear VAE will collapse (C5), and measure it
#    (C9);
# 6. explain why a decoder that can do without $z$ will (C6), and what KL annealing (C7) and free bits (C8)
#    can and cannot do about it.

# %%
import warnings

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_rgb
from sklearn.mixture import GaussianMixture as SklearnMixture

from dgm_course import bounds, check, data, em, gaussian, linear_gaussian, linear_vae, nets, plots, vae
from dgm_course.demos import phase_diagram, receptive_field
from dgm_course.train import fit_many, minibatch

plots.use_style()
torch.set_default_dtype(torch.float64)  # the oracles are exact to 1e-10; digits run in float32 below
torch.set_num_threads(1)  # many small products: a second thread only gets in the way

# %% [markdown]
# ## 1 · One identity
#
# Everything below grows from one line of algebra. The joint density factors in two ways,
# $p(x, z) = p(z \mid x)\,p(x)$, so for *any* density $q(z)$ the constant $\log p(x)$ splits into two terms.
#
# > **Theorem C1.** Let $p(x) > 0$, and let $q(z)$ be a density with finite
# > $\mathrm{KL}(q(z) \| p(z \mid x))$. With
# > $\mathcal L(q) = \mathbb E_{q}\left[\log p(x, z) - \log q(z)\right]$, the *evidence lower bound* (ELBO),
# > $$\log p(x) = \mathcal L(q) + \mathrm{KL}\left(q(z)\,\|\,p(z \mid x)\right),$$
# > so $\mathcal L(q) \le \log p(x)$, with equality if and only if $q(z) = p(z \mid x)$ almost everywhere.
#
# <details><summary>Proof</summary>
#
# The derivation is written exercise W1, at the end of this section. Where to begin: $\log p(x)$ does not
# depend on $z$, so it equals its own expectation under $q$.
# </details>
#
# To check an identity we need a model in which both sides can be computed. The course has one, and uses it as
# its ruler: the **linear-Gaussian model** $p(z) = \mathcal N(0, I_d)$,
# $p(x \mid z) = \mathcal N(Wz + b, \sigma^2 I_m)$. Its evidence and its posterior are Gaussians with known
# parameters. The left side below comes from the $m$-dimensional marginal
# $\mathcal N(b, WW^\top + \sigma^2 I)$, the right side never sees it.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
model = linear_gaussian.LinearGaussian(
    W=torch.randn(5, 2, generator=generator), b=torch.zeros(5), sigma2=torch.tensor(0.5)
)
x, _ = model.sample(1, generator=generator)
q_mean, q_cov = torch.tensor([[0.3, -0.8]]), torch.tensor([[0.20, 0.05], [0.05, 0.40]])

marginal = torch.distributions.MultivariateNormal(model.b, model.W @ model.W.T + 0.5 * torch.eye(5))
bound, gap = model.elbo(x, q_mean, q_cov), model.posterior_kl(x, q_mean, q_cov)
print(f"log p(x)   = {marginal.log_prob(x).item():.8f}")
print(f"ELBO + KL  = {(bound + gap).item():.8f}   ({bound.item():.4f} + {gap.item():.4f})")

# %% [markdown]
# Now let $q$ travel. Its mean moves along a line through the posterior mean; its covariance stays the
# posterior's.
#
# **Predict first:** where does the gap vanish, and what shape does the ELBO have?

# %%
post_mean, post_cov = model.posterior(x)
shift = torch.linspace(-1.5, 1.5, 121)
q_means = post_mean + shift[:, None] * torch.tensor([1.0, 0.5])  # (121, 2)
elbos = model.elbo(x, q_means, post_cov)
log_px = model.log_prob(x).item()

fig, ax = plt.subplots(figsize=(7, 3.2))
ax.plot(shift, elbos, label="ELBO")
ax.axhline(log_px, color=plots.PALETTE[1], label="log p(x)")
ax.fill_between(shift, elbos, log_px, color=plots.PALETTE[1], alpha=0.15, label="KL(q ‖ posterior)")
ax.set(xlabel="shift of q's mean from the posterior mean", ylabel="nats", title="The gap is a KL divergence")
ax.legend()
plots.show(fig, alt="The ELBO is a parabola that touches the constant log p(x) where q is the posterior")

# %% [markdown]
# *What you see:* the parabola touches the line at exactly one point, shift 0, where $q$ is the posterior.
# Everywhere else the shaded gap is $\mathrm{KL}(q \| p(z \mid x))$. Maximising the ELBO over $q$ is
# inference; maximising it over $\theta$ is learning, safe in the sense that the bound can only be too
# pessimistic.
#
# ### The three faces of the ELBO
#
# | form | expression | when to use it |
# |---|---|---|
# | joint | $\mathbb E_q[\log p(x,z) - \log q(z \mid x)]$ | any $q$ that can be sampled and evaluated |
# | regularised reconstruction | $\mathbb E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \| p(z))$ | the KL is closed form |
# | evidence | $\log p(x) - \mathrm{KL}(q(z \mid x) \| p(z \mid x))$ | to reason with |
#
# All three are one number. The first is an average over samples of $z$, the other two are closed forms here:

# %%
draws = torch.distributions.MultivariateNormal(q_mean[0], q_cov)
torch.manual_seed(1)
z = draws.sample((100_000,))
one_sample = bounds.elbo(model.log_joint(x, z), draws.log_prob(z))  # (100000,)
prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
kl_to_prior = torch.distributions.kl_divergence(draws, prior)
error = (x - q_mean @ model.W.T).square().sum() + (model.W @ q_cov @ model.W.T).trace()
reconstruction = -0.5 * (5 * torch.tensor(2 * torch.pi * 0.5).log() + error / 0.5)
print(f"joint                      {one_sample.mean():.3f} ± {one_sample.std() / 100_000**0.5:.3f}")
print(f"regularised reconstruction {bounds.elbo_from_kl(reconstruction, kl_to_prior):.3f}")
print(f"evidence                   {bounds.elbo_from_evidence(marginal.log_prob(x), gap).item():.3f}")

# %% [markdown]
# The second form holds this lecture's subject: its KL term is the *price in nats* that the model pays for
# telling the decoder anything about $x$. **Posterior collapse** is the state in which nothing is paid and
# nothing is told, $q(z \mid x) = p(z)$ for every $x$.
#
# ### Exercise 1 · The price of a code (warm-up)
#
# Write the KL divergence of a diagonal Gaussian from the standard normal. `log_var` is the logarithm of the
# *variance*.

# %% exercise="gaussian_kl"
def gaussian_kl(mean: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, diag exp(log_var)) || N(0, I)) in nats: (B, d), (B, d) -> (B,)."""
    ### BEGIN SOLUTION
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(dim=-1)
    ### END SOLUTION

# %% check="gaussian_kl" points=2
check.gaussian_kl(gaussian_kl)
### BEGIN HIDDEN TESTS
check.hidden("gaussian_kl", gaussian_kl, seed=4711)
print("hidden tests ran to the end: gaussian_kl 7f3a")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise 2 · One sample of the ELBO
#
# The encoder drew one $z$ for each $x$ and you are handed three log-densities. Combine them into a one-sample
# estimate of the ELBO for each $x$.

# %% exercise="elbo"
def elbo(
    log_px_given_z: torch.Tensor, log_pz: torch.Tensor, log_qz_given_x: torch.Tensor
) -> torch.Tensor:
    """One-sample estimate of the ELBO, one value for each x: (B,), (B,), (B,) -> (B,)."""
    ### BEGIN SOLUTION
    return log_px_given_z + log_pz - log_qz_given_x
    ### END SOLUTION

# %% check="elbo" points=1
check.elbo(elbo)
### BEGIN HIDDEN TESTS
check.hidden("elbo", elbo, seed=4712)
print("hidden tests ran to the end: elbo b21c")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise W1 · Derive the identity (written)
#
# Prove Theorem C1. State where you use that the KL is finite, and why equality forces $q(z) = p(z \mid x)$
# almost everywhere, not merely "similar".

# %% [markdown] written="C1" points=4
# ### BEGIN SOLUTION
# **Model answer.** Since $p(x, z) = p(z \mid x)\,p(x)$, wherever $p(z \mid x) > 0$
# $$\log p(x) = \log p(x, z) - \log p(z \mid x).$$
# A finite KL means that $q$ puts all of its mass there, so the equation holds $q$-almost surely and we may
# take its expectation under $q$. The left side is a constant. On the right, add and subtract $\log q(z)$:
# $$\log p(x) = \mathbb E_q[\log p(x, z) - \log q(z)] + \mathbb E_q[\log q(z) - \log p(z \mid x)]
# = \mathcal L(q) + \mathrm{KL}(q \| p(z \mid x)),$$
# where the split is allowed because the second expectation is finite. With $r = p(z \mid x)/q$ we have
# $\mathbb E_q[r] \le 1$ and $-\log r \ge 1 - r$, so $\mathrm{KL} = \mathbb E_q[-\log r] \ge 0$, hence
# $\mathcal L(q) \le \log p(x)$. Because $-\log r > 1 - r$ unless $r = 1$, the KL is zero only if $r = 1$
# $q$-almost everywhere; then $p(z \mid x) = q(z)$ on a set that carries all the mass of $q$, hence all of the
# posterior's mass as well, and the two densities agree almost everywhere.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: starts from $p(x,z) = p(z \mid x) p(x)$ (or Bayes' rule) and takes the expectation under $q$ of a
#   constant.
# - 1 point: inserts $\log q$ and names both terms correctly, KL in the direction
#   $\mathrm{KL}(q \| p(z \mid x))$.
# - 1 point: proves $\mathrm{KL} \ge 0$ (Jensen or $\log t \le t - 1$), rather than asserting it.
# - 1 point: the equality case with its reason (strict concavity), and where the finite KL is used.
# ### END MARK SCHEME

# %% [markdown]
# ## 2 · Climbing the bound: the EM algorithm
#
# Two knobs raise $\mathcal L(q, \theta)$: turn $q$ (the **E-step**), then $\theta$ (the **M-step**).
#
# > **Theorem C2.** Let $q_t(z) = p(z \mid x, \theta_t)$ for every data point (E-step) and
# > $\theta_{t+1} \in \arg\max_\theta \sum_i \mathcal L(q_t, \theta; x_i)$ (M-step). Then
# > $\log p(X \mid \theta_{t+1}) \ge \log p(X \mid \theta_t)$. For probabilistic PCA (the linear-Gaussian
# > model with $b$ and $\sigma^2$ learned) and eigenvalues $\lambda_d > \lambda_{d+1}$ of the data covariance
# > the only *stable* fixed point, up to a rotation of $z$, spans the $d$ leading eigenvectors; other subsets
# > of eigenvectors are saddle points.
#
# <details><summary>Proof of the inequality</summary>
#
# By C1 the E-step makes the bound tight: $\mathcal L(q_t, \theta_t) = \log p(X \mid \theta_t)$. The M-step
# cannot lower the bound, and the bound never exceeds the likelihood:
# $\log p(X \mid \theta_{t+1}) \ge \mathcal L(q_t, \theta_{t+1}) \ge \mathcal L(q_t, \theta_t) = \log p(X \mid \theta_t)$.
# The statement on probabilistic PCA is Tipping & Bishop (1999), appendix A.
# </details>
#
# First the classic, a mixture of three Gaussians, whose E-step is Bayes' rule over three components.
# scikit-learn's `GaussianMixture`, started from the same point, is the independent witness.

# %%
generator = torch.Generator().manual_seed(3)
centres = torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.5, -1.5]])
points = centres[torch.arange(300) % 3] + 0.7 * torch.randn(300, 2, generator=generator)
start = em.GaussianMixture(
    weights=torch.full((3,), 1 / 3),
    means=0.5 * torch.randn(3, 2, generator=generator),
    covariances=torch.eye(2).repeat(3, 1, 1),
)
steps = [em.gaussian_mixture_em_step(start, points)]
for _ in range(29):
    steps.append(em.gaussian_mixture_em_step(steps[-1].mixture, points))
climb = torch.stack([step.log_prob.mean() for step in steps])  # log p(X) / n before each M-step
fell = bool((climb.diff() < -1e-12).any())
print(f"log p(X)/n: {climb[0]:.4f} -> {climb[-1]:.4f}; a step that fell by more than rounding: {fell}")

# %%
witness = SklearnMixture(
    3, tol=0.0, max_iter=30, reg_covar=0.0, weights_init=start.weights.numpy(),
    means_init=start.means.numpy(), precisions_init=start.covariances.inverse().numpy(),
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tol=0 never "converges": we want exactly 30 steps
    witness.fit(points.numpy())
print(f"largest difference of a mean from scikit-learn's: "
      f"{abs(steps[-1].mixture.means.numpy() - witness.means_).max():.1e}")

# %%
palette = torch.tensor([to_rgb(colour) for colour in plots.PALETTE[:3]])  # mixed by the responsibilities
fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.9), sharex=True, sharey=True)
for ax, t in zip(axes, (0, 3, 6, 29), strict=True):
    mixture = start if t == 0 else steps[t - 1].mixture
    plots.points(ax, points, color=(steps[t].responsibilities @ palette).numpy(), size=9)
    for k in range(3):
        plots.covariance_ellipse(ax, mixture.means[k], mixture.covariances[k])
    ax.set(title=f"step {t}: {climb[t]:.3f}", aspect="equal", xlabel="x₁")
axes[0].set_ylabel("x₂")
plots.show(fig, alt=(
    "Three ellipses start on top of each other and separate onto the three clusters "
    "within six EM steps"
))

# %% [markdown]
# *What you see:* the colour of a point mixes the three responsibilities $q(k \mid x)$; the number is
# $\log p(X)/n$ in nats. It rises at every step and levels off once each ellipse has a cluster to itself.
#
# The same two steps fit probabilistic PCA. On the 64 pixels of real handwritten digits, EM starts from a
# random $W$ and is compared with the eigen-solution. $W$ is determined up to a rotation of the latents, so we
# compare $WW^\top$.

# %%
digit_levels = data.digits(binary=False).train_x.double()  # (1497, 64), levels 0..16
target = linear_gaussian.eigen_solution(digit_levels, num_latents=2)
ppca = linear_gaussian.LinearGaussian(
    W=torch.randn(64, 2, generator=torch.Generator().manual_seed(2)), b=digit_levels.mean(dim=0), sigma2=10.0
)
distance, climb = [], []
for _ in range(60):
    ppca = linear_gaussian.em_step(ppca, digit_levels)
    distance.append((ppca.W @ ppca.W.T - target.W @ target.W.T).abs().max().item())
    climb.append(ppca.log_prob(digit_levels).mean().item())
print(f"log p(X)/n after 1, 10, 60 steps: {climb[0]:.3f}, {climb[9]:.3f}, {climb[-1]:.3f}")
print(f"eigen-solution:                   {target.log_prob(digit_levels).mean():.3f}")
print(f"largest |WW^T - eigen-solution| entry after 60 steps: {distance[-1]:.1e}")

# %% [markdown]
# ## 3 · Two gradients with one mean
#
# EM needs a posterior it can compute. A VAE climbs by stochastic gradients instead, and the gradient with
# respect to the encoder's parameters $\phi$ is delicate: the distribution we average over depends on $\phi$.
#
# > **Theorem C3.** Let $q_\phi$ be reparametrised, $z = \mu + s\,\varepsilon$ with
# > $\varepsilon \sim \mathcal N(0, I)$, and let $f(z) = \log p(x,z) - \log q_\phi(z)$ be differentiable with
# > an integrable derivative. Both estimators
# > $$\hat g_{\text{rep}} = \nabla_\phi f(\mu + s\,\varepsilon), \qquad \hat g_{\text{score}} = \left(f(z) - c\right) \nabla_\phi \log q_\phi(z)$$
# > have mean $\nabla_\phi \mathcal L$, for every constant baseline $c$. Their variances differ; that the
# > first is smaller is a frequent observation, not a theorem.
#
# <details><summary>Proof</summary>
#
# The first swaps $\nabla$ and the integral over $\varepsilon$, whose law is free of $\phi$. For the second,
# $\nabla \int q f = \int f\,\nabla q + \int q\,\nabla f$ with $\nabla q = q \nabla \log q$; the last integral
# is $-\mathbb E_q[\nabla_\phi \log q_\phi] = 0$, and for the same reason the constant $c$ changes nothing.
# </details>
#
# In one dimension everything is exact: $W = 1$, $\sigma^2 = \frac12$, $x = 1.5$, so that the posterior is
# $\mathcal N(1, \frac13)$ and $\log p(x) = -1.872$. We compare the gradient with respect to $\mu$.
#
# **Predict first:** at $q$ = posterior the true gradient is 0. Which estimator returns 0 every single time?

# %%
line = linear_gaussian.LinearGaussian(W=torch.ones(1, 1), b=torch.zeros(1), sigma2=torch.tensor(0.5))
x_line = torch.tensor([1.5])


def log_joint(z: torch.Tensor) -> torch.Tensor:
    """log p(x, z) at x = 1.5: (S, 1) -> (S,)."""
    return line.log_joint(x_line, z)


def mu_gradients(offset: float) -> dict[str, torch.Tensor]:
    """Four estimators of d ELBO / d mu at q = N(1 + offset, 1/3), each (400000,)."""
    mean, log_var = torch.tensor([1.0 + offset]), torch.tensor([1 / 3]).log()
    average_elbo = line.elbo(x_line, mean, log_var.exp().diag()).item()
    given = (log_joint, mean, log_var)
    draws = dict(num_samples=400_000, generator=torch.Generator().manual_seed(8))
    estimates = {
        "reparametrised": bounds.reparametrised_gradient(*given, **draws),
        "sticking the landing": bounds.reparametrised_gradient(*given, stop_score=True, **draws),
        "score": bounds.score_function_gradient(*given, **draws),
        "score, baseline": bounds.score_function_gradient(*given, baseline=average_elbo, **draws),
    }
    return {name: gradient[:, 0] for name, gradient in estimates.items()}

# %% [markdown]
# *Sticking the landing* is the reparametrised estimator without the term $\nabla_\phi \log q_\phi$ at fixed
# $z$, whose mean is zero. The baseline $c$ is the ELBO itself.

# %% tags=["nbval-check-output"]
for offset in (0.0, 1.0):
    print(f"offset {offset:.0f}: exact gradient {0 - 3 * offset:.1f}")
    for name, g in mu_gradients(offset).items():
        print(f"   {name:21s} mean {round(g.mean().item(), 1) + 0:5.1f}   variance {g.var().item():5.1f}")

# %% [markdown]
# *What you see:* all means agree with $-3\,\text{offset}$. At the posterior (offset 0) the score estimator
# has variance 10.5 because $f(z) = \log p(x)$ is a large constant that multiplies noise; subtracting it as a
# baseline leaves exactly 0. Sticking the landing is silent at the optimum, too; the plain reparametrised
# estimator keeps shaking there with variance 3. One unit away the variances are 3, 18 and 52: this is why
# VAEs are trained with the reparametrised gradient. (Sticking the landing is silent there as well, but only
# because our $q$ has the posterior's variance.)
#
# ## 4 · Amortised inference and its price
#
# EM solves an inference problem for each data point. A VAE *amortises*: one encoder
# $x \mapsto q(z \mid x, \phi)$ with shared parameters answers for all of them.
#
# > **Theorem C4.** For every encoder,
# > $\mathcal L(\phi) \le \frac1n \sum_i \max_{q_i \in \mathcal Q} \mathcal L(q_i; x_i) \le \frac1n\sum_i \log p(x_i)$.
# > The first difference is the *amortisation gap*, the second the *approximation gap* of the family
# > $\mathcal Q$.
#
# <details><summary>Proof</summary>
#
# The encoder's output at $x_i$ is one member of $\mathcal Q$, and the maximum over the family is at least as
# large. The second inequality is C1.
# </details>
#
# In the linear-Gaussian model the posterior mean is linear in $x$, so a linear encoder loses nothing. Take
# away something it needs, here one of the inputs, and the gap is a number we can predict. Diagonal
# covariances cost a second number.

# %% tags=["nbval-check-output"]
x_data, _ = model.sample(2000, generator=torch.Generator().manual_seed(3))
post_means, _ = model.posterior(x_data)  # (2000, 2)
best_diagonal = (1 / model.posterior_precision().diagonal()).diag()  # the best diagonal q, for every x
V = torch.linalg.lstsq(x_data[:, :4], post_means).solution  # the best encoder that sees 4 of the 5 inputs

evidence = model.log_prob(x_data).mean()
per_point = model.elbo(x_data, post_means, best_diagonal).mean()
amortised = model.elbo(x_data, x_data[:, :4] @ V, best_diagonal).mean()

V_full = torch.cat([V.T, torch.zeros(2, 1)], dim=1)  # (2, 5): the blind encoder as a matrix
approximation = linear_vae.approximation_gap(model)  # from the precision matrix alone
# the library's function measures against the best Gaussian of all, the posterior: both gaps together
total = linear_vae.amortisation_gap(model, V_full, best_diagonal, x_data.T @ x_data / 2000)
print(f"approximation gap  {evidence - per_point:.6f} = {approximation:.6f}")
print(f"amortisation gap   {per_point - amortised:.6f} = {total - approximation:.6f}")

# %% [markdown]
# Both gaps are invisible in a training curve, which shows only $\log p(x)$ minus their sum. Lecture 06
# attacks the approximation gap with flows; a larger encoder, or a few gradient steps per data point, attack
# the amortisation gap.
#
# ## 5 · Posterior collapse, solved exactly
#
# Now train $\theta$ and $\phi$ together, with a weight $\beta$ on the KL term ($\beta = 1$ is the ELBO). For
# a *linear* VAE the outcome is known in closed form, and collapse turns out to be a threshold.
#
# > **Theorem C5.** Let the decoder be $\mathcal N(Wz + b, \sigma^2 I)$ with fixed $\sigma^2$ and $b$ the data
# > mean, the encoder $\mathcal N(V(x - b), \mathrm{diag}(s^2))$, and let $\lambda_1 \ge \lambda_2 \ge \dots$
# > be the eigenvalues of the data covariance (with $1/n$). At the optimum of
# > $\mathbb E \log p(x \mid z) - \beta\,\mathrm{KL}$, latent direction $j \le d$ is **active iff
# > $\lambda_j > \beta\sigma^2$**. Then $W$ has orthogonal columns and
# > $$\mathrm{KL}_j = \tfrac12 \log\frac{\lambda_j}{\beta\sigma^2}, \qquad s_j^2 = \frac{\beta\sigma^2}{\lambda_j}, \qquad \mathrm{Var}_x\,\mathbb E_q[z_j] = 1 - \frac{\beta\sigma^2}{\lambda_j}.$$
# > All other directions collapse: $q(z_j \mid x) = p(z_j)$, KL 0.
#
# <details><summary>Proof idea</summary>
#
# Dividing by $\beta$ turns the objective into an ordinary ELBO whose noise variance is $\beta\sigma^2$, up to
# a constant: $\frac1\beta \mathbb E_q \|x - Wz\|^2 / 2\sigma^2 = \mathbb E_q \|x - Wz\|^2 / 2\beta\sigma^2$.
# An ELBO with the exact posterior is the likelihood of probabilistic PCA with noise $\beta\sigma^2$, whose
# maximum (Tipping & Bishop 1999) has $W = U(\Lambda - \beta\sigma^2 I)_+^{1/2} R$. A diagonal $q$ is exact
# only if $W^\top W$ is diagonal, so $R$ is a permutation up to signs. Insert $W$ into the posterior
# $M^{-1}W^\top(x - b)$, covariance $\beta\sigma^2 M^{-1}$ with $M = W^\top W + \beta\sigma^2 I$, to read off
# the three formulas. See also Lucas et al. (2019) and Dai et al. (2020).
# </details>
#
# So a direction of the data is worth encoding when its variance exceeds $\beta\sigma^2$. Only the product
# counts: a noisy decoder and an expensive KL are the same thing. Nothing here is a failure of the optimiser.
#
# **Predict first:** we train 100 linear VAEs, one for each cell of a $10 \times 10$ grid of
# $(\beta, \sigma^2)$, on data with eigenvalues 8, 4, 2, 1, ½, ¼ and five latents. On log axes, what will the
# borders between "5 active", "4 active", … look like?

# %%
generator = torch.Generator().manual_seed(4)
eigenvalues = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
covariance = rotation @ eigenvalues.diag() @ rotation.T

axis = torch.logspace(-0.3, 0.8, 10)
beta, sigma2 = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="xy"))  # (100,), (100,)
grid = linear_vae.random_linear_vae(6, 5, leading=(100,), generator=generator)

history = fit_many(
    lambda step, generator: -linear_vae.expected_elbo(*grid, covariance, sigma2, beta),
    list(grid), steps=2500, lr=0.1, lr_decay_from=0.3, progress=False,
)
trained_kl = linear_vae.expected_kl_per_dim(grid.V, grid.log_var, covariance).detach()
trained_kl = trained_kl.sort(descending=True).values  # (100, 5)
theory = linear_vae.collapse_spectrum(eigenvalues, sigma2, beta, num_latents=5)
worst = (trained_kl - theory.kl_per_dim).abs().max()
print(f"largest |trained KL - formula| over 100 models and 100 models and 5 latents: {worst:.4f} nats")

# %%
# The encoder's means have covariance V C V^T; its diagonal is Var_x E_q[z_j], by which "active" is defined.
mean_var = torch.einsum("ejm,mn,ejn->ej", grid.V, covariance, grid.V).detach()  # (100, 5)
active = (mean_var > 0.01).sum(dim=-1).reshape(10, 10)  # rows sigma2, columns beta

fig, ax = plt.subplots(figsize=(6.4, 4.4))
plots.log_axes(ax)
ax.set_title("Trained models (colour), theory (lines)")
plots.heat_map(ax, axis, axis, active, label="active latents", levels=range(6))
ax.set_xticks([0.5, 1, 2, 4])
ax.set_yticks([0.5, 1, 2, 4])
for eigenvalue in eigenvalues[:5]:
    ax.plot(axis, eigenvalue / axis, color="white", linewidth=1.6)
ax.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]), xlabel="β", ylabel="σ²")
plots.show(fig, alt=(
    "Active latents of 100 trained linear VAEs; the borders follow the lines lambda_j "
    "= beta sigma^2"
))

# %% [markdown]
# *What you see:* the borders are the straight lines $\lambda_j = \beta\sigma^2$, slope $-1$ on log axes.
# Every trained KL agrees with the formula to four decimals. Because only the product matters, all 100 models
# fall on five curves:

# %%
product = (beta * sigma2).expand(5, 100).T
fig, ax = plt.subplots(figsize=(7, 3.4))
fine = torch.logspace(-0.7, 1.7, 400)
for j, eigenvalue in enumerate(eigenvalues[:5]):
    curve = (0.5 * (eigenvalue / fine).log()).clamp(min=0)
    ax.plot(fine, curve, color=plots.PALETTE[j], label=f"λ{'₁₂₃₄₅'[j]} = {eigenvalue:g}")
    ax.plot(product[:, j], trained_kl[:, j], "o", color=plots.PALETTE[j], markersize=4)
plots.log_axes(ax, "x")
ax.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16])
ax.set(xlabel="βσ²", ylabel="KL of direction j (nats)", title="Five curves, 100 models")
ax.legend()
plots.show(fig, alt=(
    "KL per latent against beta sigma^2: dots of the trained models lie on the "
    "theoretical curves"
))

# %% [markdown]
# *What you see:* the dots sit on the curves, and each direction dies continuously, with a kink, at its own
# eigenvalue: λ₅ at ½, λ₁ at 8.
#
# ### How to notice a collapse
#
# Nobody sees eigenvalues in a deep VAE. Three numbers tell a working latent from a dead one.
#
# > **Theorem C9.** Let $q(z \mid x)$ be the optimal encoder of C5, for data with a Gaussian density. *KL per
# > dimension* is that of C5. A latent is an *active unit* if $\mathrm{Var}_x\,\mathbb E_q[z_j] > 0.01$, which
# > here means $\lambda_j > \beta\sigma^2 / 0.99$: the rule of thumb moves the border by 1 %. The *mutual
# > information* between $x$ and $z$ under $q$ is
# > $$I_q[x, z] = \tfrac12 \log \frac{\det \mathrm{Cov}(z)}{\det \mathrm{Cov}_q(z \mid x)},$$
# > with $\mathrm{Cov}(z)$ the covariance of the aggregated posterior $\int q(z \mid x)\,\pi(x)\,dx$.
#
# <details><summary>Proof</summary>
#
# $\mathrm{Var}_x\,\mathbb E_q[z_j] = 1 - \beta\sigma^2/\lambda_j > 0.01$ is the stated inequality. For
# Gaussian data and a linear encoder $(x, z)$ is jointly Gaussian, so $I = H(z) - H(z \mid x)$ is a difference
# of two Gaussian entropies, each $\frac12 \log\det(2\pi e\,\mathrm{Cov})$.
# </details>

# %% tags=["nbval-check-output"]
spectrum = linear_vae.collapse_spectrum(eigenvalues, sigma2=1.5, num_latents=5)
best = linear_vae.optimal_linear_vae(covariance, 5, sigma2=1.5)
info = linear_gaussian.mutual_information(best.V, best.log_var.exp().diag(), covariance)

# The same the long way: draw x, draw z, average log q(z|x) - log q(z), with q(z) measured from the draws.
draws, noise = 200_000, torch.Generator().manual_seed(5)
x_normal = torch.randn(draws, 6, generator=noise) @ torch.linalg.cholesky(covariance).T
means = x_normal @ best.V.T
z = gaussian.gaussian_sample(means, best.log_var.expand(draws, 5), generator=noise)
aggregated = torch.distributions.MultivariateNormal(z.mean(dim=0), z.T.cov())
ratio = gaussian.gaussian_log_prob(z, means, best.log_var) - aggregated.log_prob(z)
print("KL per latent ", [round(v, 3) for v in spectrum.kl_per_dim.tolist()])
print("active units  ", int((spectrum.mean_var > 0.01).sum()), "of 5")
error = ratio.std() / draws**0.5
print(f"mutual information {info:.2f} nats, by Monte Carlo {ratio.mean():.2f} (s.e. {error:.3f})")

# %% [markdown]
# At the optimum of a linear VAE of Gaussian data the aggregated posterior *is* the prior, whatever $\beta$
# and $\sigma^2$, so the whole KL is information. In a deep VAE it is not; lecture 05 takes the KL apart into
# these two pieces.
#
# ### Live: the phase diagram
#
# Move $\beta$ and $\sigma^2$. **Try:** find the setting with exactly two active latents and the largest
# mutual information. Then double $\beta$ and halve $\sigma^2$: what changes?

# %%
phase_diagram.show(eigenvalues, sigma2=0.7)

# %% [markdown]
# ### Exercise 3 · Count the active units
#
# `means` holds the encoder's means for $n$ data points, one row each. A unit is active if the variance over
# the data (with $1/n$) of its mean exceeds the threshold.

# %% exercise="active_units"
def active_units(means: torch.Tensor, threshold: float = 0.01) -> int:
    """Number of latents whose mean varies over the data: (n, d) -> int."""
    ### BEGIN SOLUTION
    return int((means.var(dim=0, correction=0) > threshold).sum())
    ### END SOLUTION

# %% check="active_units" points=2
check.active_units(active_units)
### BEGIN HIDDEN TESTS
check.hidden("active_units", active_units, seed=4713)
print("hidden tests ran to the end: active_units c09e")
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · A decoder that needs no code
#
# A Gaussian or Bernoulli decoder treats pixels as independent given $z$, so all structure has to pass through
# $z$. An *autoregressive* decoder $p(x \mid z) = \prod_i p(x_i \mid x_{<i}, z)$ can learn the structure by
# itself.
#
# > **Theorem C6.** Let $p(z) = \mathcal N(0, I)$. If some $\theta$ makes $p(x \mid z, \theta) = \pi(x)$ for
# > all $z$, then $\max_{\theta, \phi} \mathbb E_\pi \mathcal L = -H(\pi)$, and it is attained with
# > $\mathrm{KL}(q(z \mid x) \| p(z)) = 0$ for every $x$. For Gaussian $q$ and finitely many $x$ with
# > $\pi(x) > 0$, *every* maximum has KL 0 at each of them.
#
# <details><summary>Proof</summary>
#
# $\mathbb E_\pi \mathcal L \le \mathbb E_\pi \log p(x) = -H(\pi) - \mathrm{KL}(\pi \| p) \le -H(\pi)$; with
# $p(x \mid z) = \pi(x)$ and $q = p(z)$ all three are equal. Conversely, equality needs
# $q(z \mid x) = p(z \mid x)$ for every $x$ (C1) and $p = \pi$. Then $\sum_x \pi(x)\,q(z \mid x) = p(z)$: a
# finite mixture of Gaussians equals the standard normal. Gaussian densities with different parameters are
# linearly independent functions, so each component is the standard normal.
# </details>
#
# The ELBO does not merely *tolerate* an unused code. Unless $q$ is exactly the posterior, any nat that goes
# through $z$ costs more than the same nat learned by the decoder. To let $z$ carry something, *weaken the
# decoder*: let $x_i$ see only the $r$ pixels before it (the idea of PixelVAE, Gulrajani et al. 2017).
#
# We watch it where everything is exact. The data are 8 bits from
# $\pi = \frac12 \mathrm{Bern}(0.2)^8 + \frac12 \mathrm{Bern}(0.8)^8$: one hidden switch decides whether ones
# are rare or common. All 256 data points are enumerated, the single latent is integrated by quadrature: every
# reported number is exact. The eight windows $r = 0, \dots, 7$ are trained at once. (Training uses coarse
# quadrature rules of 5 to 8 nodes, another one at each step: a decoder trained on *one* coarse rule learns to
# hide its errors between the nodes.)

# %%
x_bits, log_pi = data.enumerable_binary(8)  # all 256 binary vectors (float32) and log pi(x)
pi = log_pi.exp()
entropy = data.entropy(log_pi.double()).item()


def train_bits(
    windows: list, *, steps: int, warmups: list | None = None, scale: float = 1.0, lr: float = 0.04
) -> vae.VAE:
    """One-latent VAEs on the enumerated bits, one member for each window, trained at once."""
    warmups = warmups or [0] * len(windows)
    kind = {"members": len(windows), "generator": torch.Generator().manual_seed(0), "activation": torch.tanh}
    decoder = vae.AutoregressiveDecoder(nets.MaskedMLP(8, 16, window=windows, context=1, **kind))
    model = vae.VAE(nets.MLP([8, 16, 2], **kind), decoder, latent_dim=1).float()
    for parameter in model.parameters():
        parameter.data.mul_(scale)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        terms = vae.quadrature_elbo(model, x_bits, num_nodes=5 + step % 4)
        beta = torch.tensor([vae.kl_weight(step, warmup) for warmup in warmups]).float()  # (E,)
        return vae.vae_loss(terms, beta=beta, weights=pi)

    fit_many(loss, model.parameters(), steps=steps, lr=lr, lr_decay_from=0.3, progress=False)
    return model.double()


# %%
@torch.no_grad()
def exact_numbers(model: vae.VAE) -> dict[str, torch.Tensor]:
    """Averages over pi of -log p(x), -ELBO and KL in nats: sums over all x, quadrature over z; each (E,)."""
    terms = vae.quadrature_elbo(model, x_bits.double(), num_nodes=64)
    log_px = vae.quadrature_log_prob(model, x_bits.double(), num_nodes=256)
    values = {"nll": -log_px, "neg_elbo": -terms.elbo, "kl": terms.kl}
    return {name: (pi.double() * value).sum(-1) for name, value in values.items()}


bit_vaes = train_bits(list(range(8)), steps=2000)
by_field = exact_numbers(bit_vaes)
print(f"entropy H(pi) = {entropy:.4f} nats")
for r in range(8):
    nll, neg_elbo, kl = (by_field[name][r].item() for name in ("nll", "neg_elbo", "kl"))
    print(f"r = {r}   -log p(x) {nll:.4f} <= -ELBO {neg_elbo:.4f}   KL {kl:.3f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
plots.curve(axes[0], range(8), by_field["kl"], marker="o")
axes[0].set(xlabel="receptive field r", ylabel="KL (nats)", title="The code fades, but not at once", ylim=(0, None))
plots.curve(axes[1], range(8), by_field["neg_elbo"], marker="o", color=plots.PALETTE[1], label="−ELBO")
plots.curve(axes[1], range(8), by_field["nll"], marker="o", color=plots.PALETTE[2], label="−log p(x)")
plots.reference_line(axes[1], "H(π)", y=entropy)
axes[1].set(xlabel="receptive field r", ylabel="nats", title="The bound reaches the entropy")
axes[1].legend()
plots.show(fig, alt=(
    "KL is near 0.8 nats up to r = 3 and falls to zero at r = 7; the negative ELBO falls "
    "to the entropy 4.62"
))

# %% [markdown]
# *What you see:* neither curve falls below the entropy: $-\mathrm{ELBO} \ge -\log p(x) \ge H(\pi)$. With the
# full window ($r = 7$) both inequalities are tight to three digits and the KL is about 0.02: the optimum of
# C6. On the way the KL does *not* fall monotonically, it is larger at $r = 2$ than at $r = 0$. And the bound
# is nearly flat in the KL (section 7 puts a number on it), so the KL of a trained model says as much about
# the training as about the model.
#
# ### Live: the receptive field
#
# The right panel shows $q(z \mid x)$, averaged over the $x$ with the same number of ones. **Try:** raise $r$
# and watch the nine curves close up and become, very nearly, one: the prior.

# %%
receptive_field.show(bit_vaes)

# %% [markdown]
# ### Exercise 4 · The mask that makes it autoregressive
#
# Build the mask of the first layer: `mask[i, j]` is true if output $j$ may read input $i$, that is
# $j - \text{window} \le i < j$. With `window` at least `num_pixels - 1` that is the full past, with 0 it is
# nothing.

# %% exercise="causal_mask"
def causal_mask(num_pixels: int, window: int) -> torch.Tensor:
    """Boolean (num_pixels, num_pixels): mask[i, j] says whether output j may read input i."""
    ### BEGIN SOLUTION
    position = torch.arange(num_pixels)
    distance = position[None, :] - position[:, None]  # (i, j): j - i
    return (distance >= 1) & (distance <= window)
    ### END SOLUTION

# %% check="causal_mask" points=2
check.causal_mask(causal_mask)
### BEGIN HIDDEN TESTS
check.hidden("causal_mask", causal_mask, seed=4714)
print("hidden tests ran to the end: causal_mask 5d72")
### END HIDDEN TESTS

# %% [markdown]
# ### PixelVAE on handwritten digits
#
# Now real data: scikit-learn's $8 \times 8$ digits, binarised, 1497 for training and 300 held out. The
# decoder reads the earlier pixels within a window of radius $w$ (rows above and pixels to the left) plus
# eight latents through a narrow path. Four seeds of each window are trained at once; the numbers are means ±
# standard errors on the held-out digits.

# %%
digits = data.digits()  # binary, float32
SEEDS = 4


def train_digits(windows: list, *, warmup: int = 0, free_bits: float = 0.0) -> vae.VAE:
    """VAEs on digits with autoregressive decoders, SEEDS members for each window, trained at once."""
    kind = {"members": len(windows) * SEEDS, "generator": torch.Generator().manual_seed(6)}
    encoder = nets.MLP([64, 32, 16], **kind)
    window = [w for w in windows for _ in range(SEEDS)]
    decoder = vae.AutoregressiveDecoder(nets.WindowDecoderNet(8, 8, window=window, latent_hidden=16, **kind))
    model = vae.VAE(encoder, decoder, latent_dim=8).float()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        terms = model.terms(minibatch(digits.train_x, 64, generator), generator=generator)
        return vae.vae_loss(terms, beta=vae.kl_weight(step, warmup), free_bits=free_bits)

    fit_many(loss, model.parameters(), steps=800, lr=1e-2, lr_decay_from=0.65, progress=False)
    return model


# %%
# the numbers of a trained model on the held-out digits, and how we print them
@torch.no_grad()
def held_out(model: vae.VAE) -> dict[str, torch.Tensor]:
    """KL, negative ELBO (nats) and active units on the held-out digits: each (windows, SEEDS)."""
    noise = torch.Generator().manual_seed(0)
    terms = [model.terms(x, num_samples=8, generator=noise) for x in digits.test_x.split(50)]  # bounded memory
    kl, bound = (torch.cat([getattr(t, name) for t in terms], dim=-1) for name in ("kl", "elbo"))
    active = vae.active_units(model.encode(digits.test_x)[0]).sum(dim=-1)
    values = {"kl": kl.mean(-1), "neg_elbo": -bound.mean(-1), "active": active.float()}
    return {name: value.reshape(-1, SEEDS).double() for name, value in values.items()}


def mean_se(values: torch.Tensor, digits: int = 2) -> str:
    """Mean and standard error over the seeds."""
    return f"{values.mean():7.{digits}f} ± {values.std() / len(values) ** 0.5:.{digits}f}"


windows = [0, 1, 2, 3, None]
pixel_vaes = train_digits(windows)
by_window = held_out(pixel_vaes)
print("window        KL            -ELBO       active units of 8")
for i, w in enumerate(windows):
    kl, neg_elbo, active = (by_window[name][i] for name in ("kl", "neg_elbo", "active"))
    print(f"{'full' if w is None else w!s:5s} {mean_se(kl)} {mean_se(neg_elbo)}    {active.mean():.1f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
labels = ["0", "1", "2", "3", "full"]
panels = {"kl": "What the code carries", "neg_elbo": "What the model costs"}
for ax, (name, title) in zip(axes, panels.items(), strict=True):
    mean, error = by_window[name].mean(-1), by_window[name].std(-1) / SEEDS**0.5
    ax.errorbar(labels, mean, error, marker="o", capsize=4, color=plots.PALETTE[0 if name == "kl" else 1])
    ax.set(xlabel="window of the decoder (pixels)", title=title)
axes[0].set(ylabel="KL (nats)", ylim=(0, None))
axes[1].set(ylabel="held-out −ELBO (nats)")
plots.show(fig, alt=(
    "KL falls from about 5 nats without a window to below 1 with the full one; the "
    "bound improves"
))

# %% [markdown]
# *What you see:* the more the decoder sees, the better the bound (its last step is within the error bars) and
# the less the code carries: about 5 nats at window 0, a fraction of a nat with the full past. Same encoder,
# same latents, same budget.
#
# Collapse is visible in samples, too. Fix one $z$ and draw five images: what varies within a row is what the
# *decoder* decides, what varies between rows is what the *code* decides.
#
# **Predict first:** in which model do the rows look different from each other?

# %%
fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.9))
real = digits.train_x[torch.argsort(digits.train_y, stable=True)[::60]][:25]  # real digits, 0 to 9
plots.image_grid(axes[0], real.reshape(25, 8, 8), columns=5, cmap="gray_r")
axes[0].set_title("data")
for ax, index, label in zip(axes[1:], (0, 2, 4), ("window 0", "window 2", "full window"), strict=True):
    one = nets.member(pixel_vaes, index * SEEDS)  # the first seed
    codes = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float32)
    images = one.decoder.sample(codes.expand(5, 5, 8), torch.Generator().manual_seed(9))
    plots.image_grid(ax, images.reshape(25, 8, 8), columns=5, cmap="gray_r")
    ax.set_title(label)
plots.show(fig, alt=(
    "Five samples for each of five codes: rows differ strongly at window 0, and look "
    "alike with the full window"
))

# %% [markdown]
# *What you see:* at window 0 each row is one noisy digit, the code decides the shape. At window 2 the strokes
# are cleaner, and one code already gives different digits that share features. With the full window all rows
# look alike: every row is a mixture of digits, the decoder makes them up by itself.

# %% [markdown]
# ## 7 · Bringing the code back
#
# The usual treatments change the *objective during training*, not the model.
#
# ### KL annealing
#
# Start with $\beta = 0$, so that using $z$ is free, and raise $\beta$ to 1 (Bowman et al. 2016).
#
# > **Finding C7.** With $\beta$ rising from 0 to 1 the final objective is the ELBO, whose maximum is
# > unchanged: annealing can only change *which* solution training reaches in the time it has. On the
# > enumerable data with receptive field 5, small initial weights and a budget of 700 steps, it ends with
# > several times the KL of plain training, at a slightly *worse* ELBO. Longer or slower plain training raises
# > the KL as well.
#
# ### Exercise 5 · The annealing schedule
#
# Linear: 0 at step 0, 1 at step `warmup_steps`, and 1 from there on. With `warmup_steps = 0` there is no
# annealing.

# %% exercise="kl_weight"
def kl_weight(step: int, warmup_steps: int) -> float:
    """The weight beta of the KL term at a training step."""
    ### BEGIN SOLUTION
    return 1.0 if warmup_steps == 0 else min(1.0, step / warmup_steps)
    ### END SOLUTION

# %% check="kl_weight" points=1
check.kl_weight(kl_weight)
### BEGIN HIDDEN TESTS
check.hidden("kl_weight", kl_weight, seed=4715)
print("hidden tests ran to the end: kl_weight e81b")
### END HIDDEN TESTS

# %%
print("r = 5, four seeds        KL            -ELBO")
for steps in (700, 1400):
    models = train_bits([5] * 8, steps=steps, warmups=[0] * 4 + [350] * 4, scale=0.3)
    result = exact_numbers(models)
    for name, part in (("plain", slice(0, 4)), ("annealed", slice(4, 8))):
        kl, neg_elbo = result["kl"][part], result["neg_elbo"][part]
        print(f"{steps:5d} steps, {name:8s} {mean_se(kl)} {mean_se(neg_elbo, digits=4)}")
slow = exact_numbers(train_bits([5] * 4, steps=700, scale=0.3, lr=0.004))
print(f"  700 steps, slower   {mean_se(slow['kl'])} {mean_se(slow['neg_elbo'], digits=4)}")

# %% [markdown]
# *What you see:* in the same 700 steps the annealed models end with about 1.5 nats in the code, five times as
# much as the plain ones, and pay for it with 0.1 nats of ELBO: that is how flat the bound is in the KL. Given
# twice as long the two approach each other from both sides: plain training gains KL, annealed training loses
# some of its own. Plain training at a tenth of the learning rate ("slower") is not done after 700 steps: more
# KL than plain, and a bound 0.03 nats worse. Annealing changed the path; the objective at the end is the
# same.

# %% [markdown]
# ### Free bits
#
# The other treatment pays for the first $\kappa$ nats of each latent (Kingma et al. 2016).
#
# > **Theorem C8.** Let the objective be
# > $$\mathcal L_\kappa = \mathbb E \log p(x \mid z) - \sum_j \max\left(\kappa, \overline{\mathrm{KL}}_j\right), \qquad \overline{\mathrm{KL}}_j = \text{mean over the batch of } \mathrm{KL}(q(z_j \mid x) \| p(z_j)).$$
# > Where $\overline{\mathrm{KL}}_j < \kappa$ the KL part has gradient zero: latent $j$ pays nothing more for
# > more information. For the linear VAE with $d = 1$ the optimum has
# > $\mathrm{KL}^* = \max(\kappa, \frac12 \log(\lambda_1 / \sigma^2))$. In general $\mathrm{KL}_j \ge \kappa$
# > is encouraged, **not guaranteed**, and nothing bounds $\mathrm{KL}_j$ from above.
#
# <details><summary>Proof</summary>
#
# $\max(\kappa, k)$ is constant for $k < \kappa$. For $d = 1$, fix $\mathrm{KL} = k$; the best reconstruction
# term is $-\lambda_1 e^{-2k}/2\sigma^2$ plus a constant (the rate–distortion function of a Gaussian):
# increasing and concave in $k$, with slope 1 at $k_1 = \frac12\log(\lambda_1/\sigma^2)$, the optimum of C5.
# If $\kappa \le k_1$ the penalty is $k$ there and $k_1$ stays optimal. If $\kappa > k_1$, the objective rises
# up to $\kappa$, where information is free, and falls beyond, where the slope is below 1.
# </details>
#
# **The slide of the lecture series says** that free bits ensure "the use of less than $\kappa$ bits of
# information" and result in $\mathrm{KL} \ge \kappa$. The two halves contradict each other, and neither is
# true. Two numbers refute them.

# %% tags=["nbval-check-output"]
FREE = 0.5  # nats a latent


def free_bits_objective(model: linear_vae.LinearVAE, covariance: torch.Tensor) -> torch.Tensor:
    """The objective of C8 for linear VAEs with sigma^2 = 1, averaged exactly over the data."""
    kl = linear_vae.expected_kl_per_dim(model.V, model.log_var, covariance)
    return linear_vae.expected_log_likelihood(*model, covariance, 1.0) - kl.clamp(min=FREE).sum(dim=-1)


variance = torch.tensor([0.4, 1.2, 2.0, 4.0, 20.0])  # five data sets with m = d = 1
one_dim = variance[:, None, None]
lines = linear_vae.random_linear_vae(1, 1, leading=(5,), generator=torch.Generator().manual_seed(10))
fit_many(
    lambda step, generator: -free_bits_objective(lines, one_dim),
    list(lines), steps=3000, lr=0.02, lr_decay_from=0.2, progress=False,
)
trained_kl = linear_vae.expected_kl_per_dim(lines.V, lines.log_var, one_dim).flatten()
formula = torch.maximum(0.5 * variance.log(), torch.tensor(FREE))
for v, trained, exact in zip(variance, trained_kl, formula, strict=True):
    print(f"lambda_1 = {v:4.1f}   trained KL {trained.item():.2f}   max(free, formula) {exact.item():.2f}")

# %% [markdown]
# With eigenvalue 20 the latent uses 1.5 nats where "less than 0.5" was promised. And is
# $\mathrm{KL} \ge \kappa$ at least sure? Start at a collapsed model and ask for the gradient. Then look at
# where the free nats go: data with two strong and two weak directions, three latents.

# %% tags=["nbval-check-output"]
covariance4 = torch.tensor([20.0, 5.0, 0.05, 0.02]).diag()
dead = linear_vae.LinearVAE(*(torch.zeros(shape, requires_grad=True) for shape in ((4, 3), (3, 4), (3,))))
gradients = torch.autograd.grad(free_bits_objective(dead, covariance4), list(dead))
largest = max(gradient.abs().max().item() for gradient in gradients)
print(f"collapsed start: KL 0 < {FREE}, largest gradient entry {largest:.1f}")

starts = linear_vae.random_linear_vae(4, 3, leading=(20,), generator=torch.Generator().manual_seed(0))
fit_many(
    lambda step, generator: -free_bits_objective(starts, covariance4),
    list(starts), steps=3000, lr=0.02, lr_decay_from=0.2, progress=False,
)
values = free_bits_objective(starts, covariance4).detach()
all_kl = linear_vae.expected_kl_per_dim(starts.V, starts.log_var, covariance4).sort(descending=True).values
winner = all_kl[values.argmax()].tolist()
print("best of 20 starts, KL per latent:", [round(k, 2) for k in winner])
elbo_kl = linear_vae.collapse_spectrum(covariance4.diag(), sigma2=1.0, num_latents=3).kl_per_dim
print("optimum of the plain ELBO:       ", [round(k, 2) for k in elbo_kl.tolist()])

# %% [markdown]
# *What you see:* a collapsed model, KL 0, is a stationary point of the free-bits objective (as it is of the
# ELBO), so $\mathrm{KL} \ge \kappa$ is not guaranteed. The second experiment shows that free nats buy no new
# direction: the best solution spends them on direction 2, which two latents share, each for free, where the
# plain ELBO has one latent pay 0.80. Free bits take pressure away below $\kappa$; they promise nothing else.

# %% [markdown]
# ### Exercise 6 · The free-bits objective
#
# Average over the batch *first*, then clamp, then add up the latents. Return the objective to be maximised.

# %% exercise="free_bits"
def free_bits(
    log_likelihood: torch.Tensor, kl_per_dim: torch.Tensor, free_nats: float
) -> torch.Tensor:
    """The free-bits objective of a batch in nats: (B,), (B, d), float -> scalar."""
    ### BEGIN SOLUTION
    return log_likelihood.mean() - kl_per_dim.mean(dim=0).clamp(min=free_nats).sum()
    ### END SOLUTION

# %% check="free_bits" points=2
check.free_bits(free_bits)
### BEGIN HIDDEN TESTS
check.hidden("free_bits", free_bits, seed=4716)
print("hidden tests ran to the end: free_bits 3a6d")
### END HIDDEN TESTS

# %% [markdown]
# ### Do the treatments help on digits?

# %%
treated = {
    "plain": {name: value[-1:] for name, value in by_window.items()},
    "annealing": held_out(train_digits([None], warmup=480)),
    "free bits": held_out(train_digits([None], free_bits=0.5)),
}
print("full window          KL            -ELBO       active units of 8")
for name, result in treated.items():
    kl, neg_elbo, active = (result[key][0] for key in ("kl", "neg_elbo", "active"))
    print(f"{name:12s} {mean_se(kl)} {mean_se(neg_elbo)}    {active.mean():.1f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
panels = {"kl": "The code lives", "neg_elbo": "The bound gains nothing"}
for ax, (name, title) in zip(axes, panels.items(), strict=True):
    for i, result in enumerate(treated.values()):
        seeds = result[name][0]
        ax.plot([i] * SEEDS, seeds, "o", color=plots.PALETTE[i], alpha=0.6)
        error = seeds.std() / SEEDS**0.5
        ax.errorbar(i + 0.2, seeds.mean(), error, marker="s", capsize=4, color=plots.PALETTE[i])
    ax.set_xticks(range(3), list(treated))
    ax.set(title=title, xlim=(-0.5, 2.7))
axes[0].set(ylabel="KL (nats)", ylim=(0, None))
axes[1].set(ylabel="held-out −ELBO (nats)")
plots.show(fig, alt=(
    "Annealing and free bits raise the KL from 0.3 to about 4 nats; the negative ELBO "
    "stays or gets worse"
))

# %% [markdown]
# *What you see:* dots are seeds, squares their means with standard errors. Both treatments keep the code
# alive at about ten times the plain KL, and neither improves the bound: annealing costs about 0.1 nats, free
# bits about 0.8. That is C6 at work: with a decoder that can do without $z$, the ELBO has no reason to prefer
# a living code. If *you* need one, you want something that the ELBO does not measure.

# %% [markdown]
# ## Equation ↔ function
#
# | equation | function |
# |---|---|
# | $\mathcal L = \log p(x,z) - \log q(z \mid x)$, three forms (C1) | `bounds.elbo`, `bounds.elbo_from_kl`, `bounds.elbo_from_evidence` |
# | exact $\log p(x)$, posterior, ELBO (C1, C4) | `linear_gaussian.LinearGaussian` |
# | E- and M-step (C2) | `em.gaussian_mixture_em_step`, `linear_gaussian.em_step`, `linear_gaussian.eigen_solution` |
# | $\hat g_{\text{rep}}$, $\hat g_{\text{score}}$ (C3) | `bounds.reparametrised_gradient`, `bounds.score_function_gradient` |
# | $\lambda_j > \beta\sigma^2$ (C5) | `linear_vae.collapse_spectrum`, `linear_vae.expected_elbo` |
# | ELBO and $\log p(x)$ by quadrature (C6) | `vae.quadrature_elbo`, `vae.quadrature_log_prob` |
# | autoregressive decoders (C6) | `nets.MaskedMLP`, `nets.WindowDecoderNet`, `vae.AutoregressiveDecoder` |
# | $\beta$ schedule, free bits (C7, C8) | `vae.kl_weight`, `vae.free_bits_kl`, `vae.vae_loss` |
# | active units, mutual information (C9) | `vae.active_units`, `linear_gaussian.mutual_information` |
#
# ## Summary
#
# - $\log p(x)$ is ELBO plus $\mathrm{KL}(q \| \text{posterior})$: inference and learning push on the same
#   number.
# - EM makes the bound tight, then raises it; it never goes downhill. A VAE replaces both steps by gradients,
#   and the reparametrised one is usually the quiet one.
# - In a linear VAE a latent lives if and only if its direction of the data has variance above
#   $\beta\sigma^2$. Collapse can be the *optimum*, not an accident.
# - A decoder that can model the data without $z$ has an optimal ELBO with KL 0. Weaken the decoder, and $z$
#   carries what is left.
# - Annealing and free bits keep the code alive; the ELBO does not thank you for it. They pick another point,
#   not a better bound.
#
# **Open question of the lecture, answered:** *is a collapsed posterior a bug of training?* Not necessarily.
# Compare the trained model with the exact optimum: if the optimum is collapsed as well, change the model or
# the objective, not the optimiser.
#
# ## References
#
# - D. P. Kingma, M. Welling. [Auto-Encoding Variational Bayes](https://arxiv.org/abs/1312.6114), 2014.
# - M. E. Tipping, C. M. Bishop. [Probabilistic Principal Component Analysis](https://doi.org/10.1111/1467-9868.00196), 1999.
# - G. Roeder, Y. Wu, D. Duvenaud. [Sticking the Landing](https://arxiv.org/abs/1703.09194), 2017.
# - C. Cremer, X. Li, D. Duvenaud. [Inference Suboptimality in Variational Autoencoders](https://arxiv.org/abs/1801.03558), 2018.
# - J. Lucas, G. Tucker, R. Grosse, M. Norouzi. [Don't Blame the ELBO!](https://arxiv.org/abs/1911.02469), 2019.
# - B. Dai, Z. Wang, D. Wipf. [The Usual Suspects? Reassessing Blame for VAE Posterior Collapse](https://arxiv.org/abs/1912.10702), 2020.
# - Y. Burda, R. Grosse, R. Salakhutdinov. [Importance Weighted Autoencoders](https://arxiv.org/abs/1509.00519), 2016 (active units).
# - I. Gulrajani et al. [PixelVAE](https://arxiv.org/abs/1611.05013), 2017.
# - S. R. Bowman et al. [Generating Sentences from a Continuous Space](https://arxiv.org/abs/1511.06349), 2016.
# - D. P. Kingma et al. [Improving Variational Inference with Inverse Autoregressive Flow](https://arxiv.org/abs/1606.04934), 2016 (free bits).

# %%
check.progress()
