"""How many replicas a pool has: its range, and how it moves in it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ScalingConfig(BaseModel):
    """The section `autoscaling` of a model; it counts where the range has room."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Sequences that one replica serves well at once; None: `engine.max_num_seqs`.
    target_num_seqs: Annotated[int, Field(ge=1)] | None = None
    # Of these, in a large pool; a small one keeps a larger part free, because chance is larger.
    max_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    prefill_wait_s: Annotated[float, Field(gt=0)] = 2.0  # prompts should be read within this
    # A replica that is not needed is kept so long; None: four times what its start takes, 60 at
    # least.
    downscale_delay_s: Annotated[float, Field(ge=0)] | None = None
    # With `min_replicas: 0`: without any request for so long, the last replica goes.
    idle_before_zero_s: Annotated[float, Field(ge=0)] = 300.0
    # What a start is thought to take until one was measured.
    expected_start_s: Annotated[float, Field(gt=0)] = 30.0
    # Requests that wait in one ingress for the first replica; more are refused.
    max_held_requests: Annotated[int, Field(ge=1)] = 256
    max_hold_s: Annotated[float, Field(gt=0)] = 300.0  # how long they wait


class ReplicaRange(BaseModel):
    """How many replicas a model has: a fixed number, or a range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_replicas: Annotated[int, Field(ge=1)] | None = None  # fixed; 1 where nothing is said
    min_replicas: Annotated[int, Field(ge=0)] | None = None  # 0: none while nobody asks
    max_replicas: Annotated[int, Field(ge=1)] | None = None  # above min_replicas: by work
    autoscaling: ScalingConfig = ScalingConfig()

    @property
    def least_replicas(self) -> int:
        if self.num_replicas is not None:
            return self.num_replicas
        if self.min_replicas is not None:
            return self.min_replicas
        return 1

    @property
    def most_replicas(self) -> int:
        if self.num_replicas is not None:
            return self.num_replicas
        return max(1, self.least_replicas) if self.max_replicas is None else self.max_replicas

    @property
    def may_sleep(self) -> bool:
        """There may be no replica at all."""
        return self.least_replicas == 0

    @model_validator(mode="after")
    def _a_number_or_a_range(self) -> Self:
        ends = {
            name: value
            for name in ("min_replicas", "max_replicas")
            if (value := getattr(self, name)) is not None
        }
        if self.num_replicas is not None and ends:
            given = ", ".join(f"{name} ({value})" for name, value in ends.items())
            raise ValueError(
                f"num_replicas ({self.num_replicas}) is a fixed number and {given} a range: "
                "give one of them"
            )
        check_replica_range(self.least_replicas, self.most_replicas)
        if self.least_replicas == self.most_replicas and "autoscaling" in self.model_fields_set:
            self._refuse_idle_settings()
        return self

    def _refuse_idle_settings(self) -> None:
        if self.autoscaling != ScalingConfig():
            raise ValueError(
                f"autoscaling is about a range; there are always {self.least_replicas} replicas: "
                "give min_replicas and max_replicas"
            )


def check_replica_range(
    least: int, most: int, *, names: tuple[str, str] = ("min_replicas", "max_replicas")
) -> None:
    """`names`: of the two fields.

    Raises:
        ValueError: the range is empty.
    """
    if most < least:
        raise ValueError(f"{names[1]} ({most}) must be at least {names[0]} ({least})")
