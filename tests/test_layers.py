"""Who may import whom. A module imports from earlier layers and from its own; what serves never sees torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "lightning")

#: From the bottom up. A folder stands for all modules in it.
LAYERS = (
    ("zoo.errors",),
    ("zoo.files", "zoo.keys", "zoo.assets"),
    ("zoo.contract",),
    ("zoo.judging", "zoo.registry", "zoo.inputs", "zoo.metrics", "zoo.archives"),
    ("zoo.data",),
    ("zoo.models",),
    ("zoo.release",),
    ("zoo.adversary",),
    ("zoo.guard",),
    ("zoo.evaluation",),
    ("zoo.training",),
    ("zoo.commands",),
    ("zoo.cli",),
    ("zoo.__main__",),
)


def _modules() -> dict[str, Path]:
    found = {}
    for package in ("zoo", "export"):
        for path in (REPOSITORY / package).rglob("*.py"):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(name: str, *, module_level: bool = False) -> set[str]:
    """Modules that a module imports, `if TYPE_CHECKING` apart: that is never run. Submodules count as such."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if module_level and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}: a relative import"
                module = child.module or ""
                names = {f"{module}.{alias.name}" for alias in child.names}
                found.update({one if one in MODULES else module for one in names})
            visit(child)

    visit(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    return found


#: The same of what makes and runs bundles. The bundle is the format only; what loads, builds, verifies and places an
#: engine is one way through: source, writers, verify, make.
EXPORT_LAYERS = (
    ("export.bundle",),
    ("export.tensorrt.package",),  # which TensorRT there is, and what a plan was built for
    ("export.runtime",),
    ("export.source", "export.onnx.graph"),
    ("export.precision",),
    ("export.verify",),
    ("export.make", "export.written"),
    ("export.onnx", "export.openvino", "export.tensorrt", "export.triton", "export.bench"),
    ("export.commands",),
    ("export.cli",),
)


def _layer(name: str, layers: tuple[tuple[str, ...], ...] = LAYERS) -> int:
    """The layer of the longest name that stands for a module."""
    places = [
        (len(member), number)
        for number, members in enumerate(layers)
        for member in members
        if name == member or name.startswith(member + ".")
    ]
    assert places, f"{name} belongs to no layer: add it to LAYERS"
    return max(places)[1]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("zoo.")))
def test_a_module_imports_only_from_its_layer_and_below(name: str) -> None:
    ours = {module for module in _imports(name) if module.startswith("zoo.")}
    above = {module for module in ours if _layer(module) > _layer(name)}
    assert not above, f"{name} reaches up to {sorted(above)}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("export.")))
def test_a_module_of_export_imports_only_from_its_layer_and_below(name: str) -> None:
    ours = {module for module in _imports(name) if module.startswith("export.")}
    above = {module for module in ours if _layer(module, EXPORT_LAYERS) > _layer(name, EXPORT_LAYERS)}
    assert not above, f"{name} reaches up to {sorted(above)}"


#: What Windows does not have: modules, and functions of os, signal and socket.
POSIX_MODULES = {"crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    *("os.fork", "os.geteuid", "os.getuid", "os.posix_fallocate", "os.register_at_fork", "os.sched_getaffinity"),
    *("os.O_DIRECTORY", "os.O_NOFOLLOW", "os.O_NONBLOCK", "os.sysconf", "os.uname", "signal.SIGKILL", "socket.AF_UNIX"),
}


def _posix(source: str) -> set[str]:
    """What a module takes of POSIX when it is imported, but for what it tries."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Try, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update({alias.name for alias in node.names} & POSIX_MODULES)
        elif isinstance(node, ast.ImportFrom):
            found.update({str(node.module)} & POSIX_MODULES)
        elif isinstance(node, ast.Attribute):
            found.update({ast.unparse(node)} & POSIX_NAMES)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def test_nothing_of_posix_is_needed_to_import_a_module() -> None:
    assert {name: needs for name, path in MODULES.items() if (needs := _posix(path.read_text(encoding="utf-8")))} == {}
    assert _posix("import fcntl\nclass A:\n    cores = os.sched_getaffinity(0)") == {"fcntl", "os.sched_getaffinity"}
    assert _posix("try:\n    import fcntl\nexcept ImportError:\n    pass\ndef f():\n    os.fork()") == set()


def test_what_serves_sees_plain_data_judging_and_inputs_alone() -> None:
    serving = [name for name in MODULES if name.startswith(("export.runtime", "export.bundle"))]
    seen = {module for name in serving for module in _imports(name)}
    allowed = ("zoo.contract", "zoo.judging", "zoo.inputs", "zoo.errors", "zoo.files", "zoo.keys", "zoo.assets")
    assert [module for module in sorted(seen) if module.startswith("zoo.") and not module.startswith(allowed)] == []


def _cycles() -> list[list[str]]:
    """Groups of modules that import each other in a circle, imports inside functions counted, by Tarjan's algorithm."""
    graph = {name: sorted(_imports(name) & MODULES.keys() - {name}) for name in MODULES}
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == number[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for name in graph:
        if name not in number:
            visit(name)
    return circles


def test_nothing_imports_in_a_circle_but_the_registry_and_what_it_registers() -> None:
    circles = _cycles()
    others = [c for c in circles if not all(m == "zoo.registry" or m.startswith("zoo.models.catalogue") for m in c)]
    assert others == []


def test_zoo_itself_imports_nothing_when_it_is_imported() -> None:
    roots = {module.split(".")[0] for module in _imports("zoo", module_level=True)}
    assert not roots & {"zoo", "export", *HEAVY}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] == "zoo"))
