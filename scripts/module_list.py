"""Writes the list of modules in ARCHITECTURE.md from their docstrings, or checks that it is true.

python -m scripts.module_list           # write
python -m scripts.module_list --check   # exit 1 when the page and the code disagree
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
HEADING = "## Modules\n"
PACKAGES = ("cluster", "models", "deployments")


def module_list() -> str:
    """One table per folder: each module and the first line of its docstring."""
    lines: list[str] = []
    for package in PACKAGES:
        folders = sorted({path.parent for path in (ROOT / package).rglob("*.py")})
        for folder in folders:
            modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            if not modules:
                continue
            lines += ["", f"**`{folder.relative_to(ROOT)}/`**", "", "| module | what it knows |"]
            lines.append("|---|---|")
            lines += [f"| `{path.name}` | {_first_line(path)} |" for path in modules]
    return "\n".join(lines) + "\n"


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise SystemExit(f"{path} has no docstring")
    return docstring.splitlines()[0].replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    is_check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    wanted = page[: page.index(HEADING) + len(HEADING)] + module_list()
    if is_check and page != wanted:
        sys.exit("ARCHITECTURE.md is out of date: run `python -m scripts.module_list`")
    if not is_check:
        PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
