"""The course's kernels beside their peers: ``make bench``, or ``python -m tests.benchmarks k7 --quick``.

One file a kernel, ``k<number>_<name>.py``, which defines ``BENCHMARK`` (see `harness.Benchmark`, and
``k7_fit_many.py`` as the pattern to copy). ``RESULTS.md`` is written from ``RESULTS.json``.
"""
