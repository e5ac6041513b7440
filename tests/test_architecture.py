"""The layers of the package, and what its sources must not do."""

from __future__ import annotations

import ast
import importlib
import operator
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import textlstm
from textlstm.config import ModelConfig
from textlstm.model_file import write_model
from textlstm.tokenizer import ByteTokenizer

PACKAGE = Path(textlstm.__file__).parent
LAYERS = (
    {"errors", "config", "files", "machine"},
    {"tokenizer", "state", "kernels", "memories"},
    {"corpus", "sampling", "network", "metrics"},
    {"model_file"},
    {"legacy", "engine", "trainer", "autopilot", "registry"},
    {"appraisal", "generation", "view", "report", "export"},
    {"coding", "novelty", "inspection", "scoring", "learning"},
    {"model"},
    {"planning"},
    {"run", "interactive", "server"},
    {"api", "bench", "tune"},
    {"cli"},
    {"__main__"},
)
# Pairs of one layer that are allowed, each for a reason.
EXCEPTIONS = {("config", "errors"), ("machine", "errors")}
MAY_IMPORT_TORCH = {
    "network", "network.losses", "network.recurrence", "legacy", "trainer", "trainer.speed", "trainer.device",
    "trainer.distributed", "trainer.launch", "trainer.optimizer", "engine.torch", "planning", "bench.card",
    "export.modeling_textlstm", "learning.dynamic", "learning.engine",
}  # fmt: skip
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that is imported, `from a import b` as `a.b`, those inside of functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def top(name: str) -> str:
    """The row of the table that a name such as `textlstm.corpus.named.find` belongs to."""
    return name.split(".")[1]


def test_every_module_has_a_layer():
    found = {name.split(".")[0] for name in MODULES} - {""}
    assert found == set(LAYER_OF)


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_go_down(name):
    own = name.split(".")[0]
    for imported, node in imports(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if not imported.startswith("textlstm."):
            continue
        other = top(imported)
        if other in ("__version__", own):
            continue
        assert other in LAYER_OF, f"{name}:{node.lineno} imports {imported}"
        allowed = LAYER_OF[other] < LAYER_OF[own] or (own, other) in EXCEPTIONS
        assert allowed, f"{name}:{node.lineno} imports {imported}, which is not of a lower layer"


def test_package_itself_imports_nothing_at_run_time():
    tree = ast.parse(MODULES[""].read_text(encoding="utf-8"))
    at_run_time = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
    names = [name for node in at_run_time for name, _ in imports(node)]
    assert not [name for name in names if name.startswith("textlstm")]


@pytest.mark.parametrize(("one", "other"), [("trainer", "engine"), ("engine", "trainer")])
def test_trainer_and_engine_do_not_know_each_other(one, other):
    for name, path in MODULES.items():
        if name.split(".")[0] == one:
            for imported, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
                assert not imported.startswith(f"textlstm.{other}"), f"{name} imports {imported}"


def test_torch_is_imported_where_it_may():
    found = set()
    for name, path in MODULES.items():
        for imported, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if imported.split(".")[0] == "torch":
                found.add(name)
    assert found <= MAY_IMPORT_TORCH
    assert {"network", "trainer", "engine.torch"} <= found


FORBIDDEN_NAMES = {"eval", "exec", "__import__", "compile"}
FORBIDDEN_CALLS = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("os", "system"), ("os", "popen"),
    ("marshal", "loads"), ("marshal", "load"), ("yaml", "load"),
}  # fmt: skip
FORBIDDEN_MODULES = {"subprocess", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def offences(source: str) -> list[str]:
    """What in a source could run code that came as data."""
    tree = ast.parse(source)
    found = [f"imports {name}" for name, _ in imports(tree) if name.split(".")[0] in FORBIDDEN_MODULES]
    found += [f"imports {n}" for n, _ in imports(tree) if n in {".".join(pair) for pair in FORBIDDEN_CALLS}]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in FORBIDDEN_NAMES:
            found.append(f"calls {function.id}")
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            pair = function.value.id, function.attr
            weights_only = any(
                k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value is True
                for k in node.keywords
            )
            if pair in FORBIDDEN_CALLS or (pair == ("torch", "load") and not weights_only):
                found.append(f"calls {'.'.join(pair)}")
            if pair[0] in ("np", "numpy") and any(k.arg == "allow_pickle" for k in node.keywords):
                found.append("allows pickle in numpy.load")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_module_runs_data(name):
    assert offences(MODULES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')", "pickle.load(f)", "eval('1')", "def f():\n    exec(x)", "__import__('a')",
        "os.system('ls')", "def f():\n    import subprocess", "from subprocess import run", "torch.load(p)",
        "torch.load(p, weights_only=False)", "from pickle import loads",
    ],
)  # fmt: skip
def test_the_lint_sees_what_is_forbidden(source):
    assert offences(source)


def test_the_lint_lets_the_rest_pass():
    assert offences("torch.load(p, weights_only=True)\njson.loads(x)\nnetwork.eval()\nre.compile('a')") == []


@pytest.mark.parametrize("name", textlstm.__all__)
def test_public_names_exist(name):
    value = getattr(textlstm, name)
    if name != "__version__":
        assert value.__module__ == textlstm._HOME[name]
        assert getattr(importlib.import_module(textlstm._HOME[name]), name) is value


def test_public_names_are_listed():
    assert set(textlstm.__all__) == set(textlstm._HOME) | {"__version__"}
    assert set(textlstm.__all__) <= set(dir(textlstm))
    with pytest.raises(AttributeError, match="no_such_name"):
        operator.attrgetter("no_such_name")(textlstm)


PROGRAM = """
import sys
for argv in {commands!r}:
    sys.argv = ["textlstm", *argv]
    try:
        from textlstm.cli import main
        main()
    except SystemExit as end:
        assert end.code == 0, (argv, end.code)
    else:
        raise AssertionError("main did not exit")
    loaded = {{"torch", "transformers", "matplotlib", "fastapi", "optuna"}} & set(sys.modules)
    assert not loaded, (argv, loaded)
"""


def test_commands_that_need_no_torch_do_not_load_it(tmp_path):
    config = ModelConfig(257, 8, 8, 1)
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in config.tensor_shapes().items()}
    model, text = str(tmp_path / "tiny.safetensors"), tmp_path / "a.txt"
    write_model(model, config, ByteTokenizer(), weights, {"scores": {}})
    text.write_text("A short text.\n")
    commands = [
        ["--help"], ["--version"], ["train", "--help"], ["corpora"], ["info", model],
        ["generate", model, "Once", "--max-tokens", "5", "--seed", "1"], ["score", model, str(text), "--json"],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    program = PROGRAM.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Once" in done.stdout and "version" in done.stdout


def test_all_is_every_extra_but_dev():
    project = tomllib.loads((PACKAGE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    named = everything.removeprefix("textlstm[").removesuffix("]").split(",")
    assert set(named) == set(extras) - {"all", "dev"} and len(named) == len(set(named))
