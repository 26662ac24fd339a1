"""The small language of losses and values in a recipe: from a text to Python code, checked on the way.

An expression has calls of ops and models, arithmetic, comparisons, numbers, and the names of fields of a
batch and of values; parts of what `split` gives are numbered, `split(x, 2)[0]`. It is read by Python's
parser and written anew from what was understood, so nothing else can get into the code.
"""

import ast
import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NoReturn, get_args, get_origin

from dtrain.spec.layers import ImportedLayer
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.sequence import Embedding
from dtrain.spec.table import Wrong
from dtrain.spec.words import either, nearest, show
from dtrain.systems.shape_ops import ShapeOps
from dtrain.systems.shapes import Examples, Misfit, Shaped, together
from dtrain.systems.signatures import ops_by_name, usage

LONGEST, DEEPEST = 2_000, 60  # characters of an expression; calls and operators within each other
LARGEST = 10**15  # of a number that arithmetic on numbers gives
CONSTANTS = {"pi": math.pi}
# Ops through which no gradient flows back.
STOPS = ("detach", "argmax", "categorical", "fgsm", "pgd", "one_hot", "positions", "eye", "sign", "floor")
PER_EXAMPLE = ("normal", "uniform", "bernoulli")  # ops whose shape begins with the number of examples
OPERATORS: Mapping[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.Pow: ("**", operator.pow),
}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
Value = Shaped | float | bool | str | tuple[Any, ...]


class ExpressionError(Wrong):
    """A mistake inside an expression: `within` is its first character and how many it has."""


@dataclass(frozen=True)
class Scope:
    """What the names in an expression stand for; `fields` is None where the data is not known yet."""

    models: Mapping[str, Model | None]
    values: Mapping[str, Value] = field(default_factory=dict)
    fields: Mapping[str, Shaped] | None = None
    others: Collection[str] = ()  # names of values that are not computed here, which may be meant

    def names(self) -> list[str]:
        """Every name that stands for an array."""
        return [*self.values, *(self.fields or ()), *self.others]


@dataclass(frozen=True)
class Read:
    """An expression that was understood: its code, what it gives, and the names in it."""

    code: str
    value: Value
    names: Collection[str]  # of fields and values
    models: Collection[str]
    counts: bool = False  # whether it needs `n`, the number of examples
    reaches: Collection[str] = ()  # the models, fields and values that a gradient flows back to


def read(text: str, scope: Scope, at: str) -> Read:
    """Understand an expression, which stands under the key `at`. Raises ExpressionError where it cannot."""
    tree, begin = _parsed(text, at)
    reader = _Reader(text, begin, scope, at)
    value, code = reader.read(tree)
    return Read(code, value, tuple(reader.names), tuple(reader.models), reader.counts, reader.reaches)


@lru_cache(maxsize=1_000)
def names_in(text: str, at: str) -> Set[str]:
    """Every name in an expression, of whatever it may be."""
    return frozenset(node.id for node in ast.walk(_parsed(text, at)[0]) if isinstance(node, ast.Name))


@lru_cache(maxsize=1_000)  # as long as it is tried which number would mend a recipe
def _parsed(text: str, at: str) -> tuple[ast.expr, int]:
    """The tree of an expression, and how many characters stand before it."""
    if len(text) > LONGEST:
        said = f"has {len(text):,} characters; at most {LONGEST:,} would do, and values make it shorter"
        raise ExpressionError(at, said)
    flat = text.replace("\n", " ").replace("\r", " ").replace("\t", " ")
    begin = len(flat) - len(flat.lstrip())
    if not flat.strip():
        raise ExpressionError(at, 'is empty; an expression would do, such as "mse(model(image), image)"')
    try:
        return ast.parse(flat[begin:], mode="eval").body, begin
    except SyntaxError as error:
        place = begin + max((error.offset or 1) - 1, 0)
        raise ExpressionError(at, f"this is no expression: {error.msg}", within=(place, 1)) from None
    except (RecursionError, MemoryError, ValueError):
        raise ExpressionError(at, "this is no expression that can be read") from None


