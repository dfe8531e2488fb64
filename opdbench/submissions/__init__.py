"""Strangers' methods: records, raw outputs and source in one bundle, and what is checked before they join a board.

A submission is a few files at fixed places of the repository: `submissions/<name>/manifest.json` and the method's file
beside it, and its runs below `results/`. A bundle is a zip of the same files. Nothing in it is executed.
"""
