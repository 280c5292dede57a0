"""The map of files in the docstring of each package: every module, and the first sentence that it says about itself.

`make fmt` writes the maps; the tidy test fails where one is not what it would write, so they are always true. Leaves out
packages of tests, generated code, and packages without modules.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from tests.tidy import tree

_HEAD: Final = "Files:"
_INDENT: Final = 4
_WIDTH: Final = 120
_SENTENCE: Final = re.compile(r".+?(?:[.;](?=\s|$)|$)", re.DOTALL)


def packages() -> dict[str, list[str]]:
    """The `__init__.py` of each package of the product that has modules, with those modules."""
    files = [path for path in tree.written_by_hand(".py") if path.startswith(("libs/", "services/"))]
    files = [path for path in files if "/tests/" not in path and not path.startswith("libs/meshapi/")]
    found: dict[str, list[str]] = {path: [] for path in files if path.endswith("/__init__.py")}
    for path in files:
        pure = PurePosixPath(path)
        if pure.stem == "__init__":
            # A folder is a part of the package above it.
            above = str(pure.parent.parent / "__init__.py")
            if above in found:
                found[above].append(path)
        elif (own := str(pure.parent / "__init__.py")) in found and pure.stem != "__main__":
            found[own].append(path)
    return {path: sorted(modules) for path, modules in found.items() if modules}


def first_sentence(text: str) -> str:
    """What a module says first about itself, on one line; empty without a docstring."""
    head = (ast.get_docstring(ast.parse(text)) or "").split("\n\n", maxsplit=1)[0]
    match = _SENTENCE.match(" ".join(head.split()))
    return match.group().rstrip(".:;") if match else ""


def with_map(text: str, modules: Mapping[str, str]) -> str:
    """The text of an `__init__.py` whose docstring ends with the map. `modules`: sentence by name.

    Raises:
        ValueError: The file has no docstring.
    """
    module = ast.parse(text)
    docstring = ast.get_docstring(module, clean=False)
    if docstring is None:
        raise ValueError("the package has no docstring")
    before = docstring.partition(f"\n{_HEAD}\n")[0].rstrip()
    column = _INDENT + max(len(name) for name in modules) + 2
    lines = [
        textwrap.fill(
            sentence,
            _WIDTH,
            initial_indent=" " * _INDENT + name.ljust(column - _INDENT),
            subsequent_indent=" " * column,
            break_on_hyphens=False,
        )
        for name, sentence in sorted(modules.items())
    ]
    made = "\n".join([before, "", _HEAD, "", *lines, ""])
    rest = text.splitlines()[module.body[0].end_lineno :]
    return "\n".join([f'"""{made}"""', *rest, ""])


def expected(path: str, modules: list[str]) -> str:
    """The text that a package's `__init__.py` should have."""
    return with_map(tree.read(path), {_name(module): first_sentence(tree.read(module)) for module in modules})


def untrue() -> list[str]:
    """A sentence for each package whose map is not what `make fmt` would write."""
    return [
        f"{path}: its map of files is not true; run 'make fmt'"
        for path, modules in packages().items()
        if expected(path, modules) != tree.read(path)
    ]


def _name(path: str) -> str:
    pure = PurePosixPath(path)
    return f"{pure.parent.name}/" if pure.stem == "__init__" else pure.stem


def main() -> int:
    """Writes every map."""
    # Folders first: the packages above quote their first sentence, which the map does not change.
    for path, modules in packages().items():
        text = expected(path, modules)
        if text != tree.read(path):
            (tree.ROOT / path).write_text(text)
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
