"""The `shoal` command: reads arguments, prints results, turns errors into one line and exit 1.

What the commands do is in the other `cli_…` modules; what they say in `cli_report`.
"""

import sys
import time
from collections.abc import Sequence
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from cluster import cli_launch
from cluster.cli_bucket import bucket_app
from cluster.cli_bucket_client import BucketClient
from cluster.cli_chat import ChatClient, ChatOptions, ask_once, converse
from cluster.cli_cluster import cluster_app
from cluster.cli_error import CommandError
from cluster.cli_logs import LogFollower, find_logs, last_lines, log_name
from cluster.cli_plan import plan
from cluster.cli_report import config_summary, key_note, next_steps, show, status_report
from cluster.cli_sample import SAMPLE_BUCKET, SAMPLE_QUESTION, ensure_sample_bucket
from cluster.cli_secrets import secrets_app
from cluster.cli_target import api_url, deployed_or_found_config, find_config, read_api_key
from cluster.cli_tenants import key_app, tenant_app
from cluster.cli_usage import usage
from cluster.config import ConfigError, load_config, shoal_home
from cluster.log_lines import readable_line

app = typer.Typer(
    name="shoal",
    help="Run large language models on your own machines, behind an OpenAI-compatible API.",
    epilog=(
        "Keys, logs and data live in SHOAL_HOME (default ~/.shoal). "
        "SHOAL_PORT overrides the port, SHOAL_API_KEY is the first API key."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback must not print local variables: keys, prompts
)
config_app = typer.Typer(help="Look at a configuration file.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(bucket_app, name="bucket")
app.add_typer(secrets_app, name="secrets")
app.add_typer(tenant_app, name="tenant")
app.add_typer(key_app, name="key")
app.add_typer(cluster_app, name="cluster")
app.command()(plan)
app.command()(usage)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration; default: ./shoal.yaml, else SHOAL_HOME's, else the demo's.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Errors that a person can act on are one line each and exit status 1."""
    try:
        app(args=arguments)
    except (CommandError, ConfigError) as error:
        for line in str(error).splitlines():
            _errors().print(f"error: {line}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def up(
    config: ConfigOption = None,
    *,
    ask: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Then ask this, show the answer and what to do next."),
    ] = None,
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Then embed the sample bucket, and answer from it."),
    ] = False,
) -> None:
    """Start the cluster on this machine and return when it is ready; it goes on running.

    When it runs already, bring it to this configuration; when it has that too, do nothing.
    """
    stopwatch = _Stopwatch()
    started = cli_launch.start(find_config(config), say=stopwatch.say)
    _say_started(started, stopwatch)
    key = None if started.first_key is None else started.first_key.text
    with ChatClient(started.url, api_key=key) as client:
        if ask is not None:
            _ask(client, ask, ChatOptions())
        if sample and started.config.embedders:
            with BucketClient(started.url, api_key=key) as bucket_client:
                if ensure_sample_bucket(bucket_client, console=_errors()):
                    stopwatch.say(f"the sample bucket {SAMPLE_BUCKET!r} is embedded")
            options = ChatOptions(temperature=0, buckets=(SAMPLE_BUCKET,))
            _ask(client, SAMPLE_QUESTION, options)
    if ask is not None or sample:
        _say("\n" + next_steps(started.url, started.first_key))


def _ask(client: ChatClient, question: str, options: ChatOptions) -> None:
    from_buckets = f"  (from {', '.join(options.buckets)})" if options.buckets else ""
    _say(f"\n> {question}{from_buckets}")
    ask_once(client, question, options=options, console=_errors())


@app.command()
def deploy(
    config: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: the one `shoal up` takes.")
    ] = None,
    *,
    address: Annotated[
        str, typer.Option(help="Of Ray's head, like 10.0.0.1:6379; auto: the Ray of this host.")
    ] = "auto",
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="To become ready.")
    ] = 3600.0,
) -> None:
    """Deploy on a Ray cluster that runs already, on its head, and return when the API answers.

    Again with a changed configuration: brings the running application to it.
    """
    stopwatch = _Stopwatch()
    started = cli_launch.deploy(
        find_config(config), address=address, timeout_s=timeout_s, say=stopwatch.say
    )
    _say_started(started, stopwatch)


class _Stopwatch:
    """Says things with the seconds since it was made."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def say(self, text: str) -> None:
        _say(f"[{self.elapsed_s:5.1f} s] {text}")


def _say_started(started: cli_launch.Started, stopwatch: _Stopwatch) -> None:
    for line in started.facts:
        _say(line)
    took = "already running" if started.was_running else f"{stopwatch.elapsed_s:.1f} s"
    _say(f"ready at {started.url} ({took})")
    if started.first_key is not None:
        _say(key_note(started.first_key))


@app.command()
def status(
    *, as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False
) -> None:
    """Show pools, replicas, queues and tokens per second; exit status 1 when nothing runs."""
    found = cli_launch.look()
    if as_json:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    elif found["is_running"]:
        show(status_report(found))
    else:
        _say(f"no cluster runs in {shoal_home()}; `shoal up` starts one")
    raise typer.Exit(0 if found["is_running"] else 1)


@app.command()
def down() -> None:
    """Stop every process of the cluster on this machine."""
    num_processes = cli_launch.stop()
    _say(f"stopped {num_processes} processes" if num_processes else "nothing was running")


@app.command()
def chat(
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model of the cluster.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="A system message.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 for the likeliest answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.")] = None,
    bucket: Annotated[
        list[str] | None,
        typer.Option("--bucket", "-b", help="Answer from this embedded bucket; may be repeated."),
    ] = None,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this, print the answer and leave.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Another cluster's API, like http://gpu-box:8000.")
    ] = None,
) -> None:
    """Chat in the terminal; answers arrive as they are made.

    The key is SHOAL_API_KEY, else the one that `shoal up` made. Ctrl-C stops an answer.
    With --once the answer goes to standard output and its speed to standard error.
    """
    options = ChatOptions(
        model=model,
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        buckets=tuple(bucket or ()),
    )
    address = (url or api_url(deployed_or_found_config())).rstrip("/")
    with ChatClient(address, api_key=read_api_key()) as client:
        if once is None:
            converse(client, options=options, console=Console())
        else:
            ask_once(client, once, options=options, console=_errors())


