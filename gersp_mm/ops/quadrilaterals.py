"""The area that two convex quadrilaterals share.

The arithmetic follows mmcv's step by step in the precision of the input, because its result for
edges that lie on one line depends on rounding: the same steps give the same numbers there too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 15  # number of pairs that fit into the cache of a CPU core
SAME = 1e-8  # squared distance up to which two points are the same
PARALLEL = 1e-14  # two edges with a smaller cross product have no intersection


def _inside(px: Tensor, py: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Return whether points lie in a rectangle, by their projections onto two of its sides."""
    ax, ay = px - x[0], py - y[0]
    along = ax * dx[0] + ay * dy[0]
    across = -(ax * dx[3] + ay * dy[3])
    length = dx[0] * dx[0] + dy[0] * dy[0]
    width = dx[3] * dx[3] + dy[3] * dy[3]
    return (along >= 0) & (across >= 0) & (along <= length) & (across <= width)


def shared_area(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """Return the areas of the intersections of pairs, of shape (n,).

    Args:
        x1: Columns of the corners of the first quadrilaterals in order, of shape (4, n).
        y1: Rows of these corners, of shape (4, n).
        x2: Columns of the corners of the second quadrilaterals, of shape (4, n).
        y2: Rows of these corners, of shape (4, n).
    """
    parts = zip(*(t.split(PAIRS_AT_ONCE, dim=1) for t in (x1, y1, x2, y2)))
    areas = [_shared_area(*part) for part in parts]
    return torch.cat(areas) if areas else x1.new_zeros(0)


def _shared_area(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    dx1, dy1, dx2, dy2 = (t.roll(-1, 0) - t for t in (x1, y1, x2, y2))
    # Where edge i of the first meets edge j of the second, at shares t1 and t2 of their lengths.
    det = dx2 * dy1[:, None] - dx1[:, None] * dy2
    ox, oy = x2 - x1[:, None], y2 - y1[:, None]
    t1 = (dx2 * oy - ox * dy2) / det
    t2 = (dx1[:, None] * oy - ox * dy1[:, None]) / det
    meets = (det.abs() > PARALLEL) & (t1 >= 0) & (t1 <= 1) & (t2 >= 0) & (t2 <= 1)
    cut_x, cut_y = x1[:, None] + dx1[:, None] * t1, y1[:, None] + dy1[:, None] * t1
    px = torch.cat([cut_x.flatten(0, 1), x1, x2])
    py = torch.cat([cut_y.flatten(0, 1), y1, y2])
    valid = torch.cat([
        meets.flatten(0, 1), _inside(x1, y1, x2, y2, dx2, dy2), _inside(x2, y2, x1, y1, dx1, dy1)
    ])  # fmt: skip
    valid &= valid.sum(0) > 2
    pair, point = valid.t().nonzero(as_tuple=True)
    areas = x1.new_zeros(x1.shape[1])
    if len(pair):
        pairs, counts = pair.unique_consecutive(return_counts=True)
        place = torch.arange(len(pair), device=pair.device)
        place -= (counts.cumsum(0) - counts).repeat_interleave(counts)
        column = torch.arange(len(pairs), device=pair.device).repeat_interleave(counts)
        x, y = (x1.new_full((int(counts.max()), len(pairs)), math.inf) for _ in range(2))
        x[place, column], y[place, column] = px[point, pair], py[point, pair]
        areas[pairs] = _hull_areas(x, y, counts)
    return areas


def _hull_areas(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Return the areas of convex hulls, by Graham's scan of all hulls at once.

    Args:
        x: Columns of the points, one hull in each column, of shape (k, n); infinite beyond the
            last point.
        y: Rows of the points, of shape (k, n).
        counts: Number of points of each hull, of shape (n,), at least 3.
    """
    # Sort around the lowest point (of several, the leftmost) by angle and then by distance.
    lowest = y.amin(0)
    leftmost = torch.where(y == lowest, x, math.inf).amin(0)
    x, y = x - leftmost, y - lowest
    held = torch.arange(len(x), device=x.device)[:, None] < counts
    distance = torch.where(held, x * x + y * y, math.inf)
    order = distance.argsort(dim=0, stable=True)
    x, y = x.gather(0, order), y.gather(0, order)
    # Rounding gives points on one line the same angle, and the nearest comes first.
    angle = (torch.atan2(y.double(), x.double()) * 1e9).round()
    order = torch.where(held, angle, math.inf).argsort(dim=0, stable=True)
    x, y = x.gather(0, order), y.gather(0, order)
    apart = held & (x * x + y * y > SAME)
    # The stack begins with the lowest point, at 0, and the first point at a distance from it.
    first = apart.int().argmax(0)
    hull_x, hull_y = torch.zeros_like(x), torch.zeros_like(y)
    hull_x[1], hull_y[1] = (t.gather(0, first[None])[0] for t in (x, y))
    height = torch.full_like(counts, 2)
    columns = torch.arange(len(counts), device=x.device)
    for number in range(2, len(x)):
        new = held[number] & (number > first)
        while True:
            top, below = height - 1, (height - 2).clamp(min=0)
            bx, by = hull_x[below, columns], hull_y[below, columns]
            tx, ty = hull_x[top, columns] - bx, hull_y[top, columns] - by
            pop = new & (height > 1) & ((x[number] - bx) * ty - tx * (y[number] - by) >= 0)
            if not pop.any():
                break
            height = height - pop.long()
        added, at = columns[new], height[new]
        hull_x[at, added], hull_y[at, added] = x[number, new], y[number, new]
        height = height + new.long()
    area = torch.zeros_like(lowest)
    for number in range(1, len(x) - 1):
        twice = hull_x[number] * hull_y[number + 1] - hull_x[number + 1] * hull_y[number]
        area = area + torch.where(number < height - 1, twice.abs(), 0)
    return torch.where(apart.any(0), area / 2, 0)
