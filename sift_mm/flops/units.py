"""FLOPs as text."""

PREFIXES = dict(E=1e18, P=1e15, T=1e12, G=1e9, M=1e6, k=1e3)


def flops(number: float | None) -> str:
    """Return a number of FLOPs with the prefix of its size, '-' for None.

    >>> flops(1_234_000), flops(5.6e9), flops(0)
    ('1.234 M', '5.600 G', '0')
    """
    if number is None:
        return '-'
    for prefix, unit in PREFIXES.items():
        # A number that rounds up to 1000 gets the next prefix.
        if abs(number) >= 0.9999995 * unit:
            return f'{number / unit:,.3f} {prefix}'
    return f'{number:.3g}'
