"""The decorators of the projection's inner loops.

They make no arrays and keep none: every array belongs to the caller. Without `_nrt=False` Numba counts references all
the same, with an atomic instruction for every array of every tuple that a call hands on, which is most of the time a
row takes. A function under it that does make an array is refused by the compiler.

A call also copies its tuples, 8 bytes for each of 250 fields. `inlined` is for the pieces of one loop: they become part
of their caller, and a row takes three fifths of the time.
"""

from numba import njit

compiled = njit(cache=True, _nrt=False)
inlined = njit(cache=True, _nrt=False, forceinline=True)
