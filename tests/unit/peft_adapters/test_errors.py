"""One error tree: every exception class of peft_adapters derives from the root and is documented in errors.py."""

import ast
from pathlib import Path

import pytest

import peft_adapters
from peft_adapters import errors

ROOT = Path(peft_adapters.__file__).parent
SIGNALS = {"PrefixDoneError"}  # ends a forward pass early; caught where it is raised
TREE = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, BaseException)}


def exception_classes() -> dict[str, Path]:
    """Names of all classes in the package that are named as errors, and the module of each."""
    return {
        node.name: path
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception"))
    }


def test_every_error_class_is_in_the_tree() -> None:
    assert {name: path for name, path in exception_classes().items() if name not in SIGNALS} == dict.fromkeys(
        TREE, ROOT / "errors.py"
    )


@pytest.mark.parametrize("name", TREE)
def test_every_error_derives_from_the_root_and_is_documented_under_its_base(name: str) -> None:
    kind = TREE[name]
    assert issubclass(kind, errors.HeadwaterModelError)
    lines = (errors.__doc__ or "").split("```")[1].splitlines()
    depth = {line.replace("─", " ").replace("│", " ").replace("├", " ").replace("└", " ").split()[0]: _depth(line)
             for line in lines if line.strip()}  # fmt: skip
    assert depth[name] == len([base for base in kind.__mro__ if base.__name__ in TREE]) - 1


def _depth(line: str) -> int:
    return next(at for at, letter in enumerate(line) if letter.isalpha()) // 4
