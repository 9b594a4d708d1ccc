"""The colour changes of one view as one compiled kernel, bit-identical with PIL.

The module needs numba (``pip install gersp_mm[fast]``). Pixels are processed in tiles that stay in
the processor's first cache, split into channels so that every loop is vectorised; only contrast,
which depends on the mean of the whole image, needs a second pass.

The arithmetic repeats PIL's, for instance its truncation in blends and its HSV of 8 bits, because
MoCo and the released code train with this augmentation.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gersp_mm.augmentation.draw import BRIGHTNESS, CONTRAST, HUE, SATURATION

TILE = 512  # pixels
GRAY = 4  # code of greyscale among the operations, after the four of the jitter

_compiled = njit(cache=True, nogil=True, error_model="numpy")
f32 = np.float32


@_compiled
def _luma(r, g, b):
    """Return ITU-R 601-2 luma in PIL's fixed-point weights; sums stay below 2^24, so are exact."""
    return np.floor((r * f32(19595) + g * f32(38470) + b * f32(7471) + f32(32768)) / f32(65536))


@_compiled
def _blend(degenerate, value, factor):
    return np.floor(min(max(degenerate + factor * (value - degenerate), f32(0)), f32(255)))


@_compiled
def _brightness(tile, n, factor):
    for c in range(3):
        for i in range(n):
            tile[c, i] = _blend(f32(0), tile[c, i], factor)


@_compiled
def _contrast(tile, n, factor, mean):
    for c in range(3):
        for i in range(n):
            tile[c, i] = _blend(mean, tile[c, i], factor)


@_compiled
def _saturation(tile, n, factor):
    for i in range(n):
        gray = _luma(tile[0, i], tile[1, i], tile[2, i])
        tile[0, i] = _blend(gray, tile[0, i], factor)
        tile[1, i] = _blend(gray, tile[1, i], factor)
        tile[2, i] = _blend(gray, tile[2, i], factor)


@_compiled
def _grayscale(tile, n):
    for i in range(n):
        gray = _luma(tile[0, i], tile[1, i], tile[2, i])
        tile[0, i] = gray
        tile[1, i] = gray
        tile[2, i] = gray


@_compiled
def _hue(tile, n, shift):
    """Rotate the hue by ``shift`` of 256 steps, through 8-bit HSV and back."""
    for i in range(n):
        r, g, b = tile[0, i], tile[1, i], tile[2, i]
        high, low = max(max(r, g), b), min(min(r, g), b)
        chroma = high - low
        divisor = chroma if chroma > f32(0) else f32(1)
        rc, gc, bc = (high - r) / divisor, (high - g) / divisor, (high - b) / divisor
        green = f32(2.0 + np.float64(rc) - np.float64(bc))
        blue = f32(4.0 + np.float64(gc) - np.float64(rc))
        sector = bc - gc if r == high else green if g == high else blue
        turn = np.float64(sector) / 6.0 + 1.0
        turn = np.float64(f32(turn - np.floor(turn)))
        saturation = chroma / (high if high > f32(0) else f32(1))
        hue8 = np.floor(turn * 255.0)
        hue8 = 0.0 if chroma == f32(0) else hue8
        saturation8 = np.floor(np.float64(saturation) * 255.0)
        hue8 = hue8 + shift
        hue8 = hue8 - 256.0 if hue8 >= 256.0 else hue8

        sixth = hue8 * 6.0 / 255.0
        whole = np.floor(sixth)
        rest = np.float64(f32(sixth - whole))
        strength = np.float64(f32(saturation8 / 255.0))
        value = np.float64(high)
        p = f32(np.floor(value * (1.0 - strength) + 0.5))
        q = f32(np.floor(value * (1.0 - strength * rest) + 0.5))
        t = f32(np.floor(value * (1.0 - strength * (1.0 - rest)) + 0.5))
        k = whole if whole < 6.0 else 0.0
        tile[0, i] = high if (k == 0.0 or k == 5.0) else q if k == 1.0 else t if k == 4.0 else p
        tile[1, i] = high if (k == 1.0 or k == 2.0) else t if k == 0.0 else q if k == 3.0 else p
        tile[2, i] = high if (k == 3.0 or k == 4.0) else t if k == 2.0 else q if k == 5.0 else p


