# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Normalizing flows: latent variables with an exact likelihood
#
# **Can a model have latent variables and still say exactly how likely a picture is?**
#
# | | |
# |---|---|
# | You need | lecture 01 (KL, reparametrised samples); determinants |
# | Time | 100 minutes of reading and running, 60 minutes of exercises |
# | Library files | `flows` · `reversible` · `nets` · `data` · `train` · `reproduce` |
#
# Run the notebook from the top (*Run → Run All Cells*): it takes less than a minute on two cores, downloads
# nothing, and needs none of your answers to the exercises.

# %% [markdown]
# ## Where we are
#
# | | likelihood | latent code |
# |---|---|---|
# | autoregressive models | exact | none |
# | variational autoencoders (01, 02) | a lower bound | yes |
# | **normalizing flows (this lecture)** | exact | yes, as many numbers as data |
#
# A flow is an invertible map between data and noise. That is a model in its own right, and a tool for the two weak
# points of a VAE that are left: a *prior* that leaves holes (lecture 05), and a *posterior* that is rarely the diagonal
# Gaussian we made it (lecture 06). Its price: the latent code has as many dimensions as the data, and every layer has
# to be invertible with a determinant that one can afford.
#
# **Directions.** In this lecture, and in the library, $g$ samples and $f = g^{-1}$ encodes:
# $x = g(z)$ is `transform.forward`, $z = f(x)$ is `transform.inverse`. Each returns the value *and* $\log|\det J|$ of the
# map it has just applied.
#
# ## After this lecture you can
#
# 1. turn an invertible map into a density, and check it by area, by autograd and by integration (F1);
# 2. say which KL divergence maximum likelihood minimises, in the space of the data and in that of the noise (F2);
# 3. build coupling layers whose determinant is a sum (F3), and planar, radial and Sylvester layers whose determinant is
#    small (F4); say when they are invertible;
# 4. run an autoregressive flow in both directions, and say which one is slow (F5, F6);
# 5. put Glow together: actnorm, 1 × 1 convolutions, multiple scales (F7), and see what it learns (F10);
# 6. train deep networks without storing their activations (F8), and recover the input of a classifier (F9);
# 7. see a flow as a VAE whose encoder makes no noise (F11).

# %%
import copy
import math
import time

import matplotlib.pyplot as plt
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, MixtureSameFamily, Normal

from dgm_course import check, data, flows, nets, numerics, plots, reproduce, reversible
from dgm_course.demos import flow_depth, planar_by_hand
from dgm_course.train import fit, minibatch

plots.use_style()
torch.set_default_dtype(torch.float64)  # the oracles are exact to 1e-10; pictures run in float32 below
torch.set_num_threads(1)  # many small products: a second thread only gets in the way

# %% [markdown]
# ## 1 · Change of variables, seen as area
#
# Take noise $z$ from a simple density $p_0$ and bend the plane with an invertible map $x = g(z)$. A small square around
# $z$ becomes a small parallelogram around $x$ of $|\det J_g(z)|$ times its area. It still holds the same probability.
# Where the map stretches, the density falls; where it squeezes, the density rises.
#
# > **Theorem F1.** Let $f: \mathbb R^m \to \mathbb R^m$ be a bijection, continuously differentiable in both directions,
# > with inverse $g$. If $z$ has the density $p_0$, then $x = g(z)$ has the density
# > $$p(x) = p_0(f(x))\,\left|\det J_f(x)\right|, \qquad \log p(x) = \log p_0(f(x)) + \log\left|\det J_f(x)\right|,$$
# > and $J_f(x) = J_g(f(x))^{-1}$.
#
# <details><summary>Proof</summary>
#
# For every set $A$, $P(x \in A) = P(z \in f(A)) = \int_{f(A)} p_0(z)\,dz = \int_A p_0(f(x))\,|\det J_f(x)|\,dx$ by the
# substitution rule, which is where $|\det J_f|$ comes from: it is the factor by which $f$ changes volumes. A function
# whose integral over every set is $P(x \in A)$ is the density. For the second statement differentiate $f(g(z)) = z$ by
# the chain rule: $J_f(g(z))\,J_g(z) = I$.
# </details>
#
# Here is a map made of three *planar* layers (section 4 explains them), first as numbers. $|\det J_g|$ once by the
# library's formula, once by autograd, and once with a ruler: the area of the image of a tiny square.

# %% tags=["nbval-check-output"]
bend = flows.Compose([flows.PlanarFlow(2) for _ in range(3)])
settings = [([1.2, 0.4], [1.0, 0.8], 0.3), ([-1.0, 1.2], [-1.0, 1.0], 0.0), ([1.4, -0.3], [0.0, 1.5], 0.5)]
with torch.no_grad():
    for layer, (u, w, b) in zip(bend, settings, strict=True):
        for parameter, value in zip((layer.u, layer.w, layer.b), (u, w, b), strict=True):
            parameter.copy_(torch.tensor(value))


def area_factor(z: torch.Tensor, side: float = 1e-4) -> torch.Tensor:
    """Area of the image of a square around z over the square's own: the shoelace formula."""
    corners = z + side * torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    x, y = bend(corners)[0].unbind(-1)
    return 0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs() / side**2


for z in torch.tensor([[0.0, 0.0], [-0.5, 0.4], [1.0, 1.0]]):
    by_formula = bend(z)[1].exp()
    by_autograd = jacobian(lambda point: bend(point)[0], z).det().abs()
    print(f"z = {z.tolist()}:  |det J_g|   formula {by_formula:.6f}   autograd {by_autograd:.6f}   "
          f"area {area_factor(z):.6f}")

# %%
axis = torch.linspace(-2.7, 2.7, 37)
z = torch.cartesian_prod(axis, axis).reshape(37, 37, 2)
seen = torch.linspace(-5.5, 5.5, 221)
with torch.no_grad():
    x, log_det = bend(z)
    log_p = flows.Flow(bend, 2).log_prob(torch.cartesian_prod(seen, seen)).reshape(221, 221)

fig, axes = plt.subplots(1, 3, figsize=(9.6, 4.0), sharex=True, sharey=True)
style = dict(cmap="viridis", vmin=0, vmax=1.8, linewidth=0.3, edgecolor=(1, 1, 1, 0.5))
for ax, grid, title in ((axes[0], z, "Noise: a square grid"), (axes[1], x, "x = g(z): it bends")):
    mesh = ax.pcolormesh(*grid.numpy().transpose(2, 0, 1), log_det[:-1, :-1].numpy(), **style)
    ax.set_title(title)
image = axes[2].pcolormesh(seen.numpy(), seen.numpy(), log_p.exp().T.numpy(), cmap="viridis")
axes[2].set_title("The density of x")
below = dict(location="bottom", shrink=0.9, pad=0.02)
axes[0].set_ylabel("second coordinate")
fig.colorbar(mesh, ax=axes[:2], label="log |det $J_g$|  (nats)", **below).outline.set_visible(False)
fig.colorbar(image, ax=axes[2], label="p(x)", **below).outline.set_visible(False)
for ax in axes:
    ax.set(aspect="equal", xlim=(-5.5, 5.5), ylim=(-4.5, 4.5), xlabel="first coordinate")
    ax.grid(False)
plots.show(fig, alt=(
    "Left: a square grid coloured by log |det J_g|. Middle: the same grid bent by three planar layers; cells with "
    "a large determinant have become large. Right: the density, which is low where the cells are large."
))

# %% [markdown]
# *What you see:* colour and size agree. The light cells of the left grid, with $\log|\det J_g|$ near 1.5, are the ones that
# have grown to more than four times their area in the middle picture; the dark ones have kept theirs. On the right the
# density: low where the cells in the middle of the noise were stretched, high on the ridge near $(2, -0.5)$, where cells have
# kept their size and crowd together. (The corners of the middle grid leave the picture.)
#
# A density integrates to one, and that is a test that no formula can talk its way out of:

# %% tags=["nbval-check-output"]
wide = torch.linspace(-14, 14, 401)
cell = (wide[1] - wide[0]) ** 2
points = torch.cartesian_prod(wide, wide)
with torch.no_grad():
    z, log_det_f = bend.inverse(points)
    log_p0 = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    print(f"log p_0 + log|det J_f| integrates to {(log_p0 + log_det_f).exp().sum() * cell:.6f}")
    print(f"log p_0 - log|det J_f| integrates to {(log_p0 - log_det_f).exp().sum() * cell:.6f}")

J = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
print(f"log |det J| = {torch.linalg.slogdet(J).logabsdet:.4f}     det of the matrix |J|: {J.abs().det():.0f}")

# %% [markdown]
# **A slide of the lecture series** writes the last term as $\log\det|\cdot|$. Read as it stands, with absolute values
# of the *entries*, it has no logarithm for the matrix above: its determinant is $10$, that of the absolute values is
# $-2$. The bars belong around the determinant: it is a number, and its sign only says whether $f$ turns space over.
#
# ### Exercise 1 · The density of a point (warm-up)
#
# For a batch of points you are given $z = f(x)$, shape `(B, d)`, and the Jacobians $J_f(x)$, shape `(B, d, d)`. The base
# is $\mathcal N(0, I_d)$. Return $\log p(x)$ for each of them. In 30 dimensions a determinant easily leaves the range of
# a float; its logarithm never does.

