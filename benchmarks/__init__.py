"""What spanflow costs, as ratios to a hand-written floor. Run with ``uv run python -m benchmarks``."""