class _Reader:
    """Walks a tree, and knows of each node what it gives and how it is written in Python."""

    def __init__(self, text: str, begin: int, scope: Scope, at: str):
        self.text, self.begin, self.scope, self.at = text, begin, scope, at
        self.names: dict[str, None] = {}
        self.models: dict[str, None] = {}
        self.reaches: set[str] = set()
        self.stopped = 0  # how many ops around a node stop gradients
        self.counts = False
        self.depth = 0
        self.shapes = ShapeOps()

    def refuse(self, node: ast.AST, message: str, near: str | None = None) -> NoReturn:
        """Say what is wrong with a node, at its place in the text."""
        first, length = self._place(node)
        raise ExpressionError(self.at, message, within=(first, length), suggestion=near)

    def _place(self, node: Any) -> tuple[int, int]:
        encoded = self.text[self.begin :].encode()  # the parser counts bytes
        first = len(encoded[: node.col_offset].decode(errors="ignore"))
        last = len(encoded[: node.end_col_offset].decode(errors="ignore"))
        return self.begin + first, max(last - first, 1)

    def read(self, node: ast.AST) -> tuple[Value, str]:
        """What a node gives, and its code."""
        self.depth += 1
        if self.depth > DEEPEST:
            self.refuse(node, f"goes more than {DEEPEST} levels deep; values make it flatter")
        match node:
            case ast.Constant():
                found = self._constant(node)
            case ast.Name():
                found = self._name(node)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                found = self._signed(node)
            case ast.BinOp():
                found = self._arithmetic(node)
            case ast.Compare():
                found = self._comparison(node)
            case ast.Subscript():
                found = self._part(node)
            case ast.Call():
                found = self._call(node)
            case ast.Tuple() | ast.List():
                found = self._axes(node)
            case _:
                self.refuse(node, "an expression has calls, arithmetic, numbers and names alone")
        self.depth -= 1
        return found

    def array(self, node: ast.AST) -> tuple[Shaped | float, str]:
        """What a node gives, which must be an array or a number."""
        value, code = self.read(node)
        if isinstance(value, tuple) and value and isinstance(value[0], Shaped):
            self.refuse(node, f"this is {len(value)} arrays; take one of them, such as [0]")
        if isinstance(value, bool | str | tuple):
            self.refuse(node, f"found {show(value)}; an array or a number would do")
        return value, code

    def _constant(self, node: ast.Constant) -> tuple[Value, str]:
        if isinstance(node.value, bool | str):
            return node.value, repr(node.value)
        if not isinstance(node.value, int | float):
            self.refuse(node, "a number would do")
        return self._number(node, node.value)

    def _number(self, node: ast.AST, value: Any) -> tuple[float, str]:
        if not isinstance(value, int | float) or not abs(value) < LARGEST:
            self.refuse(node, f"this makes no number below {LARGEST:.0e}")
        return value, f"({value!r})" if value < 0 else repr(value)

    def _name(self, node: ast.Name) -> tuple[Value, str]:
        name, scope = node.id, self.scope
        if name in scope.values:
            self._reach(name)
            self.names[name] = None
            return scope.values[name], f"v_{name}"
        if name in scope.models:
            self.refuse(node, f"{name} is a model; call it, as in {name}(image)")
        if name in CONSTANTS:
            return CONSTANTS[name], repr(CONSTANTS[name])
        if name in ops_by_name() and name not in (scope.fields or ()):
            self.refuse(node, f"{name} is called, as in {name}({usage(name)})")
        if scope.fields is not None and name not in scope.fields:
            there = f"the data has {', '.join(scope.fields)}"
            there += f"; values are {', '.join(scope.values)}" if scope.values else ""
            self.refuse(node, f"there is no field and no value {show(name)}; {there}",
                        nearest(name, scope.names()))  # fmt: skip
        self.names[name] = None
        return (Shaped() if scope.fields is None else scope.fields[name]), f"f_{name}"

    def _reach(self, name: str) -> None:
        """Note that a gradient flows back to a value or a model, unless an op around it stops it."""
        if not self.stopped:
            self.reaches.add(name)

    def _signed(self, node: ast.UnaryOp) -> tuple[Value, str]:
        value, code = self.array(node.operand)
        sign = "-" if isinstance(node.op, ast.USub) else "+"
        if not isinstance(value, Shaped):
            return self._number(node, -value if sign == "-" else value)
        if value.sort == "truth values":
            self.refuse(node, "truth values have no sign; where(x, 1.0, 0.0) makes numbers of them")
        return value, f"({sign}{code})"

    def _arithmetic(self, node: ast.BinOp) -> tuple[Value, str]:
        if type(node.op) not in OPERATORS:
            self.refuse(node, f"the operators are {', '.join(sign for sign, _ in OPERATORS.values())}")
        sign, compute = OPERATORS[type(node.op)]
        (x, left), (y, right) = self.array(node.left), self.array(node.right)
        if not isinstance(x, Shaped) and not isinstance(y, Shaped):
            try:
                if sign == "**" and abs(y) > 100:
                    raise OverflowError
                return self._number(node, compute(x, y))
            except (ArithmeticError, ValueError):
                self.refuse(node, "this makes no number that there is")
        sort: Any = "fractions" if sign == "/" else None
        return self._fit(node, lambda: together(x, y, sort)), f"({left} {sign} {right})"

    def _comparison(self, node: ast.Compare) -> tuple[Value, str]:
        if len(node.ops) > 1 or type(node.ops[0]) not in COMPARISONS:
            self.refuse(node, f"one comparison would do: {', '.join(COMPARISONS.values())}")
        (x, left), (y, right) = self.array(node.left), self.array(node.comparators[0])
        if not isinstance(x, Shaped) and not isinstance(y, Shaped):
            self.refuse(node, "two numbers need no comparison")
        return (
            self._fit(node, lambda: together(x, y, "truth values")),
            f"({left} {COMPARISONS[type(node.ops[0])]} {right})",
        )

    def _part(self, node: ast.Subscript) -> tuple[Value, str]:
        value, code = self.read(node.value)
        number = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if not isinstance(value, tuple):
            self.refuse(node, "only what split gives has numbered parts; slice(x, start, stop) cuts an array")
        if not isinstance(number, int) or isinstance(number, bool) or number >= len(value):
            self.refuse(node.slice, f"a whole number from 0 to {len(value) - 1} would do")
        return value[number], f"{code}[{number}]"

    def _axes(self, node: ast.Tuple | ast.List) -> tuple[Value, str]:
        numbers = [self.read(item)[0] for item in node.elts]
        if not numbers or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
            self.refuse(node, "axes are whole numbers, as in mean(x, axis=[1, 2])")
        return tuple(numbers), f"({', '.join(map(str, numbers))},)"

    def _call(self, node: ast.Call) -> tuple[Value, str]:
        if not isinstance(node.func, ast.Name):
            self.refuse(node.func, "an op or a model is called by its name")
        name = node.func.id
        if name in self.scope.models:
            return self._model(node, name)
        if name not in ops_by_name():
            known = [*self.scope.models, *ops_by_name()]
            models = f"models are {', '.join(self.scope.models)}"
            self.refuse(node.func, f"there is no op and no model {show(name)}; {models}",
                        nearest(name, known))  # fmt: skip
        return self._op(node, name)

    def _model(self, node: ast.Call, name: str) -> tuple[Value, str]:
        self.models[name] = None
        self._reach(name)
        if len(node.args) != 1 or node.keywords or isinstance(node.args[0], ast.Starred):
            self.refuse(node, f"a model takes one array, as in {name}(image)")
        value, code = self.array(node.args[0])
        if not isinstance(value, Shaped):
            self.refuse(node.args[0], f"found {show(value)}; a model takes an array")
        return self._fit(node.args[0], lambda: self.through(name, value)), f"models.{name}({code})"

    def through(self, name: str, x: Shaped) -> Shaped:
        """What a model makes of an array."""
        spec = self.scope.models[name]
        if not isinstance(spec, ModelSpec):
            return Shaped(None, "fractions")
        try:
            output = spec.output
        except ValueError:  # said of the model itself
            return Shaped(None, "fractions")
        first = spec.layers[0]
        if x.sort not in ("fractions", None) and not isinstance(first, Embedding | ImportedLayer):
            raise Misfit(f"{name} takes fractions, and this holds {x.sort}")
        if isinstance(first, Embedding) and x.sort == "fractions":
            raise Misfit(f"{name} takes whole numbers, as its first layer is an embedding")
        if x.shape is None:
            return Shaped((Examples(), *output), "fractions")
        if x.shape[1:] != spec.input or not x.shape or not isinstance(x.shape[0], Examples):
            wanted = Shaped((Examples(), *spec.input))
            raise Misfit(f"{name} takes {wanted}, and this is {x}")
        return Shaped((x.shape[0], *output), "fractions")

    def _op(self, node: ast.Call, name: str) -> tuple[Value, str]:
        signature = ops_by_name()[name]
        if any(isinstance(arg, ast.Starred) for arg in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            self.refuse(node, "arguments are written out")
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        for key in named:
            if key not in signature.parameters:
                self.refuse(node, f"{name} has no argument {show(key)}: {name}({usage(name)})",
                            nearest(str(key), signature.parameters))  # fmt: skip
        try:
            bound = signature.bind(*node.args, **{str(key): value for key, value in named.items()})
        except TypeError:
            self.refuse(node, f"{name} takes other arguments: {name}({usage(name)})")
        self.stopped += name in STOPS
        values, codes = self._arguments(node, name, signature, bound)
        self.stopped -= name in STOPS
        shape = Examples() if name in PER_EXAMPLE else None
        found = self._fit(node, lambda: self._shaped(name, values, bound, shape))
        return found, f"ops.{name}({', '.join(codes)})"

    def _arguments(
        self, node: ast.Call, name: str, signature: inspect.Signature, bound: inspect.BoundArguments
    ) -> tuple[dict[str, Any], list[str]]:
        """The values of an op's arguments by parameter, and their code in the order of the call."""
        values: dict[str, Any] = {}
        codes: list[str] = []
        for key, argument in bound.arguments.items():
            parameter = signature.parameters[key]
            if key == "function":
                values[key], code = self._function(argument, bound.arguments.get("x"), node, name)
                codes.append(code)
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                found = [self._argument(item, parameter, name) for item in argument]
                values[key] = [value for value, _ in found]
                codes += [code for _, code in found]
            else:
                values[key], code = self._argument(argument, parameter, name)
                is_named = parameter.kind is inspect.Parameter.KEYWORD_ONLY or any(
                    keyword.arg == key for keyword in node.keywords
                )
                codes.append(f"{key}={code}" if is_named else code)
        if name == "reshape":
            codes.insert(1, "-1")
        if name in PER_EXAMPLE and not isinstance(values.get("probability"), Shaped):
            codes.insert(len(codes) - len(values.get("shape", ())), "n")
            self.counts = True
        return values, codes

    def _shaped(
        self, name: str, values: dict[str, Any], bound: inspect.BoundArguments, first: Examples | None
    ) -> Any:
        """What an op makes of shapes."""
        arguments = dict(values)
        if first is not None and not isinstance(values.get("probability"), Shaped):
            arguments["shape"] = [first, *values.get("shape", ())]
        if name == "reshape":
            x = values["x"]
            arguments["shape"] = [*(x.shape[:1] if x.shape else [Examples()]), *values.get("shape", ())]
        call = inspect.BoundArguments(bound.signature, arguments)
        return getattr(self.shapes, name)(*call.args, **call.kwargs)

    def _argument(self, node: ast.AST, parameter: inspect.Parameter, op: str) -> tuple[Any, str]:
        """One argument, of the sort that its parameter takes."""
        wanted = parameter.annotation
        takes = [arm for arm in (get_args(wanted) or (wanted,)) if arm is not type(None)]
        if get_origin(wanted) is Literal:
            value, code = self.read(node)
            if value not in get_args(wanted):
                self.refuse(node, f"{either(show(choice) for choice in get_args(wanted))} would do",
                            nearest(str(value), [str(choice) for choice in get_args(wanted)]))  # fmt: skip
            return value, code
        if bool in takes:
            value, code = self.read(node)
            if not isinstance(value, bool):
                self.refuse(node, "True or False would do")
            return value, code
        if Any in takes:
            value, found = self.array(node)
            if not isinstance(value, Shaped) and float not in takes:
                self.refuse(node, f"{op} takes an array as its {parameter.name}, not {show(value)}")
            return value, found
        value, code = self.read(node)
        if isinstance(value, tuple) and any(get_origin(arm) is tuple for arm in takes):
            return value, code
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole and not (float in takes and isinstance(value, float)):
            what = "a number" if float in takes else "a whole number"
            self.refuse(node, f"{op} takes {what} as its {parameter.name}")
        return value, code

    def _function(
        self, node: ast.AST, x: ast.AST | None, call: ast.Call, op: str
    ) -> tuple[Callable[[Shaped], Shaped], str]:
        """The function whose slope is taken: a model, or an expression of the name in the second place."""
        if isinstance(node, ast.Name) and node.id in self.scope.models and node.id not in self.scope.values:
            self.models[node.id] = None
            self._reach(node.id)
            return (lambda value: self.through(node.id, value)), f"models.{node.id}"
        if not isinstance(x, ast.Name):
            self.refuse(x or call, f"the second argument of {op} is a name, and the first is written with it")
        if not any(isinstance(inner, ast.Name) and inner.id == x.id for inner in ast.walk(node)):
            self.refuse(node, f"this does not depend on {x.id}, in which {op} takes its slope")
        value, code = self.array(node)
        if not isinstance(value, Shaped):
            self.refuse(node, f"found {show(value)}; an array would do")
        variable = f"v_{x.id}" if x.id in self.scope.values else f"f_{x.id}"
        return (lambda _: value), f"lambda {variable}: {code}"

    def _fit(self, node: ast.AST, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except Misfit as error:
            name = (
                f"{node.func.id} " if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            )
            said = str(error)
            self.refuse(node, f"{name}{said}" if said.startswith("takes") else said)
