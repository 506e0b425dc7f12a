"""Deep generative models, one equation a function: the library of the course.

Letters
-------
``x``      data, shape ``(..., m)``; ``m`` its dimension
``z``      latent variable, shape ``(..., d)``; ``d`` its dimension
``B``      batch size; ``n`` number of data points; ``K`` number of importance samples
``R``, ``M``  number of independent estimates of a gradient, and of those averaged in one step
``E``      number of ensemble members, always the leading dimension of a stacked parameter or result
``theta``  generative (decoder) parameters; ``phi`` encoder parameters; ``lambda`` prior or flow parameters
``pi``     the data distribution; ``p`` the model; ``q`` the variational posterior
``beta``   weight of the KL term; ``sigma2`` the decoder's noise variance; ``log_var`` a log-variance

Units
-----
Nats, unless a name ends in ``bits_per_dim``. Log-densities and bounds are per sample: their shape is the
batch shape, all leading dimensions (``(B,)``, ``(K, B)``, ...); the caller averages.

Directions
----------
A flow's ``forward`` is the sampling direction (base to target, z to x), ``inverse`` the other one; each
returns ``(value, log_det)`` with the ``log_det`` of the map just applied.

Users write ``from dgm_course.bounds import elbo``: this module imports nothing, so that
``python -m dgm_course --help`` is instant. Modules are stacked in floors and import strictly downwards
(``tests/test_architecture.py`` lists them).
"""

__version__ = "0.1.0"
