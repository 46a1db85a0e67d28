"""The public names: listed once, importable, and free of what they do not need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import headwater

ROOT = Path(__file__).parents[3]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", headwater.__all__)
def test_each_public_name_can_be_imported_and_is_documented(name: str) -> None:
    value = getattr(headwater, name)
    assert value.__doc__
    assert value.__doc__.strip()


def test_the_names_that_type_checkers_see_are_those_that_are_exported() -> None:
    tree = ast.parse(Path(headwater.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == headwater.__all__ == sorted(headwater._MODULE_OF)
    assert dir(headwater) == headwater.__all__


def test_an_unknown_name_is_an_error_that_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Ranke'; public names: AdapterRegistry"):
        _ = headwater.Ranke


def test_importing_headwater_is_quick_and_imports_nothing_heavy() -> None:
    done = run(
        "import sys, time; began = time.perf_counter(); import headwater; seconds = time.perf_counter() - began\n"
        "heavy = {'torch', 'kafka', 'numpy', 'pydantic', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 0.1, seconds\n"
    )
    assert done.returncode == 0, done.stderr


def test_clients_and_events_need_neither_torch_nor_numpy() -> None:
    done = run(
        "import sys\n"
        "from headwater import Click, EventProducer, HeadwaterClient, Item, KafkaConnection, Settings\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'prometheus_client', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_name_whose_extra_is_missing_names_the_extra() -> None:
    done = run(
        "import sys; sys.modules['torch'] = None\n"
        "import headwater\n"
        "try:\n    headwater.Learner\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert "pip install 'headwater[updater]'" in done.stdout, done.stderr


def test_nothing_but_the_names_lives_in_the_package() -> None:
    assert {path.name for path in Path(headwater.__file__).parent.glob("*.py")} == {"__init__.py"}
