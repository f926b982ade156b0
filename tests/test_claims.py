"""Experiments against their claims; many minutes, run by `make claims`."""

import pytest

from jaxwm import catalogue
from jaxwm.commands import experiment

CLAIMING = [entry.name for entry in catalogue.ENTRIES if entry.claim is not None]


@pytest.mark.claims
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CLAIMING)
def test_the_claim_holds_on_every_seed(name):
    entry = catalogue.find(name)
    results = experiment.experiment(entry, [*range(entry.seeds)])
    verdicts = catalogue.judge(entry, results)
    assert all(verdict.holds for verdict in verdicts), "\n".join(
        verdict.text for verdict in verdicts
    )
