"""A short form of every campaign."""

from __future__ import annotations

import pytest

from tests.campaigns.__main__ import find_campaigns
from tests.campaigns.outcome import Deadline

CAMPAIGNS = find_campaigns()


@pytest.mark.slow
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_keeps_its_promise(name):
    campaign = CAMPAIGNS[name]
    outcome = campaign.run(campaign.SHORT, seed=0, deadline=Deadline())
    assert outcome.failures == []
    assert outcome.cases >= campaign.SHORT
