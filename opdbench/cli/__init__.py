"""The command line: one module per verb, each with `add_arguments(parser)` and `execute(args) -> exit code`.

Nothing heavy is imported at the top of these modules, so that `--help` and `list` answer at once.
"""
