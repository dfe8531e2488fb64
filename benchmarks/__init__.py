"""Side-by-side speed benchmarks; not part of the installed package. See README.md in this folder."""
