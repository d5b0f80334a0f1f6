"""Random JSON Schemas of the kinds that JSONSchemaBench describes."""

import random
from collections.abc import Callable

Schema = dict[str, object]

_PATTERNS = [
    "^[a-z]{2,8}$",
    r"^\d{3}-\d{4}$",
    "^(red|green|blue)$",
    r"\w+@\w+\.com",
    '^[^\\s"]+$',
    "^[A-Z][a-z]*( [A-Z][a-z]*){0,2}$",
    r"^\S+$",
    "^#(?:[0-9a-fA-F]{3}){1,2}$",
    r"^[\w.-]{1,10}$",
    "x.z",
    r"^\D{1,5}$",
]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "uri"]
_FORMATS += ["duration", "int32", "password", "my-own"]
_NAMES = ["id", "name", "kind", "size", "tags", "a b", "ключ", 'quo"te', "x-1", "$id2", "nested"]


class SchemaGenerator:
    """`schema(depth)` gives another one each time; the seed decides which."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: Schema = {}

    def document(self) -> Schema:
        """A whole schema: the root and its `$defs`."""
        chooser = self._random
        self._definitions = {}
        num_definitions = chooser.randrange(4)
        names = [f"def{i}" for i in range(num_definitions)]
        for i, name in enumerate(names):
            # Only earlier ones are known while it is built; recursion has its own shape below.
            self._definitions[name] = self.schema(2) if i else self._leaf()
        root = self.schema(3)
        if chooser.random() < 0.1:
            root = _linked_list(root)
        if self._definitions:
            key = "$defs" if "$ref" not in str(root.get("definitions", "")) else "definitions"
            root = {**root, key: {**self._definitions, **_members(root, key)}}
        if chooser.random() < 0.3:
            root["title"], root["description"] = "T", "a description"
        return root

    def schema(self, depth: int) -> Schema:
        kinds: list[Callable[[int], Schema]] = [lambda _: self._leaf()]
        if depth:
            kinds += [self._object] * 4 + [self._array] * 2
            kinds += [self._combination, self._combination, self._map, self._reference]
        return self._random.choice(kinds)(depth)

    def _leaf(self) -> Schema:
        leaves = [self._string, self._string, self._number, self._number, self._values]
        leaves += [lambda: {"type": "boolean"}, lambda: {"type": "null"}, self._types]
        return self._random.choice(leaves)()

    def _types(self) -> Schema:
        types = self._random.sample(["string", "integer", "null", "boolean", "number"], 2)
        return {"type": types, "minLength": 1, "maximum": 1000}

    def _string(self) -> Schema:
        chooser = self._random
        schema: Schema = {"type": "string"}
        match chooser.randrange(5):
            case 0:
                schema["pattern"] = chooser.choice(_PATTERNS)
            case 1:
                schema["format"] = chooser.choice(_FORMATS)
            case 2:
                schema["minLength"] = chooser.randrange(6)
                if chooser.random() < 0.7:
                    schema["maxLength"] = chooser.randrange(4, 12)
            case 3:
                schema["pattern"] = chooser.choice(_PATTERNS)
                schema["maxLength"] = chooser.randrange(3, 20)
        return schema

    def _number(self) -> Schema:
        chooser = self._random
        schema: Schema = {"type": chooser.choice(["integer", "number"])}
        scale = chooser.choice([1, 0.5, 10, 1e6, 1e-3, 2**33, 2**55])
        low = chooser.randrange(-50, 50) * scale
        if schema["type"] == "integer" or chooser.random() < 0.5:
            low = int(low)
        if chooser.random() < 0.6:
            schema[chooser.choice(["minimum", "exclusiveMinimum"])] = low
        if chooser.random() < 0.6:
            high = low + chooser.randrange(0, 30) * scale
            schema[chooser.choice(["maximum", "exclusiveMaximum"])] = high
        if chooser.random() < 0.2:
            schema["multipleOf"] = chooser.choice([2, 5, 0.5, 0.25, 7])
        return schema

    def _values(self) -> Schema:
        chooser = self._random
        values = ["a", "b c", "é\n", 1, -2.5, 0, True, None, [1, "x"], {"k": [None]}, 1.0, ""]
        if chooser.random() < 0.3:
            return {"const": chooser.choice(values)}
        return {"enum": chooser.sample(values, chooser.randrange(1, 5))}

    def _object(self, depth: int) -> Schema:
        chooser = self._random
        names = chooser.sample(_NAMES, chooser.randrange(0, 5))
        schema: Schema = {
            "type": "object",
            "properties": {name: self.schema(depth - 1) for name in names},
        }
        if chooser.random() < 0.7:
            required = [name for name in names if chooser.random() < 0.6]
            schema["required"] = [*required, *(["other"] if chooser.random() < 0.1 else [])]
        match chooser.randrange(5):
            case 0 | 1:
                schema["additionalProperties"] = False
            case 2:
                schema["additionalProperties"] = self.schema(depth - 1)
            case 3:
                schema["patternProperties"] = {"^p_[a-z]+$": self.schema(depth - 1)}
        if chooser.random() < 0.1:
            schema[chooser.choice(["minProperties", "maxProperties"])] = chooser.randrange(4)
        if chooser.random() < 0.1:
            del schema["type"]
        return schema

    def _map(self, depth: int) -> Schema:
        chooser = self._random
        schema: Schema = {"type": "object", "additionalProperties": self.schema(depth - 1)}
        if chooser.random() < 0.5:
            names = [{"enum": ["x", "y z"]}, {"pattern": "^[a-z]{1,4}$"}, {"const": "k"}]
            schema["propertyNames"] = chooser.choice(names)
        if chooser.random() < 0.3:
            schema["minProperties"] = 1
        if chooser.random() < 0.3:
            schema["maxProperties"] = chooser.randrange(1, 5)
        return schema

    def _array(self, depth: int) -> Schema:
        chooser = self._random
        schema: Schema = {"type": "array"}
        if chooser.random() < 0.8:
            schema["items"] = self.schema(depth - 1)
        if chooser.random() < 0.3:
            schema["prefixItems"] = [self.schema(depth - 1) for _ in range(chooser.randrange(1, 4))]
            if chooser.random() < 0.4:
                schema["items"] = False
        if chooser.random() < 0.5:
            schema["minItems"] = chooser.randrange(3)
        if chooser.random() < 0.5:
            schema["maxItems"] = chooser.randrange(2, 6)
        return schema

    def _combination(self, depth: int) -> Schema:
        chooser = self._random
        match chooser.randrange(4):
            case 0:
                return {"anyOf": [self.schema(depth - 1) for _ in range(chooser.randrange(1, 4))]}
            case 1:
                return {"oneOf": [self._tagged(depth, tag) for tag in ("one", "two", "three")]}
            case 2:
                return {"oneOf": [self.schema(depth - 1), self._leaf()]}
        whole = {"allOf": [self._object(depth), self._object(depth)]}
        if chooser.random() < 0.5:
            return {**self._object(depth), **whole}
        return whole

    def _tagged(self, depth: int, tag: str) -> Schema:
        schema = self._object(depth)
        properties = schema["properties"]
        assert isinstance(properties, dict)
        return {
            **schema,
            "type": "object",
            "properties": {"tag": {"const": tag}, **properties},
            "required": ["tag"],
        }

    def _reference(self, depth: int) -> Schema:
        if not self._definitions:
            return self._leaf()
        name = self._random.choice(list(self._definitions))
        schema: Schema = {"$ref": f"#/$defs/{name}"}
        if self._random.random() < 0.2:
            schema["description"] = "beside a reference"
        return schema


def _linked_list(value: Schema) -> Schema:
    node = {
        "type": "object",
        "properties": {
            "value": value,
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/n", "$defs": {"n": node}}


def _members(schema: Schema, key: str) -> Schema:
    members = schema.get(key, {})
    assert isinstance(members, dict)
    return members