@app.command()
def logs(
    component: Annotated[
        str | None, typer.Argument(help="Only logs whose name contains this.")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    num_lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="So many last lines of each log.")
    ] = 50,
    raw: Annotated[bool, typer.Option("--raw", help="Lines as they are in the files.")] = False,
) -> None:
    """Show the logs of the cluster on this machine, from SHOAL_HOME/logs, as text."""
    show_line = _print_log_line if raw else _print_readable_log_line
    logs_dir = shoal_home() / "logs"
    follower = LogFollower(logs_dir=logs_dir, component=component)
    found = find_logs(logs_dir, component=component)
    if not found and not follow:
        names = ", ".join(log_name(path, logs_dir) for path in find_logs(logs_dir)) or "none"
        raise CommandError(f"no such log in {logs_dir}; there are: {names}")
    for path in found:
        for line in last_lines(path, num_lines):
            show_line(log_name(path, logs_dir), line)
    if follow:
        try:
            for name, line in follower.follow():
                show_line(name, line)
        except KeyboardInterrupt:
            return


@config_app.command("check")
def config_check(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: the one `shoal up` takes.")
    ] = None,
) -> None:
    """Check a configuration: OK and a summary, or one line per problem and exit status 1."""
    path = find_config(file)
    show([f"OK {path}", *config_summary(load_config(path))])


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"shoal {distribution_version('shoal')}")


def _errors() -> Console:
    return Console(stderr=True)


def _say(text: str) -> None:
    """Progress and notes, beside the results on standard output."""
    typer.echo(text, err=True)


def _print_readable_log_line(name: str, line: str) -> None:
    for shown in readable_line(line).split("\n"):
        _print_log_line(name, shown)


def _print_log_line(name: str, line: str) -> None:
    typer.echo(f"{name} | {line}")
