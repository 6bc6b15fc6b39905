"""Building blocks: quantum layer, projections, attention, feed-forward, Runge-Kutta block, patches."""
