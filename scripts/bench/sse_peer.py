"""The limit for the serving layer: one Starlette process that emits the same stream and does
nothing else. No authentication, no validation, no second process.

    python -m scripts.bench.sse_peer --port 8100 --step-ms 20
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from scripts.bench.stream_load import Vocabulary

HEAD = (
    'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion",'
    '"created":1700000000,"model":"shoal/demo-chat","choices":[{"index":0,"text":'
)
TAIL = ',"logprobs":null,"finish_reason":null}],"usage":null}\n\n'


class Beat:
    """Wakes every stream at each multiple of the step time, as an engine's step does."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._next = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    async def wait(self) -> None:
        await asyncio.shield(self._next)

    async def _run(self) -> None:
        while True:
            now_s = time.monotonic()
            await asyncio.sleep((int(now_s / self._step_s) + 1) * self._step_s - now_s)
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            done.set_result(None)


def build_app(step_ms: float) -> Starlette:
    vocabulary = Vocabulary.demo()
    beats: list[Beat] = []

    async def completions(request: Request) -> StreamingResponse:
        body = json.loads(await request.body())
        if not beats:
            beats.append(Beat(step_ms / 1000))
        return StreamingResponse(stream(body), media_type="text/event-stream")

    async def stream(body: dict[str, list[int]]) -> AsyncIterator[str]:
        num_tokens, token = int(body["max_tokens"]), body["prompt"][-1]  # type: ignore[call-overload]
        for _ in range(num_tokens):
            await beats[0].wait()
            token += 1
            yield HEAD + json.dumps(vocabulary.texts[token % len(vocabulary.texts)]) + TAIL
        usage = {"completion_tokens": num_tokens, "prompt_tokens": len(body["prompt"])}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return Starlette(routes=[Route("/v1/completions", completions, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--step-ms", type=float, default=20.0)
    arguments = parser.parse_args()
    uvicorn.run(
        build_app(arguments.step_ms),
        host="127.0.0.1",
        port=arguments.port,
        log_level="warning",
        http="httptools",
        loop="uvloop",
        backlog=2048,
    )


if __name__ == "__main__":
    main()
