"""Thousands of hostile schemas, regular expressions, choices and grammars against a running server.

    scripts/up && .venv/bin/python -m scripts.fuzz_guided --cases 10000

Every answer must be a 200 or a 4xx that says why; between them an ordinary request must be
answered; and the memory of the cluster's processes must stay flat once it has settled. The same
seed sends the same cases. Exit status 1 when anything else happens.
"""

import argparse
import asyncio
import json
import os
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil

from cluster.api_keys import load_or_create_key
from cluster.config import shoal_home

ALLOWED_STATUSES = {200, 400, 413, 422}
CONCURRENCY = 8
ATOMS = [
    "a",
    "[a-z]",
    ".",
    r"\w",
    r"\d",
    r"\s",
    "é",
    "😀",
    r"\p{L}",
    "[^x]",
    "(ab|c)",
    r"\x00",
    "]",
]
QUANTIFIERS = [
    "",
    "",
    "*",
    "+",
    "?",
    "{3}",
    "{2,5}",
    "{0,1000}",
    "{1,100000}",
    "{1000}",
    "{,3}",
    "**",
]
HOSTILE_REGEXES = [
    r"(\w+\s*){1,20}[\.!?]",
    r"(a+)+$",
    r"(x{1,200}){1,200}y",
    r"a{1000}{1000}",
    r".*a.{20}",
    r"(?=a)b",
    r"(a)\1",
    r"((((((((((a{10}){10}){10}){10}){10}){10}){10}){10}){10}){10})",
    "(" * 500 + "a" + ")" * 500,
    "[" + "a-z" * 2000 + "]",
]
KEYWORDS: dict[str, list[Any]] = {
    "type": [
        "object",
        "array",
        "string",
        "integer",
        "number",
        "null",
        "boolean",
        "nonsense",
        7,
        [],
    ],
    "enum": [[], [1, "a", None], list(range(3000)), "x"],
    "minimum": [0, -1e308, "0", 10**30],
    "maximum": [-5, 1e308, 0.1, 10**30],
    "minLength": [0, 5, 10**9, -1],
    "maxLength": [0, 100_000, 3],
    "minItems": [0, 2, 10**6],
    "maxItems": [0, 3, 10**6],
    "pattern": ["^a*$", "(", r"(a{1000}){1000}", r"^\d{3}-\d{4}$"],
    "format": ["date", "email", "nonsense", 3],
    "uniqueItems": [True],
    "additionalProperties": [False, True, {"type": "string"}],
    "required": [["a"], ["a", "a"], "a", [1]],
    "not": [{"type": "string"}],
    "$ref": ["#", "#/$defs/a", "#/nowhere", "http://example.com/schema"],
    "const": [1, "x", None, {"a": [1, 2]}],
    "multipleOf": [0, 0.01, 7],
}


