"""A real cluster of this machine, with a home, a port and Ray ports of its own."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.api_keys import ApiKeys, load_or_create_key
from cluster.config import ShoalConfig, parse_config
from deployments import launch
from deployments.local_ray import ClusterState, LocalRay
from tests.models.adapters.adapter_samples import make_adapter

ADAPTERS = "adapters"  # the folder of `tiny`'s, in its own
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a test needs to know of the running cluster."""

    config: ShoalConfig
    url: str
    api_key: str
    home: Path
    said: list[str]

    def state(self) -> ClusterState:
        state = LocalRay(self.home).state()
        assert state is not None
        return state


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights and a byte-level tokenizer: it says nothing sensible, quickly."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a bucket of words"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for seed, name in enumerate(("formal", "brief")):
        make_adapter(folder / ADAPTERS / name, folder, seed=seed, rank=8, alpha=32)
    make_adapter(folder / ADAPTERS / "broken", folder, seed=2, use_dora=True)
    return folder


@pytest.fixture(scope="session")
def session_environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SHOAL_")]:
            patch.delenv(name)
        yield patch


def make_config(*, port: int, **sources: Path) -> ShoalConfig:
    """One model per source; the one called `synthetic` computes nothing and takes its time, and
    `tiny` has adapters where its folder has."""
    engines: dict[str, dict[str, object]] = {
        "synthetic": {"synthetic_step_ms": 20},
        "tiny": {"kv_cache_memory_bytes": 2**20},
    }

    def adapters(name: str, source: Path) -> dict[str, object]:
        folder = source / ADAPTERS
        if name != "tiny" or not folder.exists():
            return {}
        listed = [{"name": "tiny-formal", "source": str(folder / "formal")}]
        return {"adapters": listed, "adapter_folder": str(folder)}

    return parse_config(
        {
            "models": [
                {
                    "name": name,
                    "source": str(source),
                    "num_cpus": 0.5,
                    "engine": engines[name],
                    **adapters(name, source),
                }
                for name, source in sources.items()
            ],
            "embedders": [],  # retrieval has a cluster of its own
            "http": {"port": port},
        }
    )


def share_kernels(home: Path) -> None:
    """Compiled CPU kernels are the same for every home; their names are hashes."""
    shared = Path(tempfile.gettempdir()) / f"shoal-test-kernels-{os.getuid()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    (home / "native").symlink_to(shared)


@contextmanager
def running_cluster(
    home: Path, environment: pytest.MonkeyPatch, **config: object
) -> Iterator[Cluster]:
    """A cluster of its own beside that of the session, without retrieval, with one API key."""
    previous = os.environ.get("SHOAL_HOME")
    environment.setenv("SHOAL_HOME", str(home))
    share_kernels(home)
    try:
        key = load_or_create_key(home)
        checked = parse_config(
            {
                "embedders": [],
                "http": {"port": free_port()},
                "auth": {"api_keys": [key.stored.model_dump()]},
                **config,
            }
        )
        said: list[str] = []
        result = launch.up(checked, say=said.append)
        yield Cluster(config=checked, url=result.url, api_key=key.text, home=home, said=said)
    finally:
        launch.down()
        if previous is None:
            environment.delenv("SHOAL_HOME")
        else:
            environment.setenv("SHOAL_HOME", previous)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def cluster(
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    session_environment: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    session_environment.setenv("SHOAL_HOME", str(home))
    share_kernels(home)
    config = make_config(port=free_port(), tiny=tiny_checkpoint, synthetic=tiny_checkpoint)
    key = load_or_create_key(home)
    config = config.model_copy(
        update={"auth": config.auth.model_copy(update={"api_keys": (key.stored,)})}
    )
    assert ApiKeys.from_config(config.auth).find(key.text) is not None
    said: list[str] = []
    try:
        result = launch.up(config, say=said.append)
        yield Cluster(config=config, url=result.url, api_key=key.text, home=home, said=said)
    finally:
        session_environment.setenv("SHOAL_HOME", str(home))
        launch.down()
