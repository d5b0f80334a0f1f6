"""When `oneOf` means the same as `anyOf`: no value can satisfy two of the alternatives.

The back end cannot count how many alternatives match, so `oneOf` is honoured only where the
alternatives exclude each other for a reason that can be read off: other types, other constants, or
a property that must be present with values that exclude each other (pydantic's discriminator).
"""

from collections.abc import Callable, Mapping, Sequence

from models.grammar.json_schema_values import canonical, type_names

ALL_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_MAX_DEPTH = 8

Resolver = Callable[[str], object]


def are_exclusive(alternatives: Sequence[object], resolve: Resolver) -> bool:
    """Whether each pair is provably disjoint. `resolve` follows a `$ref`."""
    proof = _Disjointness(resolve)
    return all(
        proof.holds(left, right, _MAX_DEPTH)
        for index, left in enumerate(alternatives)
        for right in alternatives[index + 1 :]
    )


class _Disjointness:
    def __init__(self, resolve: Resolver) -> None:
        self._resolve = resolve

    def holds(self, left: object, right: object, depth: int) -> bool:
        """Whether no value satisfies both; False when it cannot be told."""
        if left is False or right is False:
            return True
        if depth == 0:
            return False
        left, right = self._follow(left, depth), self._follow(right, depth)
        if not isinstance(left, dict) or not isinstance(right, dict):
            return False
        for one, other in ((left, right), (right, left)):
            if any(
                all(self.holds(option, other, depth - 1) for option in options)
                for options in _alternatives(one)
            ):
                return True
            if any(self.holds(part, other, depth - 1) for part in _conjuncts(one)):
                return True
        return self._plain_parts_exclude(left, right, depth)

    def _follow(self, schema: object, depth: int) -> object:
        for _ in range(depth):
            if not isinstance(schema, dict) or set(schema) & _IN_PLACE != {"$ref"}:
                return schema
            reference = schema["$ref"]
            if not isinstance(reference, str):
                return schema
            if set(schema) & _ASSERTIONS:
                return schema  # siblings only narrow it, but following would forget them
            schema = self._resolve(reference)
        return schema

    def _plain_parts_exclude(
        self, left: Mapping[str, object], right: Mapping[str, object], depth: int
    ) -> bool:
        left_values, right_values = _values(left), _values(right)
        if left_values is not None and right_values is not None:
            mine = {canonical(value) for value in left_values}
            return mine.isdisjoint(canonical(value) for value in right_values)
        common = _types(left) & _types(right)
        if not common:
            return True
        return common == {"object"} and self._objects_exclude(left, right, depth)

    def _objects_exclude(
        self, left: Mapping[str, object], right: Mapping[str, object], depth: int
    ) -> bool:
        required = [*_strings(left.get("required")), *_strings(right.get("required"))]
        return any(
            self.holds(_property(left, key), _property(right, key), depth - 1)
            for key in dict.fromkeys(required)
        )


_IN_PLACE = {"$ref", "allOf", "anyOf", "oneOf"}
_ASSERTIONS = {"type", "const", "enum", "properties", "required", "additionalProperties"}


def _alternatives(schema: Mapping[str, object]) -> list[list[object]]:
    values = (schema.get("anyOf"), schema.get("oneOf"))
    return [value for value in values if isinstance(value, list) and value]


def _conjuncts(schema: Mapping[str, object]) -> list[object]:
    parts = schema.get("allOf")
    conjuncts = list(parts) if isinstance(parts, list) else []
    if "$ref" in schema and len(schema) > 1:
        conjuncts.append({"$ref": schema["$ref"]})
    return conjuncts


def _values(schema: Mapping[str, object]) -> list[object] | None:
    """The finite set of values that a schema allows, when it names one."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _types(schema: Mapping[str, object]) -> frozenset[str]:
    """Types a value may have; "number" always comes with "integer"."""
    values = _values(schema)
    if values is not None:
        return type_names(values)
    named = schema.get("type")
    if named is None:
        return ALL_TYPES
    types = {named} if isinstance(named, str) else set(_strings(named))
    return frozenset(types | {"integer"} if "number" in types else types)


def _property(schema: Mapping[str, object], key: str) -> object:
    properties = schema.get("properties")
    if isinstance(properties, dict) and key in properties:
        return properties[key]
    is_forbidden = schema.get("additionalProperties") is False
    return not is_forbidden or bool(schema.get("patternProperties"))


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
