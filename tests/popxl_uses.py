"""Finds what a source file uses of PopXL that the API lists do not have.

The lists (runtime/tests/api/*.json) hold the signatures of PopXL and its add-ons. A file is parsed,
never imported. Names are followed through imports, assignments, annotations and return types as far
as those tell a type; an attribute of something of unknown type is not judged.
"""

from __future__ import annotations

import ast
import builtins
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOTS = ("popxl", "popxl_addons", "popart", "popdist")

# Attributes of a tree are the names of its leaves.
TREES = ("DotTree", "NamedTensors", "NamedVariableFactories", "NamedRemoteBuffers")
TREES += ("NamedReplicaGrouping", "NamedTensorData", "InputStreams", "OutputStreams")

# The one private handle that every PopXL application needs, and what may be set there.
HANDLES = {"popxl.Ir._pb_ir": {"getSessionOptions": "SessionOptions"}}

# What applications use of the two thin packages, which have no list, and of the session's options.
THIN = {
    *("popart.DeviceInfo", "popart.session.OutOfMemoryException", "popart.versionString"),
    *("popdist.getInstanceIndex", "popdist.getNumInstances", "popdist.isPopdistEnvSet"),
}
THIN_MODULES = {"popart.session"}
SESSION_OPTIONS = {"enableStochasticRounding", "engineOptions", "numIOTiles", "partialsTypeMatMuls"}

# Answers of these are instances of the class named by their own annotation; a type variable is not.
_WRAPPERS = ("Optional", "Union", "List", "Dict", "Tuple", "Set", "Iterable", "Literal")


@dataclass(frozen=True)
class Known:
    """What an expression is: a module, symbol, instance of a listed class, or handle."""

    kind: str
    name: str


@dataclass
class Own:
    """A class of the file under test: its API base, and the attributes that it defines itself."""

    base: str | None
    attributes: dict[str, Known | None] = field(default_factory=dict)


class ApiIndex:
    """The two lists, by every name under which a program can import something."""

    def __init__(self, popxl_json: Path, addons_json: Path):
        popxl = json.loads(popxl_json.read_text())
        addons = json.loads(addons_json.read_text())
        self.symbols: dict[str, dict[str, Any]] = {**popxl["symbols"], **addons["symbols"]}
        self.exports: dict[str, dict[str, str]] = {**popxl["exports"], **addons["exports"]}
        self.modules = {*popxl["modules"], *addons["modules"], "popart", "popdist"}
        self.alias = {
            other: name
            for name, record in self.symbols.items()
            for other in (*record.get("also_importable_as", ()), *record.get("reexported_as", ()))
        }
        self.classes = {
            name.rsplit(".", 1)[-1]: name
            for name, record in self.symbols.items()
            if record["kind"] == "class"
        }

    def canonical(self, name: str) -> str | None:
        """The key of a symbol under any of its import names."""
        name = self.alias.get(name, name)
        record = self.symbols.get(name)
        if record is None:
            return None
        return self.canonical(record["target"]) if "target" in record else name

    def member_of_module(self, module: str, attribute: str) -> Known | None:
        """What `module.attribute` is; None if the lists do not have it."""
        full = f"{module}.{attribute}"
        exported = self.exports.get(module, {}).get(attribute, "")
        is_module = full in self.modules or full in THIN_MODULES
        if exported == f"module:{full}" or (is_module and not exported):
            return Known("module", full)
        if full in THIN or exported.startswith("constant:"):
            return Known("symbol", full)
        found = self.canonical(full) or (self.canonical(exported) if exported else None)
        return Known("symbol", found) if found else None

    def member_of_class(self, cls: str, attribute: str) -> Known | None:
        """What an instance of a class has under a name, bases included; None if nothing."""
        record = self.symbols[cls]
        listed = {*record.get("members", ()), *record.get("enum_members", ())}
        listed |= set(record.get("instance_attributes", ()))
        listed |= set(record.get("instance_attributes_set_in_init", ()))
        plain = [*record.get("class_attributes", ()), *record.get("attributes", ())]
        listed |= {a["name"] if isinstance(a, dict) else a for a in plain}
        if attribute in listed:
            return Known("member", f"{cls}.{attribute}")
        for base in record.get("bases", ()):
            parent = self.class_named(base)
            parent = parent if parent != cls else None
            found = self.member_of_class(parent, attribute) if parent else None
            if found:
                return found
        return None

    def is_tree(self, cls: str) -> bool:
        """Whether attributes of a class's instances are free names."""
        return cls.rsplit(".", 1)[-1] in TREES

    def class_named(self, text: str | None) -> str | None:
        """The listed class that an annotation such as ``popxl.Tensor`` or ``'Graph'`` means."""
        if not text or text.startswith(_WRAPPERS):
            return None
        name = text.strip("'\"").split("[")[0]
        full = self.canonical(name.replace("addons.", "popxl_addons."))
        return full or self.classes.get(name.rsplit(".", 1)[-1])

    def parameters(self, name: str) -> list[dict[str, Any]] | None:
        """Parameters of a function, method or class; None where the lists do not tell."""
        record = self.symbols.get(name)
        if record is None:
            return None
        if record["kind"] != "class":
            return record.get("params")
        own = record.get("init_params")
        if own is None:
            own = self.symbols.get(f"{name}.__init__", {}).get("params")
        return own


