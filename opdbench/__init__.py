"""opdbench: a benchmark and reproduction suite for on-policy distillation."""
