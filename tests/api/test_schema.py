"""The API held against its own document: whatever is sent, it answers as it says, and never with an error of ours.

Requests are made from the document, some that fit it and some that do not, by whoever the route is for, with every
check of the library. Answers must have a documented status, media type, headers and body; what does not fit must be
refused, and without a credential nobody gets in. What fits may be refused as well, for a document cannot say which
cursors a list has given out, which plan is for sale, or that an instant is absurd; never as an error of ours.
"""

from functools import cache
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok

from api.app import create_app
from shared.config import Settings
from tests.api.conftest import Api

EXAMPLES = 10
REFUSALS_OF_WHAT_FITS = ["2xx", "400", "401", "402", "403", "404", "409", "415", "422", "429"]
CONFIG = {"checks": {"positive_data_acceptance": {"expected-statuses": REFUSALS_OF_WHAT_FITS}}}


@cache
def operations(app: Flask) -> dict[str, Any]:
    """The documented operations, by what the document calls them."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app, config=SchemathesisConfig.from_dict(CONFIG))
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    return {operation.label: operation for operation in found}


LABELS = sorted(operations(create_app(Settings(billing_sandbox=True))))


@pytest.mark.parametrize("label", LABELS)
def test_what_is_answered_is_documented(app: Flask, customer: Api, admin: Api, label: str) -> None:
    operation = operations(app)[label]
    asker = admin if "/admin/" in label else customer

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def holds(case: Any) -> None:
        case.call_and_validate(headers=dict(asker.headers))

    holds()
