"""Failback brings failed-over machines home: continuous replication back on premises, points in time, failback.

The layout is the architecture; see docs/architecture.md. Arrows go downwards only:
``cli | lab`` > roles > ``journal | transport | fabric`` > ``block | protocol`` > ``protection`` > ``model`` >
``runtime`` > ``errors``.
"""

__version__ = "0.1.0"
