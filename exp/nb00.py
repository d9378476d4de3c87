# INTERIM
__all__ = ['equal', 'test', 'test_eq', 'test_fail', 'test_ne']
from collections.abc import Callable
from typing import Any


def test(a: Any, b: Any, cmp: Callable[[Any, Any], bool], cname: str | None = None) -> None:
    "Assert that `cmp(a, b)` is true; raises `AssertionError` showing both values, called `cname` in the message."
    assert cmp(a, b), f"{cname or getattr(cmp, '__name__', repr(cmp))}:\n{a}\n{b}"


def equal(a: Any, b: Any) -> bool:
    """Are `a` and `b` the same value? Tensors and arrays need equal shapes and equal elements; containers are searched.

    A list equals a tuple with equal items. `nan` equals nothing, itself included.
    """
    if hasattr(a, "shape") and hasattr(b, "shape"):
        return tuple(a.shape) == tuple(b.shape) and bool((a == b).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    same = a == b
    return bool(same.all() if hasattr(same, "all") else same)


def test_eq(a: Any, b: Any) -> None:
    "Assert that `a` and `b` are equal in the sense of `equal`; raises `AssertionError` showing both."
    test(a, b, equal, "not equal")


def test_ne(a: Any, b: Any) -> None:
    "Assert that `a` and `b` differ in the sense of `equal`; raises `AssertionError` showing both."
    test(a, b, lambda a, b: not equal(a, b), "equal, but should differ")


def test_fail(f: Callable, *args: Any, contains: str = "", exc: type[BaseException] = Exception, **kwargs: Any) -> None:
    """Assert that `f(*args, **kwargs)` raises `exc` with `contains` in its message.

    Another kind of exception passes through as it is; no exception, or another message, is an `AssertionError`.
    """
    try:
        f(*args, **kwargs)
    except exc as e:
        assert contains in str(e), f"expected an error containing {contains!r}, got {type(e).__name__}: {e}"
        return
    raise AssertionError(f"expected {exc.__name__}{f' containing {contains!r}' if contains else ''}, but nothing was raised")
