import json
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.cli import main
from cluster.cli_target import api_url, deployed_or_found_config, find_config, read_api_key
from cluster.config import ConfigError, load_config

ONE_MODEL = "models:\n- {name: tiny, source: demo}\n"


class LaunchError(Exception):
    pass


class FakeLaunch:
    """`deployments.launch` without Ray: remembers the configuration that it was given."""

    LaunchError = LaunchError

    def __init__(self) -> None:
        self.config = None
        self.address = self.timeout_s = None
        self.failure: str | None = None

    def up(self, config, *, say):
        if self.failure is not None:
            raise LaunchError(self.failure)
        say("starting")
        was_running, self.config = config == self.config, config
        facts = () if was_running else (SimpleNamespace(summary="tiny: 4 blocks"),)
        return SimpleNamespace(url=api_url(config), was_running=was_running, facts=facts)

    def deploy(self, config, *, address, timeout_s, say):
        self.config, self.address, self.timeout_s = config, address, timeout_s
        if self.failure is not None:
            raise LaunchError(self.failure)
        say("starting")
        return (SimpleNamespace(summary="tiny: 4 blocks"),)

    def down(self) -> int:
        was_running, self.config = self.config is not None, None
        return 7 if was_running else 0

    def status(self, config):
        if self.config is None:
            return {"is_running": False}
        pool = {
            "model_name": config.models[0].name,
            "status": "HEALTHY",
            "message": "",
            "replica_states": {"RUNNING": 2, "STARTING": 1},
            "num_requests_running": 3,
            "num_requests_waiting": 5,
            "kv_cache_usage": 0.25,
            "tokens_per_s": 41.26,
            "decision": "3 wanted: 12 waiting",
        }
        return {
            "is_running": True,
            "url": api_url(config),
            "status": "RUNNING",
            "num_processes": 9,
            "pools": [pool],
            "services": [
                {
                    "name": "retrieval",
                    "status": "UPDATING",
                    "message": "",
                    "replica_states": {"STARTING": 1},
                    "decision": "",
                }
            ],
            "nodes": [
                {"address": "10.0.0.1", "is_alive": True, "cpus": 4.0, "gpus": 0.0},
                {"address": "10.0.0.2", "is_alive": False, "cpus": 8.0, "gpus": 2.0},
            ],
        }


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SHOAL_HOME with a configuration, and nothing of the caller's environment."""
    for name in ("SHOAL_PORT", "SHOAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "shoal.yaml").write_text(ONE_MODEL)
    monkeypatch.setenv("SHOAL_HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> FakeLaunch:
    fake = FakeLaunch()
    monkeypatch.setitem(sys.modules, "deployments.launch", fake)
    monkeypatch.setitem(sys.modules, "deployments.running_ray", fake)
    return fake


def run(*arguments: str) -> int:
    """The exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_configuration_here_comes_before_that_of_the_home(tmp_path, home) -> None:
    assert find_config(None) == home / "shoal.yaml"
    (tmp_path / "shoal.yaml").write_text(ONE_MODEL)
    assert find_config(None) == Path("shoal.yaml")
    assert find_config(Path("other.yaml")) == Path("other.yaml")


def test_a_server_on_all_addresses_is_reached_on_loopback(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(ONE_MODEL + "http: {host: 0.0.0.0, port: 9000}\n")
    assert api_url(load_config(path)) == "http://127.0.0.1:9000"


def test_the_key_of_the_environment_comes_before_the_file(home, monkeypatch) -> None:
    assert read_api_key() is None
    (home / "api_key").write_text("from-file\n")
    assert read_api_key() == "from-file"
    monkeypatch.setenv("SHOAL_API_KEY", "from-env")
    assert read_api_key() == "from-env"


def test_config_check_says_ok_and_shows_the_models(capsys) -> None:
    assert run("config", "check") == 0
    out = capsys.readouterr().out
    assert out.startswith("OK ")
    assert "tiny (default)" in out


def test_config_check_has_one_line_for_each_problem(tmp_path, capsys) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("models:\n- {name: a, source: demo, dtype: int3}\nfoo: 1\nlog_level: LOUD\n")
    assert run("config", "check", str(path)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"error: {path}: ") for line in lines)


def test_config_check_of_a_missing_file_names_it(capsys) -> None:
    assert run("config", "check", "absent.yaml") == 1
    assert capsys.readouterr().err == "error: absent.yaml: No such file or directory\n"


def test_up_asks_and_says_what_to_do_next(launch, api, home, capsys, monkeypatch) -> None:
    monkeypatch.setenv("SHOAL_PORT", api.url.rpartition(":")[2])
    api.say("I ", "copy.")
    assert run("up", "--ask", "Hello!") == 0
    captured = capsys.readouterr()
    key = (home / "api_key").read_text().strip()
    assert captured.out == "I copy.\n"
    assert captured.err.count(key) == 1, "the new key is shown once"
    assert f"ready at {api.url}" in captured.err
    assert "tiny: 4 blocks" in captured.err
    assert "curl -N" in captured.err
    assert api.authorizations == [f"Bearer {key}"]


def test_up_again_says_so_and_keeps_the_key_to_itself(launch, home, capsys) -> None:
    assert run("up") == 0
    key = (home / "api_key").read_text().strip()
    capsys.readouterr()
    assert run("up") == 0
    err = capsys.readouterr().err
    assert "already running" in err
    assert key not in err
    assert str(home / "api_key") in err


def test_the_key_reaches_the_cluster_as_a_digest_only(launch, home) -> None:
    assert run("up") == 0
    key = (home / "api_key").read_text().strip()
    assert [entry.name for entry in launch.config.auth.api_keys] == ["first"]
    assert key not in (home / "deployed.json").read_text()


def test_what_is_written_down_of_the_cluster_is_for_its_owner_only(launch, home) -> None:
    home.mkdir(mode=0o755, exist_ok=True)  # by hand
    assert run("up") == 0
    assert stat.S_IMODE((home / "deployed.json").stat().st_mode) == 0o600


def test_no_key_is_made_where_none_is_asked_for(launch, home) -> None:
    (home / "shoal.yaml").write_text(ONE_MODEL + "auth: {required: false}\n")
    assert run("up") == 0
    assert not (home / "api_key").exists()


def test_an_empty_first_answer_fails_up(launch, api, capsys, monkeypatch) -> None:
    monkeypatch.setenv("SHOAL_PORT", api.url.rpartition(":")[2])
    api.say()
    assert run("up", "--ask", "Hello!") == 1
    assert "the answer is empty" in capsys.readouterr().err


def test_a_cluster_that_does_not_start_is_one_message(launch, home, capsys) -> None:
    launch.failure = "port 8000 is taken"
    assert run("up") == 1
    assert capsys.readouterr().err.endswith("error: port 8000 is taken\n")
    assert not (home / "deployed.json").exists()


def test_other_commands_find_the_cluster_that_was_started(launch, tmp_path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("models:\n- {name: other, source: demo}\nhttp: {port: 9123}\n")
    assert run("up", "--config", str(path)) == 0
    assert api_url(deployed_or_found_config()) == "http://127.0.0.1:9123"
    assert run("down") == 0
    assert api_url(deployed_or_found_config()) == "http://127.0.0.1:8000"


def test_status_shows_every_pool_and_service(launch, capsys) -> None:
    assert run("up") == 0
    capsys.readouterr()
    assert run("status") == 0
    out = capsys.readouterr().out
    assert "running at http://127.0.0.1:8000, 9 processes" in out
    *_, pool, service, decision, here, there = (line.split() for line in out.splitlines())
    assert pool == ["tiny", "healthy", "2", "(+", "1", "starting)", "3", "5", "25%", "41.3"]
    assert service == ["retrieval", "updating", "0", "(+", "1", "starting)"]
    assert " ".join(decision) == "tiny: 3 wanted: 12 waiting"
    assert " ".join(here) == "node 10.0.0.1: 4 CPUs"
    assert " ".join(there) == "node 10.0.0.2: 8 CPUs, 2 GPUs, lost"


def test_status_for_a_program_is_json(launch, capsys) -> None:
    assert run("status", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"is_running": False}
    assert run("up") == 0
    capsys.readouterr()
    assert run("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pools"][0]["tokens_per_s"] == 41.26


def test_down_says_how_much_it_stopped(launch, capsys) -> None:
    run("up")
    capsys.readouterr()
    assert run("down") == 0
    assert capsys.readouterr().err == "stopped 7 processes\n"
    assert run("down") == 0
    assert capsys.readouterr().err == "nothing was running\n"


def test_logs_name_their_component(home, capsys) -> None:
    (home / "logs").mkdir()
    (home / "logs" / "ingress.log").write_text("one\ntwo\n")
    assert run("logs", "-n", "1") == 0
    assert capsys.readouterr().out == "ingress | two\n"


def test_a_log_that_is_not_there_lists_those_that_are(home, capsys) -> None:
    (home / "logs").mkdir()
    (home / "logs" / "ingress.log").touch()
    assert run("logs", "replica") == 1
    assert capsys.readouterr().err.endswith("there are: ingress\n")


def test_a_broken_record_of_the_running_cluster_is_named(home) -> None:
    (home / "deployed.json").write_text("{")
    with pytest.raises(ConfigError, match=r"deployed\.json: not JSON"):
        deployed_or_found_config()


def test_commands_that_need_no_cluster_load_neither_ray_nor_torch() -> None:
    code = (
        "import sys\n"
        "from cluster.cli import main\n"
        "try: main(['config', 'check'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'transformers', 'deployments.launch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=None, cwd=root)


def test_deploy_hands_over_the_configuration_with_the_first_key(launch, home, capsys) -> None:
    assert run("deploy", str(home / "shoal.yaml"), "--timeout", "60") == 0
    assert (launch.address, launch.timeout_s) == ("auto", 60)
    assert [key.name for key in launch.config.auth.api_keys] == ["first"]
    said = capsys.readouterr().err
    assert "tiny: 4 blocks" in said
    assert "ready at http://127.0.0.1:8000" in said
    assert deployed_or_found_config() == launch.config


def test_a_deployment_that_fails_is_one_error_and_is_not_written_down(launch, home, capsys) -> None:
    launch.failure = "no Ray runs on this host"
    assert run("deploy", "--address", "10.0.0.1:6379") == 1
    assert launch.address == "10.0.0.1:6379"
    assert "error: no Ray runs on this host" in capsys.readouterr().err
    assert not (home / "deployed.json").exists()