# %% exercise="change_of_variables_log_prob"
def change_of_variables_log_prob(z: torch.Tensor, jacobian: torch.Tensor) -> torch.Tensor:
    """log p(x) in nats from z = f(x) and J_f(x): (B, d), (B, d, d) -> (B,)."""
    ### BEGIN SOLUTION
    log_base = -0.5 * (z**2 + math.log(2 * math.pi)).sum(dim=1)
    return log_base + torch.linalg.slogdet(jacobian).logabsdet
    ### END SOLUTION

# %% check="change_of_variables_log_prob" points=2
check.change_of_variables_log_prob(change_of_variables_log_prob)
### BEGIN HIDDEN TESTS
check.hidden("change_of_variables_log_prob", change_of_variables_log_prob, seed=5310)
print("hidden tests ran to the end: change_of_variables_log_prob 7c02")
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Which divergence does a flow minimise?
#
# With an exact $\log p(x \mid \theta)$ a flow is trained by maximum likelihood: $\max_\theta \sum_i \log p(x_i \mid \theta)$.
# In the limit of much data that is $\min_\theta \mathrm{KL}(\pi \| p)$, the *forward* KL. It has a second face. Send the
# data through $f$: what comes out should be noise.
#
# > **Theorem F2.** Let $\pi$ be the density of the data, $f_\#\pi$ that of $z = f(x)$ for $x \sim \pi$, and $p_0$ the base.
# > Then
# > $$\mathrm{KL}(\pi \,\|\, p) = \mathrm{KL}(f_\#\pi \,\|\, p_0).$$
# > Maximising the likelihood is the same as making the encoded data look like the base. The *reverse* KL,
# > $\mathrm{KL}(p \| \pi) = \mathbb E_{z \sim p_0}\left[\log p_0(z) - \log|\det J_g(z)| - \log \pi(g(z))\right]$, needs samples of the
# > model, and $\pi$ only up to its normaliser.
#
# <details><summary>Proof</summary>
#
# It is written exercise W1, at the end of this section.
# </details>
#
# The check takes a mixture in one dimension and a flow of three planar layers. Left and right side are integrals over
# different spaces, of different densities.

# %% tags=["nbval-check-output"]
pi = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Normal(torch.tensor([-2.0, 1.5]), torch.tensor([0.6, 0.8])))
generator = torch.Generator().manual_seed(4)
line_flow = flows.Compose([flows.PlanarFlow(1, generator=generator) for _ in range(3)])
with torch.no_grad():
    for parameter in line_flow.parameters():
        parameter.mul_(3.0)
    line = torch.linspace(-16, 16, 8001)
    step = line[1] - line[0]

    def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        return (log_p.exp() * (log_p - log_q)).sum() * step

    log_pi = pi.log_prob(line)
    log_p = flows.Flow(line_flow, 1).log_prob(line[:, None])  # the model's density of x
    x_of_z, log_det_g = line_flow(line[:, None])
    log_pushed = pi.log_prob(x_of_z[:, 0]) + log_det_g  # the encoded data's density of z
    log_p0 = Normal(0.0, 1.0).log_prob(line)
    print(f"forward:  KL(pi || p)        over x  {kl(log_pi, log_p):.10f}")
    print(f"          KL(f_# pi || p_0)  over z  {kl(log_pushed, log_p0):.10f}")
    print(f"reverse:  KL(p || pi)        over x  {kl(log_p, log_pi):.10f}")

# %% [markdown]
# The two KLs matter most when the model *cannot* be right. The simplest flow of all, $x = \sigma z + \mu$, has to fit the
# two modes with one Gaussian.
#
# **Predict first:** where will the mean of each fit be, and which of the two will be narrower?

# %%
fits = {"forward KL": flows.ActNorm(1), "reverse KL": flows.ActNorm(1)}
torch.manual_seed(0)  # torch.distributions draw from the global state
sample = pi.sample((4000, 1))


def loss_of(name: str) -> object:
    flow = flows.Flow(fits[name], 1)
    if name == "forward KL":  # samples of the data, density of the model
        return lambda step, generator: -flow.log_prob(minibatch(sample, 500, generator)).mean()
    log_target = lambda x: pi.log_prob(x[:, 0]) + 7.0  # noqa: E731  (unnormalised: the 7 changes nothing)
    return lambda step, generator: flows.reverse_kl(flow, log_target, 300, generator=generator).mean()


fig, ax = plt.subplots(figsize=(7.2, 2.9))
plots.curve(ax, line, pi.log_prob(line).exp(), color=plots.INK, label="data π")
for (name, layer), color in zip(fits.items(), plots.PALETTE, strict=False):
    fit(loss_of(name), layer.parameters(), steps=200, lr=0.1, lr_decay_from=0.3, progress=False)
    mean, sd = layer.shift.item(), layer.log_scale.exp().item()
    print(f"{name}: mean {mean:.2f}, standard deviation {sd:.2f}")
    plots.curve(ax, line, Normal(mean, sd).log_prob(line).exp(), color=color, label=f"{name}: N({mean:.2f}, {sd:.2f}²)")
print(f"data:       mean {pi.mean:.2f}, standard deviation {pi.stddev:.2f}")
ax.set(xlim=(-6, 6), xlabel="x", ylabel="density", title="One Gaussian for two modes")
ax.legend()
plots.show(fig, alt="The forward fit covers both modes of the data, the reverse fit sits on the larger one")

# %% [markdown]
# *What you see:* the forward KL matches the data's mean and standard deviation and puts mass where there is none, for it
# must not miss any data. The reverse KL sits on the larger mode: it is only asked about points that it draws itself.
# Forward needs data and the model's density; reverse needs the target's density (up to a constant: the $7$ above) and
# the model's *samples*. This decides in section 5 which direction of a flow has to be fast.
#
# ### Exercise W1 · The duality (written)
#
# Prove Theorem F2, first the duality, then the formula of the reverse KL. Say where the invertibility of $f$ is used, and
# why the formula can do without the normaliser of $\pi$.

# %% [markdown] written="F2" points=4
# ### BEGIN SOLUTION
# **Model answer.** *Duality.* By the change of variables (F1) the encoded data have the density
# $f_\#\pi(z) = \pi(g(z))\,|\det J_g(z)|$. Substitute $x = g(z)$, $dx = |\det J_g(z)|\,dz$, in the forward KL; this uses that
# $g$ is a bijection, so that every $x$ is counted once:
# $$\mathrm{KL}(\pi \| p) = \int \pi(x) \log\frac{\pi(x)}{p(x)}\,dx = \int \pi(g(z))\,|\det J_g(z)| \log\frac{\pi(g(z))}{p(g(z))}\,dz.$$
# The first factors are $f_\#\pi(z)$. In the logarithm multiply numerator and denominator by $|\det J_g(z)|$: the numerator becomes $f_\#\pi(z)$; the
# denominator is $p(g(z))\,|\det J_g(z)| = p_0(z)$, again by F1, since $z = f(x)$ has the density $p_0$ if $x \sim p$. Hence
# $\mathrm{KL}(\pi \| p) = \int f_\#\pi(z) \log \frac{f_\#\pi(z)}{p_0(z)}\,dz = \mathrm{KL}(f_\#\pi \| p_0)$.
#
# *Reverse KL.* $\mathrm{KL}(p \| \pi) = \mathbb E_{x \sim p}[\log p(x) - \log \pi(x)]$. Draw $x = g(z)$ with $z \sim p_0$; by F1
# $\log p(g(z)) = \log p_0(z) - \log|\det J_g(z)|$, which gives the formula. If only $\tilde\pi = Z\pi$ is known, the
# expression with $\tilde\pi$ is $\mathrm{KL}(p \| \pi) - \log Z$: a constant that no parameter of the flow can change, so minimiser
# and gradient are the same.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: the density of the encoded data, by the change of variables.
# - 1 point: the substitution $x = g(z)$ in the integral, with its determinant, and that it needs a bijection.
# - 1 point: the ratio inside the logarithm does not change, since both densities get the same factor.
# - 1 point: the reverse KL as an expectation over $z \sim p_0$, and why $\log Z$ does not matter.
# ### END MARK SCHEME

# %% [markdown]
# ## 3 · Coupling layers
#
# A determinant of an $m \times m$ matrix costs $O(m^3)$, for every data point, in every step. Useful flows have
# Jacobians whose determinant can be read off. *Coupling* splits the vector: part $a$ passes through, and decides how
# part $b$ is moved. The deciding network may be anything; it is never inverted.
#
# > **Theorem F3.** Let $x_a = z_a$ and $x_b = \sigma(z_a) \odot z_b + \mu(z_a)$ with $\sigma > 0$. The map is a bijection with
# > inverse $z_b = (x_b - \mu(x_a)) / \sigma(x_a)$; either direction needs **one** pass of the network; and
# > $$\log|\det J_g| = \sum_i \log \sigma_i(z_a), \qquad \log|\det J_f| = -\sum_i \log \sigma_i(x_a).$$
# > With $\sigma = 1$ it is NICE (volume is kept), otherwise RealNVP. It is an autoregressive flow (section 5) with two
# > blocks instead of $m$ single dimensions.
#
# <details><summary>Proof</summary>
#
# Since $x_a = z_a$, the receiver of $x$ knows $\mu$ and $\sigma$ and undoes the affine map. The Jacobian is block
# triangular, $\begin{pmatrix} I & 0 \\ * & \mathrm{diag}(\sigma) \end{pmatrix}$, whatever stands at $*$, so its determinant is
# $\prod_i \sigma_i$. Block $b$ depends on block $a$ and on itself elementwise, and $a$ on nothing: the order of an
# autoregressive model with two groups of variables.
# </details>

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)