def test_zoo_never_imports_export(name: str) -> None:
    assert not {module for module in _imports(name) if module.split(".")[0] == "export"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] == "export"))
def test_export_imports_zoo_no_further_than_prediction(name: str) -> None:
    furthest = {"export.cli": "zoo.commands", "export.commands": "zoo.commands", "export.bench": "zoo.evaluation"}
    above = _layer(next((to for of, to in furthest.items() if name.startswith(of)), "zoo.release"))
    assert not {m for m in _imports(name) if m.startswith("zoo.") and _layer(m) > above}


def _reached(start: str) -> set[str]:
    """Everything that importing a module imports, through our own modules and the packages that hold them."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
            waiting += [*_imports(name, module_level=True), *parents]
    return seen


LIGHT = (
    "export.runtime",
    "export.bundle.store",
    "export.cli",
    "zoo.cli",
    "zoo.judging.scorer",
    "zoo.metrics",
    "zoo.registry",
    "zoo.models.catalogue",
)


@pytest.mark.parametrize("name", LIGHT)
def test_what_serves_and_lists_never_imports_torch(name: str) -> None:
    assert not {module for module in _reached(name) if module.split(".")[0] in HEAVY}


def test_the_search_through_imports_finds_torch_where_it_is() -> None:
    assert "torch" in _reached("export.verify.compare")
    assert "transformers" in _reached("zoo.models.clip")


@pytest.mark.parametrize(
    "code",
    [
        "import export.runtime",
        "import zoo.cli; zoo.cli.build_parser()",
        "import zoo; zoo.list_models(); zoo.Policy",
        "import zoo.cli; assert zoo.cli.run(['fit', '--config', 'none.yaml']) == 1",
    ],
)
def test_no_torch_in_a_fresh_interpreter(code: str) -> None:
    check = f"{code}\nimport sys\nprint(sorted(set(sys.modules) & {set(HEAVY)}))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"


#: Calls that write, move or delete by a path. Only zoo/files/writing.py may: it does so as a whole or not at all.
WRITING = {
    *(
        "write_text",
        "write_bytes",
        "touch",
        "mkdir",
        "makedirs",
        "rename",
        "unlink",
        "rmdir",
        "symlink_to",
        "hardlink_to",
    ),
    *(
        "removedirs",
        "renames",
        "link",
        "symlink",
        "truncate",
        "rmtree",
        "copyfile",
        "copy2",
        "copytree",
    ),
    *(
        "save",
        "savefig",
        "save_file",
        "save_model",
        "save_pretrained",
        "savetxt",
        "savez",
        "savez_compressed",
        "tofile",
    ),
    *("serialize_file", "to_csv", "to_json", "to_parquet", "to_pickle", "write_table", "NamedTemporaryFile", "mkstemp"),
}
_PART = "into the folder of a whole that takes its place at the end"
#: What may write by a path all the same, and why.
MAY_WRITE = {
    ("zoo.release.store", "save_file"): _PART,
    ("zoo.training.vision_language", "save_pretrained"): _PART,
    ("export.openvino", "save_model"): _PART,
    ("export.precision.nodes", "save"): f"external data of ONNX goes by path; {_PART}",
    ("export.triton", "save"): _PART,
    ("export.triton", "mkdir"): _PART,
    ("zoo.release.pull", "mkdir"): _PART,
    ("zoo.release.pull", "rmtree"): "a broken model of the cache, or one that is made again",
    ("export.make", "unlink"): "from the folder of a whole: the engine that is built again",
    ("export.bundle.manifest", "unlink"): "the signature of the manifest that was just replaced",
    **dict.fromkeys(
        [("zoo.files.resume", call) for call in ("open", "mkdir", "truncate", "unlink")],
        "lines beside a file that takes its place as a whole at the end",
    ),
    ("export.runtime.onnx", "mkdir"): "onnxruntime keeps TensorRT's engines there",
}


def _writes(source: str) -> set[str]:
    """Names of the calls that write by a path. Open streams are called `stream` or `buffer`."""
    writes = set()
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = [*call.args, *(keyword.value for keyword in call.keywords)]
        if called in ("open", "fdopen", "ZipFile"):
            modes = {word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)}
            if any(len(mode) < 4 and set(mode) & set("wax+") for mode in modes):
                writes.add(called)
        elif called in WRITING and not (called == "save" and isinstance(call.func, ast.Name)):  # a function of ours
            names = {node.id for word in words for node in ast.walk(word) if isinstance(node, ast.Name)}
            if not names & {"stream", "buffer"}:
                writes.add(called)
    return writes


def test_all_files_are_written_by_one_module_whole_or_not_at_all() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items() if name != "zoo.files.writing"}
    writes = {(name, call) for name, source in sources.items() for call in _writes(source)}
    assert sorted(writes - MAY_WRITE.keys()) == [], "use new_file, write_file or new_directory of zoo.files.writing"
    assert sorted(MAY_WRITE.keys() - writes) == [], "no longer needed"


def test_the_search_for_writers_finds_them() -> None:
    lines = (
        "open(path, 'w')",
        "path.open(mode='ab')",
        "p.write_text('')",
        "figure.savefig(path)",
        "np.save(path, array)",
    )
    assert [len(_writes(line)) for line in lines] == [1] * len(lines)
    lines = ("open(path)", "path.open('rb')", "text.replace('a', 'b')", "figure.savefig(stream)", "save(proto, path)")
    assert [_writes(line) for line in lines] == [set()] * len(lines)