class Finder(ast.NodeVisitor):
    """Walks one file.

    Attributes:
        problems: ``line: message`` for every use that the lists lack.
        followed: names of the uses that they have.
    """

    def __init__(self, api: ApiIndex):
        self.api = api
        self.problems: list[str] = []
        self.followed: list[str] = []
        self.scopes: list[dict[str, Known | Own | None]] = [{}]

    # Names

    def visit_Import(self, node: ast.Import) -> None:
        """`import popxl.ops as ops`."""
        for item in node.names:
            root = item.name.split(".")[0]
            if root not in ROOTS:
                continue
            if item.name not in self.api.modules:
                self._report(node, f"no module {item.name}")
            bound = item.name if item.asname else root
            self.scopes[-1][item.asname or root] = Known("module", bound)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from popxl_addons.layers import Linear`."""
        module = node.module or ""
        if node.level or module.split(".")[0] not in ROOTS:
            return
        if module not in self.api.modules:
            self._report(node, f"no module {module}")
            return
        for item in node.names:
            found = self.api.member_of_module(module, item.name)
            if found is None:
                self._report(node, f"{module} has no {item.name}")
            self.scopes[-1][item.asname or item.name] = found

    def _lookup(self, name: str) -> Known | Own | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def visit_Assign(self, node: ast.Assign) -> None:
        """A plain name takes the type of its value."""
        value = self._typed(node.value)
        for target in node.targets:
            self._bind(target, value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """An annotation tells the type."""
        if node.value is not None:
            self._typed(node.value)
        self._bind(node.target, self._annotated(node.annotation))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """`(name := value)`."""
        self._bind(node.target, self._typed(node.value))

    def _bind(self, target: ast.expr, value: Known | Own | None) -> None:
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self._bind(element, None)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, None)
        elif isinstance(target, ast.Attribute) and self._is_own_self(target.value):
            return  # defines an attribute: `_own_class` has it
        else:
            self._typed(target)

    def _is_own_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and isinstance(self._lookup(node.id), Own)

    def visit_For(self, node: ast.For) -> None:
        """A loop variable has no known type."""
        self._typed(node.iter)
        self._bind(node.target, None)
        self._statements([*node.body, *node.orelse])

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Nor has a comprehension's."""
        self._typed(node.iter)
        self._bind(node.target, None)
        for condition in node.ifs:
            self._typed(condition)

    def visit_With(self, node: ast.With) -> None:
        """`with x as y`: y is of unknown type."""
        for item in node.items:
            self._typed(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, None)
        self._statements(node.body)

    # Definitions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function has a scope of its own, parameters typed by their annotations."""
        for expression in (*node.decorator_list, *node.args.defaults, node.returns):
            if expression is not None:
                self._typed(expression)
        self.scopes[-1].setdefault(node.name, None)
        scope: dict[str, Known | Own | None] = {}
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in (*named, arguments.vararg, arguments.kwarg):
            if argument is not None:
                scope[argument.arg] = self._annotated(argument.annotation)
        own = self._lookup("<class>")
        if isinstance(own, Own) and named and named[0].arg == "self":
            scope["self"] = own
        self.scopes.append({**scope, "<class>": None})
        self._statements(node.body)
        self.scopes.pop()

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A lambda's parameters hide outer names."""
        self.scopes.append({a.arg: None for a in node.args.args})
        self._typed(node.body)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A class that derives from a listed one is judged by that one's members too."""
        own = Own(base=None)
        known = True
        for base in node.bases:
            found = self._typed(base)
            if isinstance(found, Known) and found.name in self.api.symbols:
                own.base = found.name
            elif isinstance(found, Own):
                own = Own(found.base, dict(found.attributes))
            else:
                known = isinstance(base, ast.Name) and hasattr(builtins, base.id)
        own.attributes |= _attributes_of(node)
        # With a base of unknown members nothing can be said about self.
        self.scopes[-1][node.name] = own if known else None
        self.scopes.append({"<class>": own if known else None})
        self._type_attributes(node, own)
        self._statements(node.body)
        self.scopes.pop()

    def _type_attributes(self, node: ast.ClassDef, own: Own) -> None:
        quiet = Finder(self.api)
        quiet.scopes = [dict(scope) for scope in self.scopes]
        for method in node.body:
            if isinstance(method, ast.FunctionDef):
                for statement in ast.walk(method):
                    target = _self_assignment(statement)
                    if target and isinstance(statement, ast.Assign):
                        value = quiet._typed(statement.value)
                        own.attributes[target] = value if isinstance(value, Known) else None

    # Expressions

    def _typed(self, node: ast.expr) -> Known | Own | None:
        """The type of an expression, reporting what is wrong inside it."""
        if isinstance(node, ast.Name):
            return self._lookup(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp):
            sides = [self._typed(node.left), self._typed(node.right)]
            tensor = Known("instance", "popxl.Tensor")
            return tensor if tensor in sides else None
        self.generic_visit(node)
        return None

    def generic_visit(self, node: ast.AST) -> None:
        """Children in order; expressions through `_typed`."""
        # The generators of a comprehension bind the names that its element uses.
        children = list(ast.iter_child_nodes(node))
        for child in sorted(children, key=lambda c: not isinstance(c, ast.comprehension)):
            self._typed(child) if isinstance(child, ast.expr) else self.visit(child)

    def _statements(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def _attribute(self, node: ast.Attribute) -> Known | Own | None:
        value = self._typed(node.value)
        if isinstance(value, Own):
            return self._own_attribute(node, value)
        if value is None:
            return None
        if value.kind == "instance" and value.name not in self.api.symbols:
            return None
        found = self._member(value, node.attr)
        if found is not None:
            self.followed.append(found.name)
        if found is None and not self._is_free(value):
            self._report(node, f"{value.name} has no {node.attr}")
        return found

    def _own_attribute(self, node: ast.Attribute, own: Own) -> Known | None:
        if node.attr in own.attributes:
            return own.attributes[node.attr]
        if own.base is None or node.attr.startswith("__"):
            return None
        found = self.api.member_of_class(own.base, node.attr)
        if found is None:
            self._report(node, f"{own.base} has no {node.attr}, nor does the class define it")
        return self._value_of(found) if found else None

    def _is_free(self, value: Known) -> bool:
        if value.kind == "instance":
            return self.api.is_tree(value.name) or value.name not in self.api.symbols
        kind = self.api.symbols.get(value.name, {}).get("kind")
        return value.kind in ("member", "unknown") or kind in ("constant", "function")

    def _member(self, value: Known, attribute: str) -> Known | None:
        if value.kind == "module":
            return self.api.member_of_module(value.name, attribute)
        if value.kind == "options":
            return Known("unknown", attribute) if attribute in SESSION_OPTIONS else None
        if value.kind == "handle":
            allowed = HANDLES[value.name].get(attribute)
            return Known("handle call", allowed) if allowed else None
        kind = self.api.symbols.get(value.name, {}).get("kind")
        if value.kind == "symbol" and kind == "dtype":
            return self._listed("popxl.dtypes.dtype", attribute)
        if value.kind == "instance" or kind in ("class", "enum"):
            return self._listed(value.name, attribute, on_class=value.kind == "symbol")
        return None

    def _listed(self, cls: str, attribute: str, on_class: bool = False) -> Known | None:
        cls = self.api.canonical(cls) or cls
        if cls not in self.api.symbols:
            return Known("unknown", attribute)
        found = self.api.member_of_class(cls, attribute)
        if found and found.name in HANDLES:
            return Known("handle", found.name)
        return found if found is None or on_class else self._value_of(found)

    def _value_of(self, member: Known) -> Known:
        """A property stands for its value, anything else for itself."""
        record = self.api.symbols.get(member.name, {})
        if record.get("kind") != "property":
            return member
        cls = self.api.class_named(record.get("returns"))
        return Known("instance", cls) if cls else Known("unknown", member.name)

    def _call(self, node: ast.Call) -> Known | Own | None:
        function = self._typed(node.func)
        for argument in node.args:
            self._typed(argument.value if isinstance(argument, ast.Starred) else argument)
        for keyword in node.keywords:
            self._typed(keyword.value)
        if not isinstance(function, Known):
            return None
        if function.kind == "handle call":
            return Known("options", function.name)
        if function.kind == "instance":  # calling a layer runs its build
            function = self.api.member_of_class(function.name, "build") or Known("unknown", "")
        self._check_arguments(node, function)
        record = self.api.symbols.get(function.name, {})
        if record.get("kind") == "class":
            return Known("instance", function.name)
        cls = self.api.class_named(record.get("returns"))
        return Known("instance", cls) if cls else None

    def _check_arguments(self, node: ast.Call, function: Known) -> None:
        parameters = self.api.parameters(function.name)
        if parameters is None:
            return
        kinds = {p["kind"] for p in parameters}
        names = {p["name"] for p in parameters}
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in names and "var_keyword" not in kinds:
                self._report(node, f"{function.name} has no parameter {keyword.arg}")
        positional = [p for p in parameters if p["kind"].startswith("positional")]
        starred = any(isinstance(a, ast.Starred) for a in node.args)
        if len(node.args) > len(positional) and "var_positional" not in kinds and not starred:
            self._report(node, f"{function.name} takes {len(positional)} positional arguments")

    def _annotated(self, annotation: ast.expr | None) -> Known | None:
        if annotation is None:
            return None
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        found = self._typed(annotation)
        is_class = isinstance(found, Known) and found.kind == "symbol"
        if not is_class or self.api.symbols.get(found.name, {}).get("kind") != "class":
            return None
        return Known("instance", found.name)

    def _report(self, node: ast.AST, message: str) -> None:
        self.problems.append(f"{getattr(node, 'lineno', 0)}: {message}")


def _self_assignment(node: ast.AST) -> str | None:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    for target in targets:
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            return target.attr if target.value.id == "self" else None
    return None


def _attributes_of(node: ast.ClassDef) -> dict[str, Known | None]:
    found: dict[str, Known | None] = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef):
            found[item.name] = None
        elif isinstance(item, ast.Assign):
            found |= {t.id: None for t in item.targets if isinstance(t, ast.Name)}
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = None
    for inner in ast.walk(node):
        for target in _assigned_to_self(inner):
            found[target] = None
    return found


def _assigned_to_self(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [
        t.attr
        for t in flat
        if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "self"
    ]


def look_through(source: str, api: ApiIndex) -> Finder:
    """A finder that has walked a source text."""
    finder = Finder(api)
    finder.visit(ast.parse(source))
    return finder


def unknown_uses(source: str, api: ApiIndex) -> list[str]:
    """``line: message`` for every use of PopXL in a source text that the lists do not have."""
    return look_through(source, api).problems
