"""The faults of `mutations.py` still fit the library: each can be put in and names tests that exist. None is run."""

import ast
import collections
import functools
from pathlib import Path

import mutations
import pytest

import flax_srnn

HOUSE, TESTS = Path(flax_srnn.__file__).parent, Path(__file__).parent


@functools.cache
def functions(file):
    """The names of the tests in a file."""
    return {node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)}


@functools.cache
def dumped(text):
    return ast.dump(ast.parse(text))


def test_names_are_unique():
    names = collections.Counter(mutation.name for mutation in mutations.MUTATIONS)
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) >= 70


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits(mutation):
    text = (HOUSE / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert ast.dump(ast.parse(mutation.applied(text))) != dumped(text), "only the layout changes"
    assert mutation.tests
    for test in mutation.tests:
        file, *names = test.split("::")
        assert file.startswith("test_")
        assert {name.split("[")[0] for name in names} <= functions(file)
