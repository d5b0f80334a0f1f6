"""A JSON Schema checked keyword by keyword, and written again in what the back end enforces.

The back end accepts some keywords without enforcing them, resolves some references wrongly and
reports errors without a place. So nothing reaches it as the client wrote it: every schema that can
be reached from the root is checked here and rewritten with the enforced keywords only, references
become `#/$defs/0`, `#/$defs/1`, …, annotations are left out, and whatever cannot be honoured is
refused by the keyword's name and its JSON pointer.

Follows JSON Schema 2020-12, and drafts 4 to 2019-09 when `$schema` names them. Unknown keywords
and unknown formats are annotations, as the specification says.
"""

import json
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from models.grammar.errors import GrammarError
from models.grammar.json_schema_one_of import ALL_TYPES, are_exclusive
from models.grammar.json_schema_values import (
    BACK_END_FORMATS,
    FORMAT_PATTERNS,
    REFUSED_FORMATS,
    check_constant,
    exact_number,
    inward_bound,
    next_inside,
    pointer_part,
)
from models.grammar.regex_dialect import RegexError, literal_regex, translate_regex

MAX_DEPTH = 60
MAX_SCHEMAS = 40_000

# What `$schema` may say, to whether `items` may be a list and `prefixItems` is unknown.
_IS_OLD_DRAFT = {
    "https://json-schema.org/draft/2020-12/schema": False,
    "https://json-schema.org/draft/2019-09/schema": True,
    "http://json-schema.org/draft-07/schema": True,
    "http://json-schema.org/draft-06/schema": True,
    "http://json-schema.org/draft-04/schema": True,
}
# Keywords that would change the set of valid documents and that nothing here enforces, to the
# values that change nothing.
_REFUSED: dict[str, tuple[object, ...]] = {
    "$dynamicRef": (),
    "$recursiveRef": (),
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "disallow": (),
    "divisibleBy": (),
    "extends": (),
    "if": (),
    "not": (),
    "unevaluatedItems": ({}, True),
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")

Schema = dict[str, object]
PatternCheck = Callable[[str], str | None]


def check_schema(text: str, *, check_pattern: PatternCheck) -> Schema | bool:
    """Parse, check and rewrite a schema.

    `check_pattern` gets a translated regular expression and gives the back end's complaint.

    Raises:
        GrammarError: names the JSON pointer, the keyword and the reason.
    """
    root = parse_json(text, "the schema")
    try:
        return _SchemaCheck(root, check_pattern).run()
    except RecursionError as error:
        raise GrammarError("the schema is nested too deeply") from error


def parse_json(text: str, what: str) -> object:
    """Strict JSON: no NaN, no half surrogate pairs.

    Raises:
        GrammarError: it is not JSON.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise GrammarError(f"{what} is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise GrammarError(f"{what} has half of a surrogate pair in a string") from error
    except ValueError as error:
        raise GrammarError(f"{what} is not valid JSON: {error}") from error
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


class _SchemaCheck:
    def __init__(self, root: object, check_pattern: PatternCheck) -> None:
        self._root = root
        self._check_pattern = check_pattern
        self._names: dict[str, str] = {}  # JSON pointer of a referenced schema -> name in $defs
        self._taken: set[str] = set()
        self._pending: list[str] = []
        self._num_schemas = 0
        self._root_id = ""
        self._is_old_draft = False

    def run(self) -> Schema | bool:
        if isinstance(self._root, dict):
            self._read_identity(self._root)
        rewritten = self._schema(self._root, "#", 0)
        definitions: Schema = {}
        while self._pending:
            pointer = self._pending.pop()
            definitions[self._names[pointer]] = self._schema(self._find(pointer), pointer, 0)
        if definitions and isinstance(rewritten, dict):
            rewritten["$defs"] = definitions
        return rewritten

    def _read_identity(self, root: Mapping[str, object]) -> None:
        draft = root.get("$schema", "https://json-schema.org/draft/2020-12/schema")
        name = draft.rstrip("#") if isinstance(draft, str) else draft
        if not isinstance(name, str) or name not in _IS_OLD_DRAFT:
            raise GrammarError(f"#/$schema: {str(draft)[:80]!r} is not a known draft")
        self._is_old_draft = _IS_OLD_DRAFT[name]
        identity = root.get("$id", root.get("id"))
        self._root_id = identity.rstrip("#") if isinstance(identity, str) else ""

    def _schema(self, node: object, place: str, depth: int) -> Schema | bool:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise GrammarError(f"{place}: a schema is an object, true or false")
        if depth > MAX_DEPTH:
            raise GrammarError(f"{place}: schemas are nested more than {MAX_DEPTH} deep")
        self._num_schemas += 1
        if self._num_schemas > MAX_SCHEMAS:
            raise GrammarError(f"{place}: the schema has more than {MAX_SCHEMAS} parts")
        self._refuse_unsupported(node, place)
        # Applicators come last: the back end merges keywords in the order in which they stand.
        out: Schema = {}
        self._write_types(node, place, out)
        self._write_numbers(node, place, out)
        self._write_counts(node, place, out)
        self._write_string(node, place, out)
        self._write_array(node, place, depth, out)
        self._write_object(node, place, depth, out)
        self._write_applicators(node, place, depth, out)
        return out

    def _refuse_unsupported(self, node: Schema, place: str) -> None:
        for keyword in _REFUSED.keys() & node.keys():
            if node[keyword] not in _REFUSED[keyword]:
                raise _unsupported(place, keyword)
        if place != "#" and isinstance(node.get("$id"), str):
            raise _unsupported(place, "$id", "only the root may have one")
        if node.get("uniqueItems") is True:
            most = node.get("maxItems")
            if not (isinstance(most, int) and most <= 1):
                raise _unsupported(place, "uniqueItems")
        if self._is_old_draft and "prefixItems" in node:
            raise _unsupported(place, "prefixItems", "the draft that $schema names has no such")
        if not self._is_old_draft and "additionalItems" in node:
            raise _unsupported(place, "additionalItems", "use prefixItems and items")

    def _write_types(self, node: Schema, place: str, out: Schema) -> None:
        if "type" in node:
            named = node["type"]
            types = named if isinstance(named, list) else [named]
            if not types or not all(isinstance(t, str) and t in ALL_TYPES for t in types):
                raise GrammarError(f"{place}/type: {str(named)[:80]!r} is not a JSON type")
            out["type"] = named

    def _write_numbers(self, node: Schema, place: str, out: Schema) -> None:
        for side, is_lower in (("inimum", True), ("aximum", False)):
            bound, exclusive = f"m{side}", f"exclusiveM{side}"
            if bound in node:
                number = _number(node, bound, place)
                out[bound] = inward_bound(number, f"{place}/{bound}", is_lower=is_lower)
            if isinstance(node.get(exclusive), bool):  # draft 4
                if not self._is_old_draft:
                    raise GrammarError(f"{place}/{exclusive}: must be a number")
                if node[exclusive] and bound in out:
                    out[exclusive] = out.pop(bound)
            elif exclusive in node:
                number = _number(node, exclusive, place)
                out[exclusive] = inward_bound(number, f"{place}/{exclusive}", is_lower=is_lower)
        _include_bounds(out)
        if "multipleOf" in node:
            number = exact_number(_number(node, "multipleOf", place), f"{place}/multipleOf")
            if number <= 0:
                raise GrammarError(f"{place}/multipleOf: must be greater than 0")
            out["multipleOf"] = number

    def _write_counts(self, node: Schema, place: str, out: Schema) -> None:
        for keyword in _COUNTS:
            if keyword not in node:
                continue
            count = node[keyword]
            if isinstance(count, float) and count.is_integer():
                count = int(count)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise GrammarError(f"{place}/{keyword}: must be a whole number, 0 or more")
            out[keyword] = count

    def _write_string(self, node: Schema, place: str, out: Schema) -> None:
        if "pattern" in node:
            out["pattern"] = self._pattern(node["pattern"], f"{place}/pattern")
        if "format" not in node:
            return
        name = node["format"]
        if name in REFUSED_FORMATS:
            raise _unsupported(place, "format", f"{name!r} cannot be enforced")
        if name in BACK_END_FORMATS:
            out["format"] = name
        elif isinstance(name, str) and name in FORMAT_PATTERNS:
            written = f"^(?:{translate_regex(FORMAT_PATTERNS[name])})$"
            if "pattern" in out:
                out["allOf"] = [{"pattern": written}]
            else:
                out["pattern"] = written

    def _pattern(self, pattern: object, place: str) -> str:
        if not isinstance(pattern, str):
            raise GrammarError(f"{place}: must be a string")
        try:
            translated = translate_regex(pattern)
        except RegexError as error:
            raise GrammarError(f"{place}: {error}") from error
        if complaint := self._check_pattern(translated):
            raise GrammarError(f"{place}: {complaint}")
        return translated

    def _write_array(self, node: Schema, place: str, depth: int, out: Schema) -> None:
        items, rest = node.get("items"), "items"
        prefix, prefix_name = node.get("prefixItems"), "prefixItems"
        if isinstance(items, list):
            if not self._is_old_draft:
                raise GrammarError(f"{place}/items: must be a schema; a list is `prefixItems`")
            prefix, prefix_name = items, "items"
            items, rest = node.get("additionalItems"), "additionalItems"
        if prefix is not None:
            if not isinstance(prefix, list):
                raise GrammarError(f"{place}/{prefix_name}: must be a list of schemas")
            out["prefixItems"] = [
                self._schema(item, f"{place}/{prefix_name}/{index}", depth + 1)
                for index, item in enumerate(prefix)
            ]
        if items is not None:
            out["items"] = self._schema(items, f"{place}/{rest}", depth + 1)

    def _write_object(self, node: Schema, place: str, depth: int, out: Schema) -> None:
        for keyword in ("properties", "patternProperties"):
            if keyword in node:
                members = _members(node, keyword, place)
                out[keyword] = {
                    self._key(keyword, key, place): self._schema(
                        member, f"{place}/{keyword}/{pointer_part(key)}", depth + 1
                    )
                    for key, member in members.items()
                }
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise GrammarError(f"{place}/required: must be a list of strings")
        if required:
            out["required"] = list(dict.fromkeys(required))
        self._write_additional(node, place, depth, out)
        self._write_property_names(node, place, out)
        self._check_num_properties(place, out)

    def _key(self, keyword: str, key: str, place: str) -> str:
        if keyword == "properties":
            return key
        return self._pattern(key, f"{place}/{keyword}/{pointer_part(key)}")

    def _write_additional(self, node: Schema, place: str, depth: int, out: Schema) -> None:
        keyword = "additionalProperties"
        unevaluated = node.get("unevaluatedProperties", True)
        if unevaluated not in (True, {}):
            if keyword in node or {"$ref", "allOf", "anyOf", "oneOf"} & set(node):
                raise _unsupported(place, "unevaluatedProperties", "use additionalProperties")
            keyword = "unevaluatedProperties"
        if keyword in node:
            value = self._schema(node[keyword], f"{place}/{keyword}", depth + 1)
            out["additionalProperties"] = value

    def _write_property_names(self, node: Schema, place: str, out: Schema) -> None:
        """A condition on free-form keys becomes a pattern of keys."""
        if "propertyNames" not in node:
            return
        names = self._resolved(node["propertyNames"])
        if not isinstance(names, dict):
            raise _unsupported(place, "propertyNames")
        asserting = {k for k in names if k not in ("title", "description", "default", "examples")}
        if not asserting or (asserting == {"type"} and names["type"] == "string"):
            return
        where = f"{place}/propertyNames"
        if "properties" in out or "patternProperties" in out or "required" in out:
            raise _unsupported(place, "propertyNames", "beside named properties")
        if asserting - {"type"} == {"pattern"}:
            key = self._pattern(names["pattern"], f"{where}/pattern")
        elif asserting - {"type"} in ({"enum"}, {"const"}):
            values = names["enum"] if "enum" in names else [names["const"]]
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise _unsupported(place, "propertyNames", "with values that are not strings")
            key = f"^(?:{'|'.join(map(literal_regex, values))})$"
        else:
            raise _unsupported(place, "propertyNames", "only pattern, enum and const are")
        out["patternProperties"] = {key: out.get("additionalProperties", True)}
        out["additionalProperties"] = False

    def _check_num_properties(self, place: str, out: Schema) -> None:
        """Free-form keys may repeat, and a repeated key counts once: a minimum above 1 would not
        be kept. With optional properties the back end counts no further than one."""
        required, properties = out.get("required", []), out.get("properties", {})
        assert isinstance(required, list)
        assert isinstance(properties, dict)
        least, most = out.get("minProperties", 0), out.get("maxProperties")
        assert isinstance(least, int)
        if least <= len(required):
            out.pop("minProperties", None)
        elif least > len(required) + 1:
            raise _unsupported(place, "minProperties", "above 1 (more than what is required)")
        if not properties.keys() - set(required):
            return
        is_closed = out.get("additionalProperties") is False and "patternProperties" not in out
        if most is not None and not (is_closed and most == len(required) + 1):
            raise _unsupported(place, "maxProperties", "beside optional properties")
        if "minProperties" in out and not is_closed:
            raise _unsupported(place, "minProperties", "beside optional properties")

    def _write_applicators(self, node: Schema, place: str, depth: int, out: Schema) -> None:
        if "enum" in node:
            values = node["enum"]
            if not isinstance(values, list) or not values:
                raise GrammarError(f"{place}/enum: must be a list with at least one value")
            check_constant(values, f"{place}/enum")
            out["enum"] = values
        if "const" in node:
            check_constant(node["const"], f"{place}/const")
            out["const"] = node["const"]
        if "$ref" in node:
            out["$ref"] = self._reference(node["$ref"], f"{place}/$ref")
        self._write_combinations(node, place, depth, out)

    def _write_combinations(self, node: Schema, place: str, depth: int, out: Schema) -> None:
        """`allOf` as it is; `anyOf` and `oneOf` as `anyOf`, inside of `allOf` when both occur."""
        conjuncts = out.pop("allOf", [])
        assert isinstance(conjuncts, list)
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword not in node:
                continue
            options = node[keyword]
            if not isinstance(options, list) or not options:
                raise GrammarError(f"{place}/{keyword}: must be a list with at least one schema")
            written = [
                self._schema(option, f"{place}/{keyword}/{index}", depth + 1)
                for index, option in enumerate(options)
            ]
            if keyword == "oneOf" and not are_exclusive(options, self._resolve):
                raise _unsupported(
                    place, "oneOf", "the alternatives are not provably exclusive; use anyOf"
                )
            conjuncts += written if keyword == "allOf" else [{"anyOf": written}]
        if conjuncts:
            out["allOf"] = conjuncts

    def _reference(self, reference: object, place: str) -> str:
        pointer = self._pointer(reference, place)
        if pointer not in self._names:
            self._find(pointer)
            # The client's own name where there is one: the back end may name it in an error.
            name = "".join(c for c in pointer.rpartition("/")[2] if c.isalnum() or c in "_-")[:60]
            if name in self._taken:
                name = f"{name}.{len(self._names)}"
            self._taken.add(name)
            self._names[pointer] = name
            self._pending.append(pointer)
        return f"#/$defs/{self._names[pointer]}"

    def _pointer(self, reference: object, place: str) -> str:
        if not isinstance(reference, str):
            raise GrammarError(f"{place}: must be a string")
        if self._root_id and reference.startswith(f"{self._root_id}#"):
            reference = reference.removeprefix(self._root_id)
        if reference in ("#", "#/"):
            return "#"
        if not reference.startswith("#/"):
            raise GrammarError(
                f"{place}: {reference[:80]!r} is not supported; only references within the "
                "schema (#/…) are"
            )
        return unquote(reference)

    def _find(self, pointer: str) -> object:
        node = self._root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                raise GrammarError(f"$ref {pointer[:80]!r} leads nowhere")
        return node

    def _resolve(self, reference: str) -> object:
        return self._find(self._pointer(reference, "$ref"))

    def _resolved(self, node: object) -> object:
        if isinstance(node, dict) and isinstance(node.get("$ref"), str):
            return self._resolve(node["$ref"])
        return node


def _unsupported(place: str, keyword: str, reason: str = "") -> GrammarError:
    detail = f" ({reason})" if reason else ""
    return GrammarError(f"{place}/{keyword}: `{keyword}` is not supported{detail}")


def _number(node: Schema, keyword: str, place: str) -> int | float:
    value = node[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GrammarError(f"{place}/{keyword}: must be a number")
    return value


def _include_bounds(out: Schema) -> None:
    """Replace exclusive bounds by inclusive ones; of integers, which are exact, only those of 0."""
    for inclusive, exclusive, is_lower in (
        ("minimum", "exclusiveMinimum", True),
        ("maximum", "exclusiveMaximum", False),
    ):
        if exclusive not in out:
            continue
        bound = _number(out, exclusive, "#")
        if bound != 0 and out.get("type") == "integer":
            continue
        bounds = [next_inside(bound, is_lower=is_lower)]
        if inclusive in out:
            bounds.append(_number(out, inclusive, "#"))
        del out[exclusive]
        out[inclusive] = max(bounds) if is_lower else min(bounds)


def _members(node: Schema, keyword: str, place: str) -> dict[str, object]:
    members = node[keyword]
    if not isinstance(members, dict):
        raise GrammarError(f"{place}/{keyword}: must be an object")
    return members
