"""How far an answer may be from the right one, at each number and beyond those of the dtype."""

import numpy as np


def near(y, want, bound):
    """Whether |y - want| <= bound, for each number.

    - `want`: in more digits than `y` has, infinite or NaN where `y` has to be.
    - `bound`: absolute. Below the normal numbers an error of the smallest of them passes; a
      number that may round to one beyond the dtype may be infinite.
    """
    info = np.finfo(y.dtype)
    with np.errstate(all="ignore"):
        close = abs(y - want) <= bound + info.tiny
        beyond = abs(want) + bound >= info.max * (1 - info.eps)
        return (
            close
            | (y == want)
            | (np.isnan(y) & np.isnan(want))
            | (beyond & np.isinf(y) & (np.sign(y) == np.sign(want)))
        )