@_compiled
def _run(tile, n, codes, first, last, factors, mean):
    for slot in range(first, last):
        code = codes[slot]
        if code == BRIGHTNESS:
            _brightness(tile, n, factors[BRIGHTNESS])
        elif code == CONTRAST:
            _contrast(tile, n, factors[CONTRAST], mean)
        elif code == SATURATION:
            _saturation(tile, n, factors[SATURATION])
        elif code == HUE:
            _hue(tile, n, np.float64(np.int64(factors[HUE] * 255.0) % 256))
        elif code == GRAY:
            _grayscale(tile, n)


# The index into a slice starts at zero, so that numba drops the check for negative indices, which
# would prevent the vectorisation of these loops.
@_compiled
def _load(part, n, tile):
    for i in range(n):
        tile[0, i] = part[3 * i]
        tile[1, i] = part[3 * i + 1]
        tile[2, i] = part[3 * i + 2]


@_compiled
def _store(tile, n, part):
    for i in range(n):
        part[3 * i] = np.uint8(tile[0, i])
        part[3 * i + 1] = np.uint8(tile[1, i])
        part[3 * i + 2] = np.uint8(tile[2, i])


@_compiled
def _turn_round(tile, n):
    for c in range(3):
        for i in range(n // 2):
            tile[c, i], tile[c, n - 1 - i] = tile[c, n - 1 - i], tile[c, i]


@_compiled
def recolour(pixels, draws, out):
    """Apply grayscale, jitter and flips of one draw.

    Args:
        pixels: H×W×3 uint8 RGB, contiguous; overwritten when there is a contrast operation.
        draws: One record of :data:`gersp_mm.augmentation.draw.VIEW_DRAW` as an array, which numba
            recognises in a fifth of the time that it takes for a record alone.
        out: H×W×3 uint8, contiguous, not ``pixels``.
    """
    draw = draws[0]
    factors, hflip, vflip = draw.factors, draw.hflip, draw.vflip
    height, width = pixels.shape[0], pixels.shape[1]
    codes = np.empty(6, np.int64)
    codes[0] = GRAY if draw.grayscale == 1 else -1
    codes[1:5] = draw.order
    codes[5] = GRAY if draw.grayscale == 2 else -1
    contrast = 0
    for slot in range(6):
        if codes[slot] == CONTRAST:
            contrast = slot

    source, target = pixels.reshape(-1), out.reshape(-1)
    tile = np.empty((3, TILE), np.float32)
    mean = f32(0)
    if contrast:
        total = np.int64(0)
        for start in range(0, height * width, TILE):
            n = min(TILE, height * width - start)
            part = source[3 * start : 3 * (start + n)]
            _load(part, n, tile)
            _run(tile, n, codes, 0, contrast, factors, mean)
            subtotal = np.int64(0)
            for i in range(n):
                subtotal += np.int64(_luma(tile[0, i], tile[1, i], tile[2, i]))
            total += subtotal
            if contrast > 1 or codes[0] == GRAY:
                _store(tile, n, part)
        mean = f32(np.floor(total / (height * width) + 0.5))
    for row in range(height):
        line = height - 1 - row if vflip else row
        for column in range(0, width, TILE):
            n = min(TILE, width - column)
            start = row * width + column
            _load(source[3 * start : 3 * (start + n)], n, tile)
            _run(tile, n, codes, contrast, 6, factors, mean)
            start = line * width + column
            if hflip:
                _turn_round(tile, n)
                start = line * width + width - column - n
            _store(tile, n, target[3 * start : 3 * (start + n)])