def coupling(num_dims: int, first: bool) -> flows.AffineCoupling:
    mask = flows.half_mask(num_dims, first=first)
    kept, moved = int(mask.sum()), int((~mask).sum())
    return flows.AffineCoupling(mask, nets.MLP([kept, 16, 2 * moved], generator=generator))


one, two = coupling(6, True), flows.Compose([coupling(6, True), coupling(6, False)])
z = torch.randn(6, generator=generator)
patterns = {}
for name, layer in (("one coupling layer", one), ("two, halves swapped", two)):
    x, log_det = layer(z)
    J = jacobian(lambda point: layer(point)[0], z)  # noqa: B023
    patterns[name] = J != 0
    print(f"{name:20s}  log|det J_g|  sum of log-scales {log_det:+.10f}   autograd {torch.linalg.slogdet(J)[1]:+.10f}"
          f"   |f(g(z)) - z| < 1e-12: {(layer.inverse(x)[0] - z).abs().max() < 1e-12}")

# %%
made = nets.MaskedMLP(6, [24, 24], 2, generator=generator)
maf = flows.MaskedAutoregressiveFlow(made)
patterns["an autoregressive flow"] = jacobian(lambda point: maf(point)[0], z) != 0
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.2))
for ax, (name, pattern) in zip(axes, patterns.items(), strict=True):
    plots.mask_cells(ax, pattern)
    ax.set(title=name.capitalize(), xlabel="reads $z_j$", ylabel="output $x_i$")
plots.show(fig, alt=(
    "Nonzero entries of the Jacobian: one coupling layer has a diagonal and one full block below it; two "
    "layers with swapped halves fill everything but off-diagonal entries of one block; the autoregressive "
    "flow is lower triangular"
))

# %% [markdown]
# *What you see:* coloured cells are entries of $J_g$ that are not zero. One layer leaves half of the vector alone; two
# with swapped halves reach everything, and the log-determinants simply add up. On the right the extreme case, one
# dimension a block: section 5.
#
# Now train a RealNVP of eight such layers on two moons, by maximum likelihood.

# %%
moons = data.two_moons()
generator = torch.Generator().manual_seed(1)
networks = [nets.MLP([1, 64, 64, 2], generator=generator) for _ in range(8)]
real_nvp = flows.Flow(flows.Compose([
    flows.AffineCoupling(flows.half_mask(2, first=k % 2 == 0), net) for k, net in enumerate(networks)
]), 2).float()


def negative_log_likelihood(step: int, generator: torch.Generator) -> torch.Tensor:
    return -real_nvp.log_prob(moons.sample(256, generator=generator)).mean()


history = fit(
    negative_log_likelihood, real_nvp.parameters(), steps=1000, lr=5e-3, lr_decay_from=0.3, clip_norm=5.0
)
held_out = moons.sample(20_000, generator=torch.Generator().manual_seed(2))
with torch.no_grad():
    excess = moons.log_prob(held_out) - real_nvp.log_prob(held_out)
print(f"{history.seconds:.1f} s   KL(pi || p) on fresh samples: {excess.mean():.3f} ± {excess.std() / 20_000**0.5:.3f} nats")

# %% [markdown]
# ### Live demo · Depth
#
# **Predict first:** here is the density after seven of the eight layers; the last one changes a single coordinate. Does
# every layer bring the density closer to the moons?

# %%
flow_depth.show(real_nvp, moons, k=7)

# %% [markdown]
# *Answer:* no. The KL is 1.5 nats before any layer, rises to 4.6 after four, is still 1.7 after seven, worse than no flow at
# all, and 0.04 after the eighth. Training rewards only the end; the early layers prepare it.
#
# ### Exercise 2 · An affine coupling layer
#
# Write $f$, the direction that training needs: $x \mapsto z$, and the log-determinant of *that* map. The first half of
# `x` passes through. The network is a single linear layer: `x_a @ weight` gives the log-scales $s$ (first half of its
# columns) and the shifts $t$ (second half; the library's layer has them in the other order) of the *sampling* direction
# $x_b = e^{s} z_b + t$.

