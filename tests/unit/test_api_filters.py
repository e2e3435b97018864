"""``$filter``: understood whole or refused; half of a filter would list the wrong rows."""

import pytest

from failback.configuration_server.api.arm import filters
from failback.errors import ConfigurationError


def test_names_ignore_case_and_absent_is_empty() -> None:
    value = filters("jobStatus eq 'Failed' and ITEMNAME eq 'ledger'")
    assert (value("JobStatus"), value("itemName"), value("jobName")) == ("Failed", "ledger", "")


def test_a_value_is_only_a_value() -> None:
    assert filters("itemName eq 'x'' OR 1=1 --'")("itemName") == "x'' OR 1=1 --"


@pytest.mark.parametrize(
    "text",
    ["nonsense", "a eq", "a ne 'b'", "startTime ge '2026-01-01' and startTime le '2026-02-01'"],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        filters(text)
    assert caught.value.code == "InvalidFilter"
