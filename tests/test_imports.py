"""The architecture, kept true: who may import whom, and what a file may be.

    scripts -> deployments -> models -> cluster.{types, errors, config}
                     `--------------->  cluster.*

Everything is read from the source with `ast`; only the last tests import anything.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "models", "deployments")
MAX_LINES = 500
FORBIDDEN_STEMS = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}

HTTP = {
    "starlette",
    "fastapi",
    "uvicorn",
    "httpx",
    "aiohttp",
    "requests",
    "openai",
    "telnyx",
    "anthropic",
}

# What the modules below a path may not import. First-party names may be dotted.
FORBIDDEN = {
    "models": {"ray", "redis", "valkey", "deployments", *HTTP},
    "cluster": {"torch", "transformers", "ray", "models", "deployments"},
    "deployments/ingress": {"torch", "transformers", "ray"},
}

# All of `cluster` that the engine's side may know.
MODELS_MAY_USE = {"cluster.types", "cluster.errors", "cluster.config"}

# An import below the top of a file, or one by name at run time: (path, module or "*") -> why.
LATE_IMPORTS: dict[tuple[str, str], str] = {
    ("cluster/cli_cluster.py", "*"): "the check of a cluster file needs Ray's own schema",
    ("cluster/cli_launch.py", "*"): "starting and stopping needs ray, no other command does",
    ("cluster/cli_plan.py", "*"): "the plan's arithmetic is the engine's, and needs no torch",
    ("models/engine/devices.py", "*"): "the sampler's kernels need triton, a CPU does not",
    ("models/quantization/products.py", "*"): "as above, of fp8 activations",
    ("models/engine/model_runner.py", "*"): (
        "importing transformers takes 2.5 s and 150 MB, which models of our own need not pay"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module, as written."""

    module: str
    line: int
    level: int  # dots of a relative import
    is_late: bool  # inside a function


class ImportVisitor(ast.NodeVisitor):
    """Collects the imports of one file and notices which are inside functions."""

    def __init__(self) -> None:
        self.imports: list[Import] = []
        self._function_depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self._add(module, node.lineno, level=node.level)
        for alias in node.names:  # `from models import decoder` imports models.decoder
            if node.level == 0 and is_module(f"{module}.{alias.name}"):
                self._add(f"{module}.{alias.name}", node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        name = node.func.id if isinstance(node.func, ast.Name) else name
        if name in ("import_module", "__import__"):
            self.imports.append(Import(module="*", line=node.lineno, level=0, is_late=True))
        self.generic_visit(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._function_depth += 1
        self.generic_visit(node)
        self._function_depth -= 1

    def _add(self, module: str, line: int, *, level: int = 0) -> None:
        is_late = self._function_depth > 0
        self.imports.append(Import(module=module, line=line, level=level, is_late=is_late))


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    visitor = ImportVisitor()
    visitor.visit(parse(path))
    return tuple(visitor.imports)


def is_within(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def first_party_file(module: str) -> Path | None:
    """The file of a module of ours; None for all else, packages too (they are empty)."""
    if module.split(".", maxsplit=1)[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def chains_to(start: Path, forbidden: set[str]) -> Iterator[str]:
    """Each way from a file over modules of ours to a forbidden one: `a.py -> b.py -> torch`."""
    seen = {start}
    stack = [(start, relative(start))]
    while stack:
        path, chain = stack.pop()
        for item in imports_of(path):
            if is_within(item.module, forbidden):
                yield f"{chain} -> {item.module}"
            target = first_party_file(item.module)
            if target is not None and target not in seen:
                seen.add(target)
                stack.append((target, f"{chain} -> {relative(target)}"))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_module_reaches_what_its_folder_may_not_import(folder: str) -> None:
    violations = [
        chain for path in python_files(folder) for chain in chains_to(path, FORBIDDEN[folder])
    ]
    assert violations == []


def test_models_use_only_the_types_errors_and_config_of_the_cluster() -> None:
    violations = [
        f"{relative(path)}:{item.line} imports {item.module}"
        for path in python_files("models")
        for item in imports_of(path)
        if is_within(item.module, {"cluster"}) and not is_within(item.module, MODELS_MAY_USE)
        if item.module != "cluster"  # `from cluster import types` is judged by cluster.types
    ]
    assert violations == []


def test_only_the_deployments_import_ray() -> None:
    violations = [
        f"{relative(path)}:{item.line}"
        for path in python_files("cluster", "models")
        for item in imports_of(path)
        if is_within(item.module, {"ray"})
    ]
    assert violations == []


def test_nothing_imports_scripts_or_tests() -> None:
    violations = [
        f"{relative(path)}:{item.line} imports {item.module}"
        for path in python_files(*PACKAGES)
        for item in imports_of(path)
        if is_within(item.module, {"scripts", "tests"})
    ]
    assert violations == []


def test_imports_are_absolute() -> None:
    violations = [
        f"{relative(path)}:{item.line}"
        for path in python_files(*PACKAGES, "scripts", "tests")
        for item in imports_of(path)
        if item.level > 0
    ]
    assert violations == []


def test_imports_stand_at_the_top_of_the_file_but_for_the_listed_exceptions() -> None:
    late = {
        (relative(path), item.module)
        for path in python_files(*PACKAGES, "scripts")
        for item in imports_of(path)
        if item.is_late
    }
    assert late - set(LATE_IMPORTS) == set()
    assert set(LATE_IMPORTS) - late == set(), "exceptions that nothing needs any more"


def test_no_module_is_named_after_nothing_in_particular() -> None:
    files = python_files(*PACKAGES, "scripts", "tests")
    assert [relative(path) for path in files if path.stem in FORBIDDEN_STEMS] == []


def test_package_files_are_empty() -> None:
    files = [path for path in python_files(*PACKAGES) if path.name == "__init__.py"]
    assert files, "the packages have package files"
    assert [relative(path) for path in files if path.read_text(encoding="utf-8").strip()] == []


def test_no_file_is_too_long_to_read_at_a_sitting() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*PACKAGES, "scripts", "tests")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_knows() -> None:
    silent = [
        relative(path)
        for path in python_files(*PACKAGES, "scripts")
        if path.name != "__init__.py" and ast.get_docstring(parse(path)) is None
    ]
    assert silent == []


def test_packages_do_not_print() -> None:
    violations = [
        f"{relative(path)}:{node.lineno}"
        for path in python_files(*PACKAGES)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print"
    ]
    assert violations == []


@pytest.mark.parametrize("folder", ["cluster", "deployments/ingress"])
def test_a_process_without_torch_can_import_all_of(folder: str) -> None:
    modules = [
        relative(path).removesuffix(".py").replace("/", ".")
        for path in python_files(folder)
        if path.name != "__init__.py"
    ]
    assert modules
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