# %% exercise="affine_coupling"
def affine_coupling(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z = f(x) and log|det J_f(x)| in nats: (B, d), (d/2, d) -> (B, d), (B,)."""
    ### BEGIN SOLUTION
    x_a, x_b = x.chunk(2, dim=1)
    log_scale, shift = (x_a @ weight).chunk(2, dim=1)
    z_b = (x_b - shift) * torch.exp(-log_scale)
    return torch.cat([x_a, z_b], dim=1), -log_scale.sum(dim=1)
    ### END SOLUTION

# %% check="affine_coupling" points=2
check.affine_coupling(affine_coupling)
### BEGIN HIDDEN TESTS
check.hidden("affine_coupling", affine_coupling, seed=8842)
print("hidden tests ran to the end: affine_coupling e13b")
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Small determinants: planar, radial, Sylvester
#
# Another way to an affordable determinant: a Jacobian that is a multiple of the identity plus something of low rank. A
# *planar* layer pushes along one direction, by an amount that depends on one number; a *radial* one pulls towards a point
# or pushes away from it.
#
# > **Theorem F4.** (a) *Planar*, $x = z + u \tanh(w^\top z + b)$: with $\psi(z) = \tanh'(w^\top z + b)\,w$,
# > $$\log|\det J_g| = \log|1 + u^\top \psi(z)|,$$
# > a bijection iff $w^\top u \ge -1$.
# > (b) *Radial*, $x = z + \beta h\,(z - z_0)$ with $h = 1/(\alpha + r)$, $r = \|z - z_0\|$, $\alpha > 0$:
# > $$\log|\det J_g| = (d - 1)\log(1 + \beta h) + \log(1 + \beta \alpha h^2),$$
# > (for $\beta > -\alpha$), a bijection iff $\beta \ge -\alpha$. In both, the log-determinant is finite *everywhere* iff the inequality is strict.
# > (c) *Sylvester's identity*: for $V, W \in \mathbb R^{m \times k}$, $\det(I_m + V W^\top) = \det(I_k + W^\top V)$.
#
# <details><summary>Proof</summary>
#
# (a) $J = I + u\,\psi^\top$, and (c) with $k = 1$ gives the determinant. Across $w$ the map only adds, along $w$ the number
# $a = w^\top z$ becomes $a + (w^\top u) \tanh(a + b)$, with slope $1 + (w^\top u)(1 - \tanh^2)$. As $1 - \tanh^2$ takes all values
# in $(0, 1]$, the slope is positive everywhere iff $w^\top u > -1$; at $-1$ it vanishes at a single point, and the map still
# rises; below, it falls somewhere and is not injective.
# (b) In the direction of $z - z_0$ the radius becomes $r(1 + \beta h)$, with slope $1 + \beta h + \beta r h' = 1 + \beta\alpha h^2$,
# since $h' = -h^2$ and $1 - rh = \alpha h$; in the other $d - 1$ directions lengths grow like the radius, by $1 + \beta h$. For
# $\beta \ge 0$ both are at least 1. For $\beta < 0$ both are smallest at $r = 0$, where they are $1 + \beta/\alpha$: positive iff
# $\beta > -\alpha$. At $\beta = -\alpha$ the new radius $r^2/(\alpha + r)$ still rises; for $\beta < -\alpha$ the whole sphere
# $r = -\beta - \alpha$ lands on $z_0$.
# (c) is written exercise W2.
# </details>

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(2)
z, z0, w = (torch.randn(5, generator=generator) for _ in range(3))
u = -0.6 * w / (w @ w) + torch.linspace(0, 1, 5)
maps = {
    "planar": lambda point: flows.planar(point, u, w, 0.3),
    "radial": lambda point: flows.radial(point, z0, 0.8, 2.5),
}
for name, layer in maps.items():
    by_autograd = torch.linalg.slogdet(jacobian(lambda point: layer(point)[0], z)).logabsdet  # noqa: B023
    print(f"{name}      formula {layer(z)[1]:.12f}    autograd {by_autograd:.12f}")
V, W = torch.randn(2, 200, 3, generator=generator)
large, small = torch.eye(200) + V @ W.T / 50, torch.eye(3) + W.T @ V / 50
print(f"Sylvester   det of 200 x 200 {torch.det(large):.10f}    det of 3 x 3 {torch.det(small):.10f}")

# %%
a = torch.linspace(-3, 3, 401)
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.1))
for along, color in zip((3.0, 0.0, -1.0, -2.0), plots.PALETTE, strict=False):
    plots.curve(axes[0], a, a + along * torch.tanh(a), color=color, label=f"w·u = {along:g}".replace("-", "−"))
r = torch.linspace(0, 3, 401)
for beta, color in zip((3.0, 0.0, -1.0, -2.0), plots.PALETTE, strict=False):
    plots.curve(axes[1], r, r + beta * r / (1 + r), color=color, label=f"β = {beta:g}".replace("-", "−"))
axes[0].set(xlabel="w·z", ylabel="w·x", title="Planar: rises iff w·u ≥ −1")
axes[1].set(xlabel="distance from z₀ before", ylabel="position on the same ray after", title="Radial (α = 1): rises iff β ≥ −1")
for ax in axes:
    ax.legend()
plots.show(fig, alt=(
    "Planar and radial maps along their one direction: steep, straight, flat at one point at the edge of the "
    "condition, and falling beyond it"
))

# %% [markdown]
# *What you see:* the green curves are at the edge: flat at one point, where the log-determinant is $-\infty$, yet still
# one-to-one. The pink ones are beyond it: on the left three values of
# $z$ share one $x$; on the right a negative value means that the point has been pushed through $z_0$ to the other side, and
# a whole sphere lands on $z_0$. No density formula holds there. The library
# keeps its trained layers on the right side by construction (`constrained_u`).
#
# A planar layer has no closed-form inverse, but a safe numeric one: along $w$ it is a rising function of one number.
# The radial layer's inverse is the root of a quadratic equation. Sylvester flows stack $k$ planar layers in one, with a
# $k \times k$ triangular determinant; a bijection if $R_{ii} \tilde R_{ii} > -1$ for all $i$.
#
# ### Live demo · A planar flow by hand

# %%
planar_by_hand.show()

# %% [markdown]
# ### Exercise 3 · The planar log-determinant
#
# Compute it without building the Jacobian, in $O(d)$ for each point. Take `u` as it is given, also where the map folds.

# %% exercise="planar_log_det"
def planar_log_det(z: torch.Tensor, u: torch.Tensor, w: torch.Tensor, b: float) -> torch.Tensor:
    """log|det J_g(z)| of x = z + u tanh(w.z + b), in nats: (B, d), (d,), (d,), number -> (B,)."""
    ### BEGIN SOLUTION
    slope = 1 - torch.tanh(z @ w + b) ** 2  # (B,)
    return torch.log(torch.abs(1 + slope * (u @ w)))
    ### END SOLUTION

# %% check="planar_log_det" points=2
check.planar_log_det(planar_log_det)
### BEGIN HIDDEN TESTS
check.hidden("planar_log_det", planar_log_det, seed=2093)
print("hidden tests ran to the end: planar_log_det 5be4")
### END HIDDEN TESTS

# %% [markdown]
# ### Exercise W2 · Sylvester's determinant identity (written)
#
# Prove $\det(I_m + V W^\top) = \det(I_k + W^\top V)$ for $V, W \in \mathbb R^{m \times k}$. What does it cost to evaluate either side?
# What does it say about a planar flow?

# %% [markdown] written="F4" points=4
# ### BEGIN SOLUTION
# **Model answer.** Consider the block matrix $M = \begin{pmatrix} I_m & -V \\ W^\top & I_k \end{pmatrix}$ and eliminate in two ways.
# Subtracting $W^\top$ times the first block row from the second,
# $$\begin{pmatrix} I_m & 0 \\ -W^\top & I_k \end{pmatrix} M = \begin{pmatrix} I_m & -V \\ 0 & I_k + W^\top V \end{pmatrix}.$$
# The factor on the left is unit triangular and has determinant 1; the right side is block triangular. So
# $\det M = \det(I_k + W^\top V)$. Adding $V$ times the second block row to the first,
# $$\begin{pmatrix} I_m & V \\ 0 & I_k \end{pmatrix} M = \begin{pmatrix} I_m + V W^\top & 0 \\ W^\top & I_k \end{pmatrix},$$
# so $\det M = \det(I_m + V W^\top)$. The two are equal.
#
# The left side costs $O(m^3)$ (and $O(m^2 k)$ to build), the right side $O(m k^2 + k^3)$. A planar flow has
# $J = I_m + u\,\psi(z)^\top$, $k = 1$: the determinant is the number $1 + \psi(z)^\top u$, at $O(m)$.
# ### END SOLUTION
# ### BEGIN MARK SCHEME
# - 1 point: a block matrix (or another device, for example $\det(I + AB) = \det(I + BA)$ through eigenvalues with
#   multiplicities, or $V$ of full rank and continuity) from which both determinants follow.
# - 1 point: both eliminations carried out correctly.
# - 1 point: the costs $O(m^3)$ and $O(m k^2 + k^3)$.
# - 1 point: the planar flow as $k = 1$, with the number $1 + \psi^\top u$.
# ### END MARK SCHEME

# %% [markdown]
# ## 5 · Autoregressive flows, both ways
#
# Let every dimension be moved by a shift and a scale that depend on all *earlier* ones. The Jacobian is triangular
# again, and the map much richer than a coupling layer. How can one network compute all shifts and scales in a single
# pass, each from its own past? By masking its weights: **MADE**.
#
# > **Theorem F6.** Give the inputs the degrees $1, \dots, m$ and every hidden unit a degree. If a hidden unit reads only
# > inputs (and units) of degree at most its own, and output $j$ only units of degree *strictly* below $j$, then output $j$
# > depends on the inputs $1, \dots, j - 1$ only.
#
# <details><summary>Proof</summary>
#
# Along any path from an input to an output the degrees never fall from input to the last hidden unit, and rise strictly
# in the last step. So an input $i$ on a path to the output $j$ has $i < j$.
# </details>

# %% tags=["nbval-check-output"]
made = nets.MaskedMLP(6, [18, 18], 1, generator=torch.Generator().manual_seed(3))
points = torch.randn(20, 6, generator=torch.Generator().manual_seed(4))
reads = torch.stack([jacobian(lambda x: made(x)[:, 0], x) != 0 for x in points]).any(0)
print("output i reads input j, by autograd at 20 points:")
print(reads.int())

# %%
by_degree = torch.arange(18) % 6  # the units' degrees, 0 to 5: sorted, the masks look like stairs
order = by_degree.argsort(stable=True)
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), width_ratios=[1, 2.4, 1])
masks = [made.input.mask[:, order].T, made.layers[0].mask[order][:, order].T, made.layers[1].mask[order].T]
titles = ("Inputs to units", "Units to units", "Units to outputs")
for ax, mask, title in zip(axes, masks, titles, strict=True):
    plots.mask_cells(ax, mask)
    ax.set(title=title, xticks=[], yticks=[], xlabel="reads", aspect="auto")
axes[0].set_ylabel("writes")
plots.show(fig, alt="The three weight masks of a MADE with its units sorted by degree: stairs, so that no path leads back")

# %% [markdown]
# *What you see:* the masks of a network with two hidden layers, units sorted by degree; a row is a reader. Three units have
# degree 0: they read nothing, and every output may read them. The pattern of the masks' product is the matrix printed
# above, zero on and above the diagonal. One "less than or equal" in the wrong place, and a pixel predicts itself:
# likelihoods become wonderful, and samples rubbish.
#
# ### Exercise 4 · The masks of MADE
#
# From the degrees of the inputs (any order of $1, \dots, m$) and of the hidden units, make both masks of a network with
# one hidden layer: a row for what is *read*, a column for the reader (the transpose of the picture). Hidden degrees run
# from 0 to $m$, the outputs have the degrees of the inputs. Where is the inequality strict?

# %% exercise="made_masks"
def made_masks(
    input_degrees: torch.Tensor, hidden_degrees: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which unit reads which input, and which output reads which unit: (m,), (H,) -> (m, H), (H, m)."""
    ### BEGIN SOLUTION
    input_mask = input_degrees[:, None] <= hidden_degrees[None, :]
    output_mask = hidden_degrees[:, None] < input_degrees[None, :]
    return input_mask, output_mask
    ### END SOLUTION

# %% check="made_masks" points=2
check.made_masks(made_masks)
### BEGIN HIDDEN TESTS
check.hidden("made_masks", made_masks, seed=6617)
print("hidden tests ran to the end: made_masks 03af")
### END HIDDEN TESTS

# %% [markdown]
# ### MAF and IAF: one map, two directions
#
# > **Theorem F5.** Let $\hat\mu_j, \hat\sigma_j > 0$ depend on $x_1, \dots, x_{j-1}$. The *Gaussian autoregressive flow*
# > $$f:\ z_j = \frac{x_j - \hat\mu_j(x_{<j})}{\hat\sigma_j(x_{<j})}, \qquad g:\ x_j = \hat\sigma_j(x_{<j})\,z_j + \hat\mu_j(x_{<j}), \qquad \log|\det J_f| = -\sum_j \log\hat\sigma_j,$$
# > needs **one** network pass for $f$ (all of $x$ is there) and $m$ passes, one after another, for $g$ ($x_{<j}$ must be drawn
# > before $x_j$). With $\sigma = 1/\hat\sigma$ and $\mu = -\hat\mu/\hat\sigma$ the same $f$ reads $z_j = \sigma_j(x_{<j})\,x_j + \mu_j(x_{<j})$. Used as
# > the *sampling* map, from noise to target, it is called the *inverse* autoregressive flow (IAF).
#
# <details><summary>Proof</summary>
#
# $J_f$ is lower triangular with the diagonal $1/\hat\sigma_j$. The rest is solving for $x_j$, respectively inserting.
# </details>
#
# | | density of a given point | sampling | so it is used for |
# |---|---|---|---|
# | MAF | 1 pass | $m$ passes | density estimation (forward KL), priors (lecture 05) |
# | IAF | $m$ passes | 1 pass | variational posteriors (reverse KL, lecture 06) |
#
# We count the passes of a network in 64 dimensions, and check the rewriting.

# %% tags=["nbval-check-output"]
class Counting(torch.nn.Module):
    """A network that counts how often it is called."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.net(x)


made = nets.MaskedMLP(64, [512, 512], 2, generator=torch.Generator().manual_seed(5))
counting = Counting(made)
maf = flows.MaskedAutoregressiveFlow(counting)
with torch.no_grad():
    z = torch.randn(100, 64, generator=torch.Generator().manual_seed(6))
    x, _ = flows.solve_sequentially(counting, maf.step, z)
    print(f"g, dimension after dimension: {counting.passes} passes (the last one for log|det|)")
    counting.passes = 0
    back, log_det = maf.inverse(x)
    print(f"f, all at once:               {counting.passes} pass      |f(g(z)) - z| < 1e-12: {(back - z).abs().max() < 1e-12}")
    mu, log_sigma = flows.iaf_parameters(*maf.parameters_at(x))
    print(f"sigma x + mu is the same z:   {((log_sigma.exp() * x + mu - back).abs().max() < 1e-12)}")

# %% [markdown]
# **A slide of the lecture series** labels *both* directions "this process is not sequential". That is true of $x \to z$, one
# pass. $z \to x$ *is* sequential: the count above shows 64 passes, and one more for the log-determinant.
#
# **An engineer's way out.** Sequential need not mean $m$ whole passes. In pass $j$ only what depends on $x_{j-1}$ is new:
# the masks say which units those are. Going block by block through units sorted by degree, each weight is used about once:
# the arithmetic of one pass, if in many small products instead of a few large ones. The answer is the same to rounding:

# %%
fast = flows.MaskedAutoregressiveFlow(made)  # it sees the masks
ways = {
    "f: one pass": lambda: fast.inverse(x)[0],
    "g: the library, block by block": lambda: fast(z)[0],
    "g: the textbook, 65 passes": lambda: flows.solve_sequentially(made, fast.step, z)[0],
}
with torch.no_grad():
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        for _ in range(3):
            value = way()
        milliseconds = (time.perf_counter() - start) / 3 * 1e3
        error = (value - (z if name.startswith("f") else x)).abs().max()
        print(f"{name:32s} {milliseconds:7.1f} ms    largest error {error:.0e}")

# %% [markdown]
# ## 6 · The pieces of Glow
#
# RealNVP swaps fixed halves between its layers. Glow (Kingma & Dhariwal 2018) *learns* how to mix the channels of an
# image, with a $c \times c$ matrix applied at every pixel, and replaces batch normalisation by a scale and a shift
# that are set once from data.
#
# > **Theorem F7.** For images of $c$ channels and $h \times w$ pixels:
# > *actnorm*, $z = s \odot x + b$ in every pixel, has $\log|\det J_f| = h\,w \sum_i \log|s_i|$; initialised with $s = 1/\mathrm{sd}$ and
# > $b = -\mathrm{mean}/\mathrm{sd}$ of a batch, its outputs have mean 0 and variance 1 in every channel of that batch (the
# > library stores the way back, $x = e^{\text{log\_scale}} z + \text{shift}$).
# > The *invertible 1 × 1 convolution* $z = W x$ in every pixel has $\log|\det J_f| = h\,w \log|\det W|$. With $W = P L (U + \mathrm{diag}\,s)$,
# > $P$ a permutation, $L$ unit lower and $U$ strictly upper triangular, $\log|\det W| = \sum_i \log|s_i|$.
#
# <details><summary>Proof</summary>
#
# Either map acts on every pixel separately and in the same way: the Jacobian is block diagonal with $h\,w$ equal blocks,
# $\mathrm{diag}(s)$ or $W$. $\det P = \pm 1$, $\det L = 1$, and $U + \mathrm{diag}\,s$ is triangular.
# </details>

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(7)
images = 3 + 2 * torch.randn(50, 4, 3, 5, generator=generator)
norm = flows.ActNorm(4, event_dims=3)
flows.initialise(norm, images)
z, log_det = norm.inverse(images)
means, variances = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
print(f"actnorm: channel means 0, variances 1 to 1e-12: {max(means.abs().max(), (variances - 1).abs().max()) < 1e-12}")
for lu in (True, False):
    conv = flows.InvertibleConv1x1(4, lu=lu, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        for parameter in conv.parameters():  # away from the rotation that it starts as
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    J = jacobian(lambda image: conv.inverse(image)[0], images[0]).reshape(60, 60)  # noqa: B023
    print(f"1 x 1 convolution, {'by factors' if lu else 'dense W   '}: formula {conv.inverse(images[0])[1]:+.10f}   "
          f"autograd of 60 x 60 {torch.linalg.slogdet(J)[1]:+.10f}")

# %% [markdown]
# **Two things on the slides need care.** The LU factors are said to reduce "the cost to $O(c)$". That is the
# *log-determinant's* cost; the map itself still multiplies every pixel by $W$, and building $W$ from its factors is
# $O(c^3)$ again. And $W$ is introduced as "a rotation matrix": a rotation is only how it *starts*. Any invertible
# matrix is allowed (with $P$ fixed, the factors reach almost all of them). We measure the first:

# %%
channels = [16, 32, 64, 128, 256, 512]
times = {"log|det W|, dense": [], "log|det W|, factors": [], "W from its factors": []}
with torch.no_grad():
    for c in channels:
        dense, factors = (flows.InvertibleConv1x1(c, lu=lu, generator=generator) for lu in (False, True))
        jobs = (lambda: dense.log_abs_det_weight, lambda: factors.log_abs_det_weight, lambda: factors.weight)  # noqa: B023
        for name, job in zip(times, jobs, strict=True):
            job()  # once to warm up
            runs = []
            for _ in range(7):
                start = time.perf_counter()
                job()
                runs.append(time.perf_counter() - start)
            times[name].append(sorted(runs)[3] * 1e6)

fig, ax = plt.subplots(figsize=(7.2, 3.0))
for (name, values), color in zip(times.items(), plots.PALETTE, strict=False):
    plots.curve(ax, channels, values, marker="o", color=color, label=name)
plots.log_axes(ax)
ax.set(xlabel="channels c", ylabel="microseconds", title="What the factors save, and what not", xticks=channels)
ax.legend()
plots.show(fig, alt="Time against channels on log axes: the dense determinant and building W grow steeply, the sum of logs hardly")

# %% [markdown]
# *What you see:* the sum of $c$ logarithms is as good as free (a few microseconds, mostly the call). The dense
# determinant grows steeply, and so does building $W$, which at 512 channels is even the dearer of the two: the factors save
# time only where $W$ is not rebuilt from them. What they do secure is that $W$ stays invertible.
#
# ### Exercise 5 · The log-determinant from the factors
#
# For a whole image, from the factors of Theorem F7. Entries of $s$ may be negative. Which of the factors matter?

# %% exercise="lu_log_det"
def lu_log_det(
    lower: torch.Tensor, upper: torch.Tensor, s: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """log|det J_f| of a 1 x 1 convolution, W = P L (U + diag s): (c, c), (c, c), (c,), h, w -> ()."""
    ### BEGIN SOLUTION
    return height * width * s.abs().log().sum()
    ### END SOLUTION

# %% check="lu_log_det" points=1
check.lu_log_det(lu_log_det)
### BEGIN HIDDEN TESTS
check.hidden("lu_log_det", lu_log_det, seed=4408)
print("hidden tests ran to the end: lu_log_det 91d6")
### END HIDDEN TESTS

# %% [markdown]
# ## 7 · Glow on real pictures
#
# One *step* of Glow is, from data to noise: actnorm, 1 × 1 convolution, affine coupling of the channels. Before the
# steps an image is *squeezed*: each 2 × 2 block of pixels becomes four channels. After them it is *split*: half of the
# channels are declared noise, and only the other half goes on to the next, coarser scale. All of it is a bijection from
# an image to as many numbers.
#
# > **Finding F10.** A multi-scale Glow assigns exact likelihoods to small images, draws recognisable samples,
# > interpolates between images in latent space, and moves them along directions that mean a class (Kingma & Dhariwal
# > 2018, on faces; here on what two cores allow).
#
# The digits have 17 grey levels, and a density on discrete values can cheat (lecture 04 says how). We add uniform noise
# $u \in [0, 1)$ to every level; then $-\mathbb E_u \log_2 p(y + u)$ per pixel is an upper bound of the bits that the model
# needs for the discrete pixel. A yardstick: 17 equally likely levels cost $\log_2 17 = 4.09$ bits.
#
# **Predict first:** the left and right columns of the digits are almost always 0. What is the best that a model of
# *independent* pixels can do: 4, 3.5, or 2.5 bits a pixel?

# %%
digits = data.digits(binary=False)
levels, held_out = (x.reshape(-1, 1, 8, 8) for x in (digits.train_x, digits.test_x))
generator = torch.Generator().manual_seed(3)
glow = flows.Glow(
    (1, 8, 8), num_scales=2, steps_per_scale=4, hidden=64, generator=generator,
    pixels=flows.FixedAffine(8.5, 5.0, event_dims=3),  # from levels to about unit scale
).float()


def noisy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + torch.rand(images.shape, generator=generator, dtype=images.dtype)


def nats_per_pixel(step: int, generator: torch.Generator) -> torch.Tensor:
    return -glow.log_prob(noisy(minibatch(levels, 64, generator), generator)).mean() / 64


flows.initialise(glow, noisy(levels, generator))
history = fit(nats_per_pixel, glow.parameters(), steps=420, lr=8e-3, lr_decay_from=0.3, clip_norm=1.0, seed=3)

# %%
@torch.no_grad()
def bits_per_pixel(images: torch.Tensor) -> torch.Tensor:
    """Upper bound for each image, averaged over 8 draws of the noise: (B,)."""
    many = noisy(images.expand(8, *images.shape), torch.Generator().manual_seed(4))
    return numerics.nats_to_bits_per_dim(-glow.log_prob(many).mean(0), 64).double()


for name, images in (("held-out", held_out), ("training", levels[:600])):
    bits = bits_per_pixel(images)
    error = bits.std() / len(bits) ** 0.5
    print(f"Glow, {history.seconds:3.0f} s, {name} digits: at most {bits.mean():.2f} ± {error:.2f} bits a pixel")

# %%
flat, flat_test = digits.train_x.double(), digits.test_x.double()
frequency = torch.stack([(flat == level).double().mean(0) for level in range(17)]).clamp_min(1e-3)  # (17, 64)
frequency = frequency / frequency.sum(0)
independent = -frequency.log2().gather(0, flat_test.long()).mean(0).reshape(8, 8)  # of each pixel
covariance = torch.cov(flat.T, correction=0) + torch.eye(64) / 12  # 1/12: the noise's variance
gaussian = torch.distributions.MultivariateNormal(flat.mean(0) + 0.5, covariance)
by_gaussian = -gaussian.log_prob(noisy(flat_test, torch.Generator().manual_seed(4))).mean()
print(f"equally likely levels             {math.log2(17):.2f} bits a pixel")
print(f"one Gaussian, full covariance     {numerics.nats_to_bits_per_dim(by_gaussian, 64):.2f}")
print(f"independent pixels (discrete)     {independent.mean():.2f}   left and right columns "
      f"{independent[:, [0, -1]].mean():.2f}, the others {independent[:, 1:-1].mean():.2f}")

# %% [markdown]
# Independent pixels are a strong rival, in bits (2.44): in the left and right columns they are almost certain of the level
# 0 and pay 0.2 bits a pixel, against 3.2 elsewhere. A flow has to *build* that certainty, by stretching a continuous
# density until it is flat on $[0, 1)$ and nowhere else. Bits a pixel are dominated by such details; the samples show the
# rest.

# %%
@torch.no_grad()
def as_levels(latents: torch.Tensor) -> torch.Tensor:
    return glow.decode(latents).floor().clamp(0, 16)[..., 0, :, :]


def between(start: torch.Tensor, end: torch.Tensor, count: int) -> torch.Tensor:
    """Along the great circle: a straight line would leave the shell on which the latents lie."""
    angle = torch.acos((start * end).sum() / (start.norm() * end.norm()))
    t = torch.linspace(0, 1, count).reshape(-1, 1, 1, 1).to(start)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


noise = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float32)
with torch.no_grad():
    codes = glow.encode(levels + 0.5)  # in the middle of each level's bin
    pairs = glow.encode(held_out[[0, 1, 2, 3, 4, 5, 6, 7]] + 0.5)
paths = torch.cat([between(pairs[k], pairs[k + 1], 6) for k in (0, 2, 4, 6)])

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.6, 2.2))
for ax, images, title in (
    (axes[0], as_levels(noise), "Samples"),
    (axes[1], as_levels(0.8 * noise), "Samples, noise × 0.8"),
    (axes[2], as_levels(paths), "Between two held-out digits"),
):
    plots.image_grid(ax, images, columns=6, vmin=0, vmax=16)
    ax.set_title(title)
plots.show(fig, alt="Samples of Glow at full and reduced noise, and four rows of interpolations between held-out digits")

# %% [markdown]
# *What you see:* on the left what the model believes, about half of it digits. In the middle the same noise made smaller
# ("temperature" 0.8): calmer pictures, hardly more legible, and no longer samples of the density whose bits we measured.
# On the right each row starts and ends with a held-out digit; the pictures between are decoded from the great circle
# between their codes.
#
# A direction in latent space can mean something: the difference of the mean codes of two classes. Add it to the code of a
# held-out 5 and decode: does a 6 come out? A judge who was never told about the flow gives the verdict: the five
# nearest training digits, by pixels. The control moves the *pixels* by the difference of the mean pictures.
#
# **Predict first:** which of the two convinces the judge sooner?

# %%
def judged(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each image by its five nearest training digits, and the distance to the nearest."""
    nearest = torch.cdist(images.flatten(1).double(), flat).topk(5, largest=False)
    return digits.train_y[nearest.indices].mode(dim=1).values, nearest.values[:, 0]


source, goal = 5, 6
is_source, is_goal = digits.train_y == source, digits.train_y == goal
fives = held_out[digits.test_y == source]
with torch.no_grad():
    start = glow.encode(fives + 0.5)
code_step = codes[is_goal].mean(0) - codes[is_source].mean(0)
pixel_step = levels[is_goal].mean(0) - levels[is_source].mean(0)
amounts = (0.0, 0.5, 0.75, 1.0, 1.5)
moved = [as_levels(start + amount * code_step) for amount in amounts]  # (30, 8, 8) each
shifted = [(fives + amount * pixel_step).clamp(0, 16)[:, 0] for amount in amounts]
print("step                      " + "".join(f"{amount:8.2f}" for amount in amounts))
for name, images in (("codes", moved), ("pixels", shifted)):
    verdicts = [judged(one) for one in images]
    print(f"{name:6s} judged a 6         " + "".join(f"{(kind == goal).double().mean():8.0%}" for kind, _ in verdicts))
    print("       nearest real digit  " + "".join(f"{distance.mean():8.1f}" for _, distance in verdicts))

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
for ax, images, title in ((axes[0], moved, "Codes moved from 5 to 6"), (axes[1], shifted, "Pixels moved")):
    plots.image_grid(ax, torch.cat([one[:8] for one in images]), columns=8, vmin=0, vmax=16)
    ax.set_title(title)
plots.show(fig, alt=(
    "Eight held-out fives, row by row moved further towards six: in most columns of the left panel strokes "
    "bend and close; on the right a faint six is laid over the five"
))

# %% [markdown]
# *What you see:* both convince the judge in the end. At half a step the codes are slightly ahead (20 % against 10 %), at a
# full step the pixels (100 % against 77 %): he compares pixels, and has been given the difference of the means. What
# differs is the second half of the way. At three quarters the mixed pixels are 25 from every real digit, the decoded codes
# 22 (the fives themselves: 17); at one half there is no difference. In most columns strokes bend and close; the first goes
# through a grey blob. So the latent space is a somewhat better place for straight lines, and no magic: with 1500 training
# digits of 64 pixels the mean pictures already say most of what a direction can say.
#
# ### Recorded: longer, with error bars, and on photographs
#
# One seed and a quarter of a minute are little. Here is what a longer run found, with two scales and eight steps a scale
# on the digits, and three scales on 16 × 16 patches of two photographs in colour. It was **not** computed here.

# %%
record = reproduce.load("glow")
print(record.provenance(), "\n")
print(f"{'bits a pixel and colour':44s} held-out           training")
for row in record.tables["bits_per_dim"]:
    error = f" ± {row['test_se']:.3f}" if "test_se" in row else "        "
    print(f"{row['data']:14s} {row['model']:28s} {row['test']:7.3f}{error}   {row['train']:7.3f}")
print(f"\n{'judged by five nearest training digits':40s} unanimous   distance   class reached")
for row in record.tables["judged_by_neighbours"]:
    reached = f"{row['reached']:8.0%}" if "reached" in row else ""
    print(f"{row['images']:40s} {row['unanimous']:9.0%} {row['distance']:10.1f} {reached}")

# %%
panels = {"digits: samples at temperature 1.0": 8, "digits: interpolation": 7, "digits: 3 to 8": 4,
          "photo patches: held out": 5, "photo patches: samples at temperature 1.0": 5, "photo patches: interpolation": 7}
fig, axes = plt.subplots(2, 3, figsize=(9.6, 5.6))
for ax, (name, columns) in zip(axes.flat, panels.items(), strict=True):
    pictures = record.pictures[name].flatten(0, -4)[: 5 * columns]  # (n, C, H, W)
    kind = dict(vmax=16) if pictures.shape[1] == 1 else dict(vmax=255)
    pictures = pictures[:, 0] if pictures.shape[1] == 1 else pictures.movedim(1, -1)
    plots.image_grid(ax, pictures, columns=columns, vmin=0, **kind)
    ax.set_title(name.removesuffix(" at temperature 1.0").capitalize())
plots.show(fig, alt=(
    "Recorded: clear samples of digits, interpolations between digits, threes moved to eights; patches of two "
    "photographs, samples of patches with plausible colours and textures, interpolations between patches"
))

# %% [markdown]
# *What you see:* (in the upper right panel each row is one held-out 3, moved by 0, ½, 1 and 1½ steps) with more layers and more steps the lead over independent pixels grows (2.17 bits, after 2.29 in the short
# run, against 2.44), and most samples can be read. The neighbours confirm what the short run showed: pixel arithmetic
# *reaches* the class more often, the images of the flow stay closer to real digits. Of the half-way pictures between two
# held-out digits, five neighbours agree on 61 % for codes on the great circle, and on 30 % for pixels. On patches the flow
# needs 2.7 bits where a Gaussian with every correlation needs 4.6: colours and textures are right, objects there are none.
# Held-out patches are *easier* than training patches: they come from the right edge of the photographs, where there is
# more plain background. The faces that made Glow famous have $256 \times 256 \times 3$ numbers, 256 times as many as our
# patches.
#
# Would training longer help? The record has one seed that went on.

# %%
for row in record.tables["digits_against_steps"][2::2]:
    print(f"{row['step']:5d} steps   training {row['train']:.2f}   held-out mean {row['test']:.2f}   "
          f"median {row['test_median']:.2f}")

# %% [markdown]
# The training bits keep falling; the held-out mean turns upwards, the median hardly does: a few digits become all but
# impossible for the model. That is over-fitting, with 1497 digits.
#
# ## 8 · RevNet: depth without memory
#
# Backpropagation keeps the activations of every layer, so memory grows with depth. A coupling layer knows a way out: what
# can be inverted need not be stored. A *RevNet* block couples both halves in turn,
# $$y_1 = x_1 + F(x_2), \qquad y_2 = x_2 + G(y_1),$$
# with any networks $F, G$, and is inverted by subtraction.
#
# > **Theorem F8.** The block is a bijection with the inverse
# > $$x_2 = y_2 - G(y_1), \qquad x_1 = y_1 - F(x_2).$$
# > A network of such blocks can recompute all its activations from its output during the backward pass. Its *activation*
# > memory does not depend on the depth; the price is one more evaluation of $F$ and $G$ in each block.
#
# <details><summary>Proof</summary>
#
# $y_1$ is known, so $G(y_1)$ can be computed and subtracted from $y_2$; that gives $x_2$, hence $F(x_2)$, hence $x_1$. In the
# backward pass the input of the last block is recomputed from its output, its gradients are taken, and its activations
# are dropped; then the block before it.
# </details>
#
# **The slide of the lecture series** prints the inverse with the two networks exchanged: $x_2 = y_2 - F(y_1)$,
# $x_1 = y_1 - G(x_2)$. We try both, and compare the gradients with those of plain backpropagation.

# %% tags=["nbval-check-output"]
def branch(width: int, generator: torch.Generator) -> nets.MLP:
    return nets.MLP([width, 64, width], activation=torch.tanh, generator=generator)


def blocks(depth: int, width: int = 16) -> list[reversible.ReversibleBlock]:
    generator = torch.Generator().manual_seed(10)
    return [reversible.ReversibleBlock(branch(width, generator), branch(width, generator)) for _ in range(depth)]


block, x = blocks(1)[0], torch.randn(8, 32, generator=torch.Generator().manual_seed(11))
x_1, x_2 = x.chunk(2, dim=1)
with torch.no_grad():
    y_1, y_2 = block(x_1, x_2)
    back_1, back_2 = block.inverse(y_1, y_2)
    slide_2 = y_2 - block.f(y_1)
    slide_1 = y_1 - block.g(slide_2)
print(f"library's inverse: error < 1e-14: {max((back_1 - x_1).abs().max(), (back_2 - x_2).abs().max()) < 1e-14}")
print(f"slide's inverse:   error {max((slide_1 - x_1).abs().max(), (slide_2 - x_2).abs().max()):.3f}")
gradients = []
for save in (True, False):
    deep = reversible.ReversibleSequence(blocks(24), save_activations=save)
    deep(x).square().sum().backward()
    gradients.append(torch.cat([parameter.grad.flatten() for parameter in deep.parameters()]))
print(f"24 blocks: largest difference of a gradient < 1e-12: {(gradients[0] - gradients[1]).abs().max() < 1e-12}")

# %% [markdown]
# **Predict first:** each block has two networks with a hidden layer of 64. How does what is kept for the backward pass grow
# from 4 blocks to 64? And by how much does the recomputation slow a step?

# %%
depths = [4, 8, 16, 32, 64]
batch = torch.randn(256, 256, generator=torch.Generator().manual_seed(12), dtype=torch.float32)
kept = {"plain backpropagation": [], "recomputed": []}
seconds = {name: [] for name in kept}
for depth in depths:
    for name in kept:
        deep = reversible.ReversibleSequence(blocks(depth, 128)).float()
        deep.save_activations = name == "plain backpropagation"
        deep(batch).square().mean().backward()  # once to warm up
        runs = []
        for _ in range(5):
            start = time.process_time()
            deep(batch).square().mean().backward()
            runs.append(time.process_time() - start)
        seconds[name].append(min(runs))
        kept[name].append(reversible.saved_activation_bytes(deep, batch) / 1e6)
print(f"64 blocks: {kept['plain backpropagation'][-1]:.0f} MB against {kept['recomputed'][-1]:.1f} MB, "
      f"at {seconds['recomputed'][-1] / seconds['plain backpropagation'][-1]:.2f} times the time")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.0))
