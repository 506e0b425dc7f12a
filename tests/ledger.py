"""Tie a theorem's test to its row of the ledger, and make the test show that it can fail.

``@proves("C1", wrong={"drops_entropy": elbo_without_entropy})`` turns ``test_x(variant)`` into two tests:
the first passes the right implementation (``right=``) and must pass; every other one passes a named wrong
variant and must fail with an ``AssertionError``. ``tests/test_claims.py`` reads the registry.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

#: ledger id -> list of (test name, names of the wrong variants it rejects)
PROVEN: dict[str, list[tuple[str, tuple[str, ...]]]] = {}


def proves(
    row: str, *, right: Any, wrong: dict[str, Any]  # noqa: ANN401
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parametrise a test over the right implementation and its named wrong variants.

    The test takes the implementation as its first argument, which must be called ``variant``, and asserts.
    ``row`` is the ledger id, ``right`` the library's implementation, ``wrong`` maps names (one of them that
    of ``tests/claims.toml``) to wrong implementations, each of which must make the test fail by an assertion.
    """
    if not wrong:
        raise ValueError(f"{row}: a theorem's test needs at least one wrong variant that it rejects")

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        PROVEN.setdefault(row, []).append((f"{test.__module__}.{test.__name__}", tuple(wrong)))

        @functools.wraps(test)
        def run(variant: Any, expected: str, **fixtures: Any) -> None:  # noqa: ANN401
            if expected == "holds":
                test(variant, **fixtures)
                return
            try:
                test(variant, **fixtures)
            except AssertionError:
                return
            pytest.fail(f"{row}: the wrong variant '{expected}' passed this test, so the test proves nothing")

        signature = inspect.signature(test)
        extra = inspect.Parameter("expected", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), extra]
        )
        cases = [pytest.param(right, "holds", id=f"{row}-holds")]
        cases += [pytest.param(v, name, id=f"{row}-rejects-{name}") for name, v in wrong.items()]
        return pytest.mark.parametrize(("variant", "expected"), cases)(run)

    return decorate
