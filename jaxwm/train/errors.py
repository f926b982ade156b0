"""Errors of runs: what a person can act on, apart from bugs."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why and what to do."""


class CheckpointError(RunError):
    """No checkpoint could be written or read."""


class TemplateError(RunError, ValueError):
    """A sound checkpoint does not fit the state it is read into."""


class ConfigError(RunError, ValueError):
    """A run's configuration is unknown, unreadable or does not fit."""


class RunLockedError(RunError):
    """Another process owns the run directory."""