for (name, values), color in zip(kept.items(), plots.PALETTE, strict=False):
    plots.curve(axes[0], depths, values, marker="o", color=color, label=name)
    plots.curve(axes[1], depths, torch.tensor(seconds[name]) * 1e3, marker="o", color=color, label=name)
axes[0].set(xlabel="blocks", ylabel="kept for the backward pass (MB)", title="Memory")
axes[1].set(xlabel="blocks", ylabel="milliseconds", title="One step")
axes[0].legend()
plots.show(fig, alt=(
    "Memory kept for the backward pass: a rising line for plain backpropagation, flat when recomputed; time "
    "per step rises for both, somewhat more when recomputed"
))

# %% [markdown]
# *What you see:* plain backpropagation keeps 16 times as much for 16 times the blocks (1.6 to 25 MB); recomputed, it is half a
# megabyte at any depth: only the output. A step takes about 1.4 times as long. Counting evaluations (one forward, about
# two backward, one more) one expects 4/3; the rest is bookkeeping, which weighs on networks as small as these. Layers
# that are not invertible (pooling, strides) still have to store their input.
#
# One thing does not come for free: recomputing from a *rounded* output. The library keeps the two streams $x_1, x_2$ in
# float64 (memory that does not grow) and the networks, where the work is, in float32. Is that necessary?

