"""The tasks that come with opdbench: one file per family, and under `models/` the small models that they ship."""
