"""The static site: a page for every board, method, task, record and paper, made of files and needing no server.

Numbers come from two places and no third: the boards' `table.json`, which `opdbench board check` holds to the records,
and the records. Everything that a stranger wrote passes one place that escapes it (`pages.environment`).
"""
