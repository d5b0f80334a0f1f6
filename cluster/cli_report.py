"""What the commands say about a configuration and a cluster, for a person."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from cluster.api_keys import FirstKey, KeySource
from cluster.cli_target import api_url
from cluster.config import ShoalConfig


def config_summary(config: ShoalConfig) -> list[RenderableType]:
    """The models as a table, then a line on the API and one on retrieval."""
    table = Table("model", "source", "dtype", "device", "replicas", "context", box=None)
    for model in config.models:
        is_default = model.name == config.default_model_name
        context = model.engine.max_model_len
        table.add_row(
            model.name + (" (default)" if is_default else ""),
            model.source,
            model.dtype,
            model.device,
            _range(model.least_replicas, model.most_replicas),
            "the checkpoint's" if context is None else f"{context} tokens",
        )
    keys = f"the first one and {len(config.auth.api_keys)} of this file"
    api = f"API on {api_url(config)}, keys: {keys if config.auth.required else 'none'}"
    return [table, api, _retrieval_summary(config)]


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _retrieval_summary(config: ShoalConfig) -> str:
    if not config.embedders:
        return "Retrieval is off: there are no embedders"
    names = ", ".join(embedder.name for embedder in config.embedders)
    redis = "our own on this machine" if config.redis.url is None else "the one of redis.url"
    storage = config.storage.s3_endpoint or config.storage.folder or "a folder of SHOAL_HOME"
    return f"Retrieval with {names}; Redis: {redis}; objects: {storage}"


def key_note(key: FirstKey) -> str:
    """Which API key is in force; its text only when it has just been made."""
    match key.source:
        case KeySource.CREATED:
            return f"API key: {key.text}\n(shown this once; kept in {key.path})"
        case KeySource.FILE:
            was_open = " (others could read it; now only you)" if key.narrowed_permissions else ""
            return f"API key: in {key.path}{was_open}"
        case KeySource.ENVIRONMENT:
            return "API key: the one in SHOAL_API_KEY"


def next_steps(url: str, key: FirstKey | None) -> str:
    """How to use a cluster that has just answered."""
    shoal = _program()
    header = "" if key is None else f'-H "Authorization: Bearer {_key_for_shell(key)}" '
    return f"""\
It runs at {url}/v1 and goes on running. What next:

  curl -N {url}/v1/chat/completions {header}\\
    -H 'Content-Type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "Hello"}}], "stream": true}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key={_key_for_python(key)})
  model = client.models.list().data[0].id
  messages = [{{"role": "user", "content": "Hello"}}]
  answer = client.chat.completions.create(model=model, messages=messages)
  print(answer.choices[0].message.content)

  {shoal} chat       talk to it in this terminal
  {shoal} status     pools, replicas, queue, tokens/s
  {shoal} logs -f    what it writes
  {shoal} down       stop every process of it"""


def status_report(status: dict[str, Any]) -> list[RenderableType]:
    """A running cluster: one line, and a table of the pools."""
    table = Table(box=None)
    for title in ("model", "status", "replicas", "running", "waiting", "KV cache", "tokens/s"):
        table.add_column(title, justify="left" if title in ("model", "status") else "right")
    for pool in status["pools"]:
        table.add_row(
            pool["model_name"],
            pool["status"].lower(),
            _replicas(pool),
            str(pool["num_requests_running"]),
            str(pool["num_requests_waiting"]),
            f"{pool['kv_cache_usage']:.0%}",
            f"{pool['tokens_per_s']:.1f}",
        )
    for service in status["services"]:
        table.add_row(service["name"], service["status"].lower(), _replicas(service))
    named = [(pool["model_name"], pool["message"]) for pool in status["pools"]]
    named += [(service["name"], service["message"]) for service in status["services"]]
    messages = [f"{name}: {message}" for name, message in named if message]
    decided = [(pool["model_name"], pool["decision"]) for pool in status["pools"]]
    decided += [(service["name"], service["decision"]) for service in status["services"]]
    messages += [f"{name}: {decision}" for name, decision in decided if decision]
    messages += _nodes(status["nodes"])
    first = f"{status['status'].lower()} at {status['url']}"
    if status["num_processes"]:  # of this machine; those of a Ray cluster are not counted
        first += f", {status['num_processes']} processes"
    return [first, table, *messages]


def _nodes(nodes: list[dict[str, Any]]) -> list[str]:
    """Nothing for one host, which is known already."""
    if len(nodes) < 2:
        return []
    lines = []
    for node in nodes:
        gpus = f", {node['gpus']:g} GPUs" if node["gpus"] else ""
        is_lost = "" if node["is_alive"] else ", lost"
        lines.append(f"node {node['address']}: {node['cpus']:g} CPUs{gpus}{is_lost}")
    return lines


def _replicas(deployment: dict[str, Any]) -> str:
    """How many run, and what the others do."""
    states = deployment["replica_states"]
    others = ", ".join(f"{n} {s.lower()}" for s, n in states.items() if s != "RUNNING")
    return str(states.get("RUNNING", 0)) + (f" (+ {others})" if others else "")


def show(parts: list[RenderableType]) -> None:
    """To standard output, without markup: names are shown as they are."""
    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def _program() -> str:
    """`shoal` as this shell would find it again."""
    if shutil.which("shoal") is not None:
        return "shoal"
    path = Path(sys.argv[0]).absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _key_for_shell(key: FirstKey) -> str:
    return "$SHOAL_API_KEY" if key.path is None else f"$(cat {shlex.quote(str(key.path))})"


def _key_for_python(key: FirstKey | None) -> str:
    if key is None:
        return '"none"'
    if key.path is None:
        return 'os.environ["SHOAL_API_KEY"]  # import os'
    return f'open("{key.path}").read().strip()'
