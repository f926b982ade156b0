"""The verbs of the command line, one module per group.

Each verb is `verb(arguments) -> exit status`. Modules import jax only inside functions,
after `surroundings.prepare` has set what jax reads when it loads.
"""