# %%
def gradient_of(net: reversible.ReversibleSequence, x: torch.Tensor) -> torch.Tensor:
    net(x).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters()]).double()


for size in (1.0, 2.0):
    exact = reversible.ReversibleSequence(blocks(64, 128), save_activations=True)  # float64, stored
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.mul_(size)
    truth, errors = gradient_of(exact, batch.double()), []
    for kind in (dict(save_activations=True), dict(), dict(stream_dtype=torch.float32)):
        net = reversible.ReversibleSequence(copy.deepcopy(exact.blocks).float(), **kind)
        net.zero_grad()
        errors.append((gradient_of(net, batch) - truth).norm() / truth.norm())
    print(f"64 blocks, weights x {size:.0f}: error of the gradient, stored {errors[0]:.1e}   recomputed {errors[1]:.1e}   "
          f"recomputed from float32 streams {errors[2]:.1e}")

# %% [markdown]
# At this depth float32 streams cost a factor of two to four in accuracy, float64 streams nothing. The deeper the network and
# the larger its weights, the more: what is lost is multiplied from block to block.
#
# ### Exercise 6 · Undo a block
#
# Here $F(v) = \tanh(v A)$ and $G(v) = \tanh(v B)$.

# %% exercise="revnet_inverse"
def revnet_inverse(
    y1: torch.Tensor, y2: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The x1, x2 with y1 = x1 + tanh(x2 a) and y2 = x2 + tanh(y1 b): (B, k), (B, k), (k, k), (k, k)."""
    ### BEGIN SOLUTION
    x2 = y2 - torch.tanh(y1 @ b)
    x1 = y1 - torch.tanh(x2 @ a)
    return x1, x2
    ### END SOLUTION

# %% check="revnet_inverse" points=1
check.revnet_inverse(revnet_inverse)
### BEGIN HIDDEN TESTS
check.hidden("revnet_inverse", revnet_inverse, seed=1256)
print("hidden tests ran to the end: revnet_inverse d0f2")
### END HIDDEN TESTS

# %% [markdown]
# ## 9 · i-RevNet: a classifier that forgets nothing
#
# It was a common belief that deep networks classify well *because* they discard, layer by layer, what does not matter for
# the class. An *i-RevNet* (Jacobsen et al. 2018) tests it: reversible blocks and squeezes only, a bijection right up to
# the final projection onto the classes.
#
# > **Finding F9.** Such a classifier recovers its inputs from its features, at an accuracy near that of a plain residual
# > network of equal size. Discarding information is not what makes a classifier work.

# %%
pixels = digits.train_x.reshape(-1, 1, 8, 8) / 16
test_pixels = digits.test_x.reshape(-1, 1, 8, 8) / 16


def classifier(kind: type, seed: int) -> torch.nn.Module:
    """Train one on the digits."""
    net = kind((1, 8, 8), 10, blocks=(2, 2), generator=torch.Generator().manual_seed(seed)).float()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pixels), (32,), generator=generator)
        return torch.nn.functional.cross_entropy(net(pixels[rows]), digits.train_y[rows])

    fit(loss, net.parameters(), steps=200, lr=5e-3, lr_decay_from=0.5, seed=seed, progress=False)
    return net


kinds = {"i-RevNet": reversible.IRevNet, "residual net": reversible.ResidualNet}
classifiers = {name: [classifier(kind, seed) for seed in range(3)] for name, kind in kinds.items()}
for name, members in classifiers.items():
    with torch.no_grad():
        right = torch.stack([(net(test_pixels).argmax(1) == digits.test_y).double().mean() for net in members])
    size = sum(parameter.numel() for parameter in members[0].parameters())
    print(f"{name:13s} {size:6d} parameters   held-out accuracy {right.mean():.1%} ± {right.std() / 3**0.5:.1%} (3 seeds)")

# %%
i_revnet = copy.deepcopy(classifiers["i-RevNet"][0]).double()  # in float64 nothing is lost to rounding
with torch.no_grad():
    features = i_revnet.features(test_pixels.double())
    recovered = i_revnet.inverse(features)
error = (recovered - test_pixels).abs().max()
print(f"features of a picture: {features.shape[1]} numbers, as many as pixels; largest error of a recovered pixel {error:.0e}")
fig, axes = plt.subplots(1, 2, figsize=(9.6, 1.7))
pictures = (test_pixels[:20, 0], recovered[:20, 0])
for ax, images, title in zip(axes, pictures, ("Held-out digits", "Recovered from their features"), strict=True):
    plots.image_grid(ax, images, columns=10, vmin=0, vmax=1)
    ax.set_title(title)
plots.show(fig, alt="Twenty held-out digits and, identical, their reconstructions from the features before the last layer")

# %% [markdown]
# *What you see:* the two accuracies differ by about one standard error of their difference (and with 300 held-out digits,
# one classifier's own sampling error is a percentage point). The bijective network keeps *every* digit, to about 1e-14 in
# float64; the right panel is computed from what the last layer sees. So on these digits throwing information away is not
# needed for classifying; Jacobsen et al. showed the same on ImageNet. It is still possible that what matters for the class
# is *arranged* more and more simply from layer to layer: a bijection may rearrange.

# %% [markdown]
# ## 10 · A flow is a VAE
#
# A flow's encoder is a function, a VAE's encoder draws noise. How far apart are they? Let the noise go to zero, in the
# right shape.
#
# > **Theorem F11.** Let $g$ be three times continuously differentiable with bounded derivatives. Take the VAE with encoder $q(z \mid x) = \mathcal N(f(x),\, s^2 J J^\top)$, $J = J_f(x)$, decoder
# > $p(x \mid z) = \mathcal N(g(z),\, s^2 I)$ and prior $p_0$. As $s \to 0$
# > $$\mathbb E_q\left[\log p(x \mid z) - \log q(z \mid x)\right] = \log|\det J_f(x)| + O(s^2),$$
# > so that its ELBO tends to $\log p_0(f(x)) + \log|\det J_f(x)|$, the exact log-likelihood of the flow.
#
# <details><summary>Proof</summary>
#
# Write $z = f(x) + sJ\varepsilon$ with $\varepsilon \sim \mathcal N(0, I)$. Then $\log q = -\frac12\|\varepsilon\|^2 - m \log s - \log|\det J| + c$. By Taylor
# $g(f(x) + sJ\varepsilon) = x + s J_g J \varepsilon + s^2 r = x + s\varepsilon + s^2 r$, since $J_g J = I$; $r$ is quadratic in $\varepsilon$ up to $O(s)$.
# So $\log p(x \mid z) = -\frac12\|\varepsilon + s r\|^2 - m \log s + c$, and the difference is $\log|\det J| - s\,\varepsilon^\top r + O(s^2)$. The
# leading part of $\varepsilon^\top r$ is odd in $\varepsilon$ and has mean zero; what remains is $O(s^2)$.
# </details>
#
# It is the shape of the noise that does it: pushed through $g$, it must become the decoder's round noise. The control
# uses round noise in the encoder, too.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(13)
pair = flows.Compose([
    flows.AffineCoupling(flows.half_mask(2, first=k == 0), nets.MLP([1, 16, 2], activation=torch.tanh, generator=generator))
    for k in (0, 1)
])
with torch.no_grad():
    for parameter in pair.parameters():
        parameter.mul_(1.3)
x = torch.tensor([0.4, -0.7])
nodes, weights = numerics.gauss_hermite(24, num_dims=2)
with torch.no_grad():
    z, log_det = pair.inverse(x)
J_g = jacobian(lambda point: pair(point)[0], z)
print(f"log|det J_f(x)| = {log_det:.6f}   (2 - |J_g|^2) / 2 - log|det J_f(x)| = "
      f"{(2 - J_g.square().sum()) / 2 - log_det:+.3f}")
for s in (0.1, 0.01, 0.001):
    shaped = flows.likelihood_term(pair, x, s, nodes, weights).item() - log_det.item()
    with torch.no_grad():
        miss = (x - pair(z + s * nodes)[0]) / s  # round noise in the encoder
    round_ = (weights @ (0.5 * nodes.square() - 0.5 * miss.square()).sum(1)).item() - log_det.item()
    print(f"s = {s:5.3f}   shaped noise: bias {shaped:+.1e}    round noise: bias {round_:+.3f}")

# %% [markdown]
# The bias falls by a hundred when $s$ falls by ten. With round noise it tends to $\frac12\left(m - \|J_g\|_F^2\right) - \log|\det J_f|$
# instead: that VAE does not become the flow. In the language of lecture 01: as $s \to 0$ the posterior gap of the flow's encoder
# tends to zero, its bound becomes tight. What it pays is that $z$ has as many dimensions as $x$. (Nielsen et al. 2020, *SurVAE
# flows*, build flows, VAEs and what lies between from this view.)
#
# ## Equation ↔ function
#
# | equation | function |
# |---|---|
# | $\log p(x) = \log p_0(f(x)) + \log\lvert\det J_f(x)\rvert$ (F1) | `flows.Flow.log_prob` |
# | $g_K \circ \dots \circ g_1$, $f$ for $g$ (F1) | `flows.Compose`, `flows.Inverse` |
# | $\mathrm{KL}(p \Vert \pi)$ from samples (F2) | `flows.reverse_kl` |
# | $x_b = \sigma(z_a) z_b + \mu(z_a)$ (F3) | `flows.AffineCoupling`, `flows.AdditiveCoupling`, `flows.half_mask` |
# | $z + u\tanh(w^\top z + b)$, $z + \beta h (z - z_0)$ (F4) | `flows.planar`, `flows.radial`, `flows.constrained_u` |
# | $z + QR\tanh(\tilde R Q^\top z + b)$ (F4) | `flows.sylvester`, `flows.SylvesterFlow` |
# | masked networks (F6) | `nets.MaskedMLP` |
# | $z_j = (x_j - \hat\mu_j) / \hat\sigma_j$ (F5) | `flows.MaskedAutoregressiveFlow`, `flows.InverseAutoregressiveFlow` |
# | $\sigma = 1/\hat\sigma$, $\mu = -\hat\mu/\hat\sigma$ (F5) | `flows.iaf_parameters` |
# | the sequential direction (F5) | `flows.solve_autoregressive`, `flows.solve_sequentially` |
# | $W = PL(U + \mathrm{diag}\,s)$, actnorm (F7) | `flows.InvertibleConv1x1`, `flows.ActNorm`, `flows.initialise` |
# | Glow (F10) | `flows.Glow`, `flows.glow_transform`, `nets.squeeze` |
# | $y_1 = x_1 + F(x_2)$, $y_2 = x_2 + G(y_1)$ (F8) | `reversible.ReversibleBlock`, `reversible.ReversibleSequence` |
# | a bijective classifier (F9) | `reversible.IRevNet` |
# | the flow as a VAE (F11) | `flows.likelihood_term` |
#
# ## Summary
#
# - An invertible map turns noise into a density: log-density of the noise plus the log of how much the map shrinks volume.
#   The absolute value belongs around the determinant.
# - Maximum likelihood minimises the forward KL, equally the KL between encoded data and base. The reverse KL needs samples
#   of the model, and the target up to a constant.
# - Affordable determinants come from structure: a triangle (coupling, autoregression), low rank (planar, Sylvester),
#   blocks (1 × 1 convolutions). Planar layers are bijections iff $w^\top u \ge -1$, radial ones iff $\beta \ge -\alpha$.
# - An autoregressive flow is fast in one direction and sequential in the other. MAF has the fast density, IAF the fast
#   sampling.
# - What can be inverted need not be stored (RevNet), and a classifier need not forget its input (i-RevNet).
# - A flow is a VAE with an exact, noiseless encoder. It pays with a latent space as large as the data.
#
# **Open question of the lecture, answered:** *what are the pros and cons of autoregressive models, flows and VAEs?* An exact
# likelihood: the first two. A latent code: the last two; a *small* one: VAEs only. Fast sampling: VAEs and coupling flows.
# Flexible conditionals for discrete data: autoregressive models; a flow first has to make the data continuous (lecture 04).
#
# ## References
#
# - D. J. Rezende, S. Mohamed. [Variational Inference with Normalizing Flows](https://arxiv.org/abs/1505.05770), 2015.
# - L. Dinh, D. Krueger, Y. Bengio. [NICE](https://arxiv.org/abs/1410.8516), 2015.
# - L. Dinh, J. Sohl-Dickstein, S. Bengio. [Density Estimation using Real NVP](https://arxiv.org/abs/1605.08803), 2017.
# - M. Germain, K. Gregor, I. Murray, H. Larochelle. [MADE](https://arxiv.org/abs/1502.03509), 2015.
# - D. P. Kingma et al. [Improving Variational Inference with Inverse Autoregressive Flow](https://arxiv.org/abs/1606.04934), 2016.
# - G. Papamakarios, T. Pavlakou, I. Murray. [Masked Autoregressive Flow for Density Estimation](https://arxiv.org/abs/1705.07057), 2017.
# - R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling. [Sylvester Normalizing Flows](https://arxiv.org/abs/1803.05649), 2018.
# - D. P. Kingma, P. Dhariwal. [Glow](https://arxiv.org/abs/1807.03039), 2018.
# - A. N. Gomez, M. Ren, R. Urtasun, R. B. Grosse. [The Reversible Residual Network](https://arxiv.org/abs/1707.04585), 2017.
# - J.-H. Jacobsen, A. Smeulders, E. Oyallon. [i-RevNet](https://arxiv.org/abs/1802.07088), 2018.
# - D. Nielsen et al. [SurVAE Flows](https://arxiv.org/abs/2007.02731), 2020.
# - G. Papamakarios et al. [Normalizing Flows for Probabilistic Modeling and Inference](https://arxiv.org/abs/1912.02762), 2021.

# %%
check.progress()
