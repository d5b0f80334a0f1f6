"""Requests made up from the published description: right ones and wrong ones.

Whatever comes, the server answers in time, with a status that is documented for the operation and
a body that is as documented, and refuses what the description does not allow. Of the many paths
of an operation one is tried, since one endpoint serves them all.

The requests are the same in every run. `--hypothesis-seed=N` makes others, and then Hypothesis also
uses what stands in the source files of the modules that happen to be loaded.
"""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode, checks
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks as openapi_checks

from deployments.ingress import operations
from deployments.ingress.openapi import documented, openapi_document
from tests.deployments.ingress.scripted_server import KEY, Server, configuration, serving

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.ignored_auth,
    openapi_checks.unsupported_method,
]
NAMES = {operation.name: operation for operation in operations.OPERATIONS}
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
TIMEOUT_S = 60  # of an answer; far more than any takes


@pytest.fixture(scope="module")
def running(checkpoint: Path) -> Iterator[Server]:
    """The server, on a loop of its own: schemathesis calls it from ordinary functions."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = serving(checkpoint, configuration(max_body_bytes=1_000_000))
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    finally:
        end = context.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(end, loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def described(name: str) -> APIOperation[Any, Any, Any, Any]:
    """An operation as the document has it, by its first path."""
    operation = NAMES[name]
    path = documented(operation.paths[0])
    document = openapi_document(is_key_required=True)
    parameters = document["paths"][path][operation.method.lower()]["parameters"]
    # A header that is wrong by itself would hide what becomes of a wrong body.
    parameters[:] = [item for item in parameters if item["in"] == "path"]
    return schemathesis.openapi.from_dict(document)[path][operation.method]


def check_answer(server: Server, case: Case[Any]) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = case.call(base_url=server.url, headers=headers, timeout=TIMEOUT_S)
    case.validate_response(answer, checks=CHECKS, headers=headers)


def fuzz(server: Server, name: str, mode: GenerationMode, num_cases: int) -> int:
    """How many cases were sent."""
    num_sent = 0

    @hypothesis.settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=not is_seeded(),
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=described(name).as_strategy(generation_mode=mode))
    def check(case: Case[Any]) -> None:
        nonlocal num_sent
        num_sent += 1
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body.pop("model", None)  # else hardly any would get further than to a 404
        check_answer(server, case)

    check()
    return num_sent


def is_seeded() -> bool:
    """Whether pytest was given `--hypothesis-seed`."""
    return hypothesis.core.global_force_seed is not None


# Nothing can be wrong with a request without fields.
CASES = [
    (name, mode)
    for name, operation in NAMES.items()
    for mode in MODES
    if operation.requests or mode is not GenerationMode.NEGATIVE
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_made_up_requests_are_answered_as_documented(
    running: Server, name: str, mode: GenerationMode
) -> None:
    assert fuzz(running, name, mode, 12) > 0


STREAMS = {
    "chat_completions": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "hi"},
    "responses": {"input": "hi"},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8},
}


@pytest.mark.parametrize(
    "name", [name for name, operation in NAMES.items() if operation.has_stream]
)
def test_streams_are_answered_as_documented(running: Server, name: str) -> None:
    case = described(name).Case(body={**STREAMS[name], "stream": True})
    check_answer(running, case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_made_up_requests_are_answered_as_documented(running: Server) -> None:
    names = [name for name, operation in NAMES.items() if operation.requests]
    num_sent = sum(fuzz(running, name, mode, 160) for name in names for mode in MODES)
    assert num_sent >= 2000