def hostile_regex(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(HOSTILE_REGEXES)
    parts = [rng.choice(ATOMS) + rng.choice(QUANTIFIERS) for _ in range(rng.randint(1, 12))]
    text = "".join(parts)
    for _ in range(rng.randint(0, 4)):
        text = rng.choice(["({})", "({})*", "({}|b){{1,50}}", "({}", "^{}$", "(?:{})"]).format(text)
    if rng.random() < 0.2:
        position = rng.randrange(len(text) + 1)
        text = text[:position] + rng.choice(string.punctuation) + text[position:]
    return text


def hostile_schema(rng: random.Random, depth: int = 0) -> Any:
    if depth > 5 or rng.random() < 0.05:
        return rng.choice([True, False, {}, None, [], "x", {"$ref": "#"}])
    schema: dict[str, Any] = {
        name: rng.choice(KEYWORDS[name]) for name in rng.sample(sorted(KEYWORDS), rng.randint(0, 4))
    }
    for combinator in ("anyOf", "oneOf", "allOf"):
        if rng.random() < 0.1:
            schema[combinator] = [hostile_schema(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.5:
        names = ["a", "b", "c", "ключ", "", "x" * 300]
        chosen = rng.sample(names, rng.randint(0, 4))
        schema["properties"] = {name: hostile_schema(rng, depth + 1) for name in chosen}
    if rng.random() < 0.2:
        schema["items"] = hostile_schema(rng, depth + 1)
    if depth == 0 and rng.random() < 0.3:
        schema["$defs"] = {"a": hostile_schema(rng, 1), "b": {"$ref": "#/$defs/a"}}
    return schema


def huge_schema(rng: random.Random) -> Any:
    kind = rng.randrange(4)
    if kind == 0:
        return {"enum": [f"value {k} {rng.random()}" for k in range(20_000)]}
    if kind == 1:
        names = [f"property_{k}_{rng.randrange(10**6)}" for k in range(200)]
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    if kind == 2:
        schema: Any = {"type": "string"}
        for _ in range(rng.choice([50, 500])):
            schema = {"type": "array", "items": schema}
        return schema
    node = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}
    return {"$defs": {"n": node}, "$ref": "#/$defs/n"}


def hostile_case(rng: random.Random) -> dict[str, Any]:
    """The guided part of a request body."""
    kind = rng.random()
    if kind < 0.45:
        return {"guided_regex": hostile_regex(rng)}
    if kind < 0.85:
        return {"guided_json": hostile_schema(rng)}
    if kind < 0.86:
        return {"guided_json": huge_schema(rng)}
    if kind < 0.92:
        return {"guided_json": json.dumps(hostile_schema(rng))[: rng.randint(1, 200)]}
    if kind < 0.96:
        pool = ["", "a", "ab", "é", "a" * 5000, 3, None]
        return {"guided_choice": [rng.choice(pool) for _ in range(rng.randint(0, 6))]}
    rule = "".join(rng.choice('root :="ab|*+?()[]{}\n') for _ in range(rng.randint(1, 60)))
    return {"guided_grammar": rng.choice(['root ::= "a" root | "b"', "root ::= root", rule])}


def cluster_memory() -> dict[str, float]:
    """MiB of this SHOAL_HOME's ingress, replica and guard processes."""
    sizes: Counter[str] = Counter()
    for process in psutil.process_iter(["cmdline", "memory_info", "environ"]):
        command = " ".join(process.info["cmdline"] or ())
        for part in ("Ingress", "ModelReplica", "models.grammar.guard"):
            if part in command and process.info["memory_info"] is not None:
                sizes[part] += process.info["memory_info"].rss
    return {name: round(size / 2**20, 1) for name, size in sorted(sizes.items())}


async def send(client: httpx.AsyncClient, case: dict[str, Any], statuses: Counter[int]) -> None:
    body = {"prompt": "x", "max_tokens": 6, "temperature": 1.0, **case}
    response = await client.post("/v1/completions", json=body)
    statuses[response.status_code] += 1
    if response.status_code not in ALLOWED_STATUSES:
        print(f"\n{response.status_code}: {json.dumps(case)[:400]}\n{response.text[:400]}")


async def run(arguments: argparse.Namespace) -> bool:
    key = os.environ.get("SHOAL_API_KEY") or load_or_create_key(shoal_home()).text
    rng = random.Random(arguments.seed)
    cases: Iterator[dict[str, Any]] = (hostile_case(rng) for _ in range(arguments.cases))
    statuses: Counter[int] = Counter()
    sizes = []
    slowest_s = 0.0
    start_s = time.monotonic()
    async with httpx.AsyncClient(
        base_url=arguments.url, headers={"Authorization": f"Bearer {key}"}, timeout=60
    ) as client:
        done = 0
        while done < arguments.cases:
            count = min(arguments.cases - done, arguments.cases // 10 or 1)
            waiting = asyncio.Semaphore(CONCURRENCY)

            async def one(case: dict[str, Any], waiting: asyncio.Semaphore = waiting) -> None:
                async with waiting:
                    await send(client, case, statuses)

            await asyncio.gather(*(one(next(cases)) for _ in range(count)))
            done += count
            ordinary_s = time.monotonic()
            response = await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 4})
            slowest_s = max(slowest_s, time.monotonic() - ordinary_s)
            response.raise_for_status()
            sizes.append(cluster_memory())
            elapsed_s = time.monotonic() - start_s
            print(f"{done:>6} cases, {elapsed_s:.0f} s, {dict(statuses)}, MiB {sizes[-1]}")
    # The caches of compiled grammars fill in the first half; after that nothing may grow.
    half = sizes[len(sizes) // 2]
    growth = {name: sizes[-1].get(name, 0) - half.get(name, 0) for name in sizes[-1]}
    print(f"growth over the second half, MiB: {growth}; slowest ordinary request {slowest_s:.2f} s")
    is_flat = all(value < arguments.allowed_growth_mib for value in growth.values())
    return is_flat and set(statuses) <= ALLOWED_STATUSES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allowed-growth-mib", type=float, default=60.0)
    sys.exit(0 if asyncio.run(run(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
