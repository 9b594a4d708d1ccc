"""The area that two convex quadrilaterals share.

The arithmetic follows mmcv's step by step in the precision of the input, because its result for
edges that lie on one line depends on rounding: the same steps give the same numbers there too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 15  # what stays in the cache of a CPU core
PARALLEL = 1e-14  # two edges with a smaller cross product have no intersection


def _inside(px: Tensor, py: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Whether points lie in a rectangle, by their projections onto two of its sides."""
    ax, ay = px - x[0], py - y[0]
    along = ax * dx[0] + ay * dy[0]
    across = -(ax * dx[3] + ay * dy[3])
    length = dx[0] * dx[0] + dy[0] * dy[0]
    width = dx[3] * dx[3] + dy[3] * dy[3]
    return (along >= 0) & (across >= 0) & (along <= length) & (across <= width)


def shared_area(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """Return the areas of the intersections of pairs, of shape (n,).

    Args:
        x1: Corners of the first quadrilaterals in order, of shape (4, n).
        y1: Of shape (4, n).
        x2: Corners of the second ones.
        y2: Of shape (4, n).
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
    area = _polygon_areas(px[point, pair].double(), py[point, pair].double(), pair, x1.shape[1])
    return area.to(x1.dtype)


def _polygon_areas(x: Tensor, y: Tensor, polygon: Tensor, count: int) -> Tensor:
    """Return the areas of convex polygons whose corners come in no order.

    Args:
        x: Corners of all polygons, of shape (n,), in float64.
        y: Of shape (n,).
        polygon: Number of the polygon of each corner, ascending.
        count: Number of polygons.
    """
    zeros = x.new_zeros(count)
    corners = torch.bincount(polygon, minlength=count)
    for_mean = corners.clamp(min=1)
    x = x - (zeros.index_add(0, polygon, x) / for_mean)[polygon]
    y = y - (zeros.index_add(0, polygon, y) / for_mean)[polygon]
    order = (torch.atan2(y, x) + polygon * (4 * math.pi)).argsort()
    x, y = x[order], y[order]
    following = torch.arange(1, len(x) + 1, device=x.device)
    ends = corners.cumsum(0)
    held = corners > 0
    following[ends[held] - 1] = (ends - corners)[held]
    twice = x * y[following] - x[following] * y
    return zeros.index_add(0, polygon, twice).abs() / 2
