"""Every code block of README.md and docs/ runs, from the top of its page to the bottom, once for each of its tabs.

Python runs in this process, commands in a shell, all in one empty folder. docs/extending has tests of its own.
"""

import importlib.util
import re
import subprocess

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.errors import FlaxError
from pages import DOCS, ROOT, fences, program, tabs

import flax_srnn.nnx as fnnx
from flax_srnn import SimpleRNN

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
RUN = {name: text for name, text in PAGES.items() if not name.startswith("docs/extending/")}
NEEDS = {"PyTorch": "torch"}
INSTALLS = re.compile(r"^(python -m )?pip ")
"""Commands that .ci/run types: those of the README's Quick start."""
ELSEWHERE = {
    "docs/training.md": "commands for several hosts, and text that a model wrote",
    "docs/accelerators.md": "a benchmark of minutes for the TPU's compiler, and one that needs a GPU",
}
"""Pages with fences of the language `text`, and why these do not run."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "tab"), [pytest.param(page, tab, id=f"{page}-{tab}") for page, text in RUN.items() for tab in tabs(text)]
)
# What Keras and torch warn of when they are used as their users do is not ours to choose.
@pytest.mark.filterwarnings("default")
def test_the_program_of_a_page_runs(page, tab, tmp_path, monkeypatch):
    if tab in NEEDS and importlib.util.find_spec(NEEDS[tab]) is None:
        pytest.skip(f"{NEEDS[tab]} is not installed")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for fence in program(RUN[page], tab):
        if fence.language == "python":
            # Its line is that of the page in what an error shows. Readers have JAX's default about ranks, not conftest's.
            code = compile("\n" * fence.line + fence.text, ROOT / page, "exec")
            with jax.numpy_rank_promotion("allow"):
                exec(code, namespace)
        elif fence.language == "bash" and not INSTALLS.match(fence.text):
            subprocess.run(["bash", "-euo", "pipefail", "-c", fence.text], check=True, timeout=300)


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_code_that_runs(page):
    for fence in fences(PAGES[page]):
        assert fence.language in ({"python", "toml", "diff"} if page not in RUN else {"python", "bash", "text"}), fence
        assert fence.language != "text" or page in ELSEWHERE, fence


@pytest.mark.parametrize("page", RUN)
def test_every_example_of_a_layer_is_there_for_both_families(page):
    """Where one tab is, the other is, and a fence outside of tabs makes no layer; the README has one of each."""
    labels = tabs(RUN[page])
    assert ("Linen" in labels) == ("NNX" in labels)
    makes_layer = re.compile(r"(?<!layers\.)\b(SimpleRNN|SimpleRNNCell|RNN|StackedRNNCells|Bidirectional)\(")
    for fence in fences(RUN[page]):
        assert fence.tab or page == "README.md" or not makes_layer.search(fence.text), fence


def test_installations_are_those_of_ci():
    commands = [fence for text in RUN.values() for fence in fences(text) if INSTALLS.match(fence.text)]
    assert len(commands) == 2


def test_readme_is_short():
    assert PAGES["README.md"].count("\n") < 120


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_of_the_repository(page):
    """As they are followed where the repository is read; `mkdocs build --strict` checks those of the site, with anchors."""
    targets = re.findall(r"\]\(([^)\s#]+\.(?:md|ipynb|py))[^)]*\)", PAGES[page])
    assert targets or page != "README.md"
    assert [target for target in targets if not ((ROOT / page).parent / target).is_file()] == []


LAYER, X = SimpleRNN(4), np.ones((2, 5, 3), np.float32)
VARIABLES = {"params": {"kernel": np.ones((3, 4)), "recurrent_kernel": np.eye(4), "bias": np.zeros(4)}}
FIRST_ERRORS = {
    "Can't call compact methods on unbound modules": lambda: LAYER(X),
    '"SimpleRNN" object has no attribute "fit"': lambda: LAYER.fit(X),
    "RNGs should be of shape (2,) or PRNGKey": lambda: LAYER.init(X),
    "'numpy.ndarray' object has no attribute 'items'": lambda: LAYER.apply(X),
    "The first argument passed to an apply function should be a dictionary of collections": lambda: LAYER.apply(
        VARIABLES["params"], X
    ),
    "got an unexpected keyword argument 'hidden_size'": lambda: SimpleRNN(4, hidden_size=3),
    "`activation` must be a Keras name": lambda: SimpleRNN(3, 8),
    "missing 1 required positional argument: 'units'": lambda: fnnx.SimpleRNN(8),
    'Parameter "deterministic" must be passed': lambda: nn.Dropout(0.2).apply({}, X),
    "got an unexpected keyword argument 'train'": lambda: LAYER.apply(VARIABLES, X, train=True),
}


@pytest.mark.parametrize("words", FIRST_ERRORS)
def test_the_errors_that_are_explained_are_those_that_come(words):
    assert words in PAGES["docs/errors.md"]
    with pytest.raises((AttributeError, TypeError, ValueError, FlaxError)) as caught:
        FIRST_ERRORS[words]()
    assert words in str(caught.value)
