"""robots.txt, as RFC 9309 has it: groups, the longest match, `*` and `$`; and Crawl-delay."""

import re
from dataclasses import dataclass, field
from typing import Self

#: What a site's rules call us.
PRODUCT = "shoalcrawler"
USER_AGENT = "ShoalCrawler/1.0 (self-hosted; reads pages for a search that their readers asked for)"
MAX_ROBOTS_BYTES = 512 * 1024
_MAX_RULES = 5000


@dataclass(frozen=True, slots=True)
class _Rule:
    parts: tuple[str, ...]  # what stands between the stars
    is_whole: bool  # it ends with `$`
    length: int
    is_allowed: bool

    @classmethod
    def parse(cls, value: str, *, is_allowed: bool) -> Self:
        is_whole = value.endswith("$")
        parts = value.removesuffix("$").split("*")
        return cls(tuple(parts), is_whole, len(value), is_allowed)

    def matches(self, target: str) -> bool:
        """Each part at its first place: that leaves most for those behind it."""
        if not target.startswith(self.parts[0]):
            return False
        position = len(self.parts[0])
        if len(self.parts) == 1:
            return not self.is_whole or position == len(target)
        for part in self.parts[1:-1]:
            place = target.find(part, position)
            if place < 0:
                return False
            position = place + len(part)
        last = self.parts[-1]
        if self.is_whole:
            return target.endswith(last) and position <= len(target) - len(last)
        return target.find(last, position) >= 0


@dataclass(slots=True)
class _Group:
    products: set[str] = field(default_factory=set)
    rules: list[_Rule] = field(default_factory=list)
    crawl_delay_s: float = 0.0
    is_open: bool = True  # more products may join


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotsRules:
    """What a host asks of us."""

    crawl_delay_s: float = 0.0
    rules: tuple[_Rule, ...] = ()

    @classmethod
    def allow_all(cls) -> Self:
        """There is no robots.txt."""
        return cls()

    @classmethod
    def parse(cls, text: str) -> Self:
        groups = _groups(text)
        ours = [group for group in groups if PRODUCT in group.products]
        chosen = ours or [group for group in groups if "*" in group.products]
        return cls(
            crawl_delay_s=max((group.crawl_delay_s for group in chosen), default=0.0),
            rules=tuple(rule for group in chosen for rule in group.rules),
        )

    def allows(self, target: str) -> bool:
        """Whether a path with its query may be fetched; of rules of one length, the kinder."""
        matching = [rule for rule in self.rules if rule.matches(target)]
        best = max(matching, key=lambda rule: (rule.length, rule.is_allowed), default=None)
        return best is None or best.is_allowed


def _groups(text: str) -> list[_Group]:
    groups: list[_Group] = []
    num_rules = 0
    for line in text.lstrip("\ufeff").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            if not groups or not groups[-1].is_open:
                groups.append(_Group())
            groups[-1].products.add(_product(value))
        elif groups and name in ("allow", "disallow"):
            groups[-1].is_open = False
            num_rules += 1
            if value and num_rules <= _MAX_RULES:
                groups[-1].rules.append(_Rule.parse(value, is_allowed=name == "allow"))
        elif groups and name == "crawl-delay":
            groups[-1].is_open = False
            groups[-1].crawl_delay_s = _seconds(value)
    return groups


def _product(value: str) -> str:
    return "*" if value.startswith("*") else re.split(r"[/\s]", value.lower(), maxsplit=1)[0]


def _seconds(value: str) -> float:
    try:
        return max(0.0, min(float(value), 86_400.0))
    except ValueError:
        return 0.0
