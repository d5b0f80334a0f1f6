"""The providers of the configuration: which of them a model's name belongs to, and its client."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.openai_schema.models import ModelObject
from cluster.provider_config import ProviderConfig, check_providers, provider_of
from deployments.ingress.providers.provider_client import ProviderClient, tls_context
from models.context_template import ContextTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalModel:
    """A model that is not served here."""

    name: str  # as the client writes it
    config: ProviderConfig
    client: ProviderClient
    context_template: ContextTemplate

    @property
    def label(self) -> str:
        """For metrics: names that clients write are as many as they like."""
        return self.name if self.name in self.config.models else f"{self.config.prefix}*"


class Providers:
    """Finds models at providers. `close` it."""

    def __init__(
        self, configs: Sequence[ProviderConfig], *, is_served: Callable[[str], bool]
    ) -> None:
        """`is_served`: whether a model of that name is served here; then it is no provider's.

        Raises:
            ValueError: two providers are called the same, or a file cannot be used.
        """
        check_providers(configs)
        self._is_served = is_served
        try:
            contexts = {ca_file: tls_context(ca_file) for ca_file in {c.ca_file for c in configs}}
        except OSError as error:
            raise ValueError(f"providers: ca_file: {error}") from error
        self._configs = configs
        self._clients = {
            config.name: ProviderClient(config, contexts[config.ca_file]) for config in configs
        }
        self._templates = {config.name: _template(config) for config in configs}

    @property
    def cards(self) -> list[ModelObject]:
        """Of the models that the configuration names, but for those that are served here."""
        return [
            _card(name, config)
            for config in self._configs
            for name in config.models
            if not self._is_served(name)
        ]

    def find(self, name: str | None) -> ExternalModel | None:
        """None: it is no provider's. Of several prefixes the longest counts."""
        if name is None:
            return None
        config = provider_of(name, self._configs)
        if config is None or self._is_served(name):
            return None
        return ExternalModel(
            name=name,
            config=config,
            client=self._clients[config.name],
            context_template=self._templates[config.name],
        )

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()


def _card(name: str, config: ProviderConfig) -> ModelObject:
    """What is known of a model of somebody else's: little."""
    return ModelObject(
        id=name,
        created=0,
        owned_by=config.name,
        organization=config.name,
        context_length=0,
        languages=[],
        parameters=0,
        parameters_str="unknown",
        tier="unlisted",
        license="unknown",
        description=f"A model of the provider {config.name}, for requests with api_key_ref.",
    )


def _template(config: ProviderConfig) -> ContextTemplate:
    path = config.retrieval_template
    return ContextTemplate.default() if path is None else ContextTemplate.from_file(Path(path))
