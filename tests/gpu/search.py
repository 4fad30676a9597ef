"""The largest size that fits, in few trials. Pure, except for the trials."""


def largest_that_fits(trial, first, most):
    """The largest n >= 1 for which `trial(n)` is not None, as far as `most` trials tell; 0 if none was found.

    `trial(n)` is None where n does not fit, else how many more would, by what was measured at n. `first` is the guess to begin with.
    """
    fits, fails, size = 0, None, max(1, first)
    for count in range(most):
        more = trial(size)
        if more is None:
            fails = size
            # At first the guess was a little too large; then what it was made from is wrong.
            size = size - max(1, size // 12) if count == 0 else (fits + size) // 2
        else:
            fits = size
            size += max(1, more)
        if fails is not None:
            size = min(size, fails - 1)
            if size <= fits:
                break
        size = max(1, size)
    return fits
