"""Parses the text of a predicate into an expression tree."""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NoReturn

import numpy as np

from hpcphotoz.data.format.extra import ExtraColumn, condition_names
from hpcphotoz.errors import BadInput

LABEL_NAMES = ("z_spec", "ebv", "object_id", "ra", "dec")
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": np.abs,
    "isfinite": np.isfinite,
    "log10": np.log10,
    "sqrt": np.sqrt,
}
MAX_LENGTH = 4096  # characters
MAX_DEPTH = 64  # operations inside each other
# literal: a whole number as written, of any type; text: bytes
Kind = Literal["truth", "whole", "literal", "real", "text"]

_OPERATORS: Mapping[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.Mod: ("%", operator.mod),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.USub: ("-", operator.neg),
    ast.Not: ("not", np.logical_not),
    ast.And: ("and", np.logical_and),
    ast.Or: ("or", np.logical_or),
}
INT64 = 2**63
_SINGLE_EQUALS = re.compile(r"(?<![=!<>:])=(?!=)")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_MAX_NAMES = 40  # listed in a message


@dataclass(frozen=True)
class Number:
    """A constant."""

    kind: Kind
    value: bool | int | float | bytes


@dataclass(frozen=True)
class Column:
    """A label column; `band` is the place of the band in a column with one value a band."""

    kind: Kind
    name: str
    band: int | None
    at: int  # character of the text, from 1


@dataclass(frozen=True)
class Operation:
    """An operator or a function, applied to operands."""

    kind: Kind
    symbol: str
    function: Callable[..., Any]
    operands: "tuple[Node, ...]"
    at: int  # character of the text, from 1


Node = Number | Column | Operation


class Parser:
    """Builds the expression tree of a text; refuses syntax that is not on its list, with the position."""

    def __init__(self, text: str, bands: Sequence[str], extra: Sequence[ExtraColumn] = ()) -> None:
        self.text = text
        # By the name in a condition: kind, array of the shard, and place of the band.
        self._known: dict[str, tuple[Kind, str, int | None]] = {
            **{name: ("whole" if name == "object_id" else "real", name, None) for name in LABEL_NAMES},
            **{f"sky_sigma_{band}": ("real", "sky_sigma", k) for k, band in enumerate(bands)},
        }
        for column in extra:
            for k, name in enumerate(condition_names(column, bands)):
                self._known[name] = (_kind(column), column.name, k if column.shape else None)
        self.names = tuple(self._known)
        self._has_text = any(kind == "text" for kind, _, _ in self._known.values())
        self.columns: set[str] = set()
        # On one line: Python would end the condition at a line break. Characters keep their positions.
        self.line = "".join(" " if c in "\n\r\t\f" else c for c in text)
        self.start = len(self.line) - len(self.line.lstrip(" "))

    def refuse(self, what: str, at: int) -> NoReturn:
        refuse(self.text, self.names, what, at)

    def at(self, node: ast.AST) -> int:
        """Position of the character at which a piece of syntax begins, from 1; Python counts bytes."""
        before = self.line[self.start :].encode()[: getattr(node, "col_offset", 0)]
        return self.start + len(before.decode()) + 1

    def tree(self) -> ast.expr:
        """The condition as Python's syntax tree."""
        if not self.line.strip():
            self.refuse("is empty: leave it out to mean every object", 1)
        if len(self.line) > MAX_LENGTH:
            self.refuse(f"has {len(self.line)} characters: at most {MAX_LENGTH}", MAX_LENGTH + 1)
        for at, character in enumerate(self.line, 1):
            if not character.isprintable():
                self.refuse("holds a character that cannot be printed", at)
        if "#" in self.line:
            self.refuse("holds a comment, which would hide what follows", self.line.index("#") + 1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # `1or` is a warning to Python 3.11 and an error later
                return ast.parse(self.line[self.start :], mode="eval").body
        except SyntaxError as error:
            at = self.start + error.offset if error.offset else len(self.line)  # 0: it ends too early
            single = _SINGLE_EQUALS.search(_QUOTED.sub(lambda text: " " * len(text[0]), self.line))
            if single:
                self.refuse("is not a condition ('=' compares nothing: did you mean ==?)", single.start() + 1)
            self.refuse(f"is not a condition ({error.msg})", at)
        except (RecursionError, MemoryError):
            self.refuse(f"is nested too deeply: at most {MAX_DEPTH} levels", 1)

    def node(self, tree: ast.expr, depth: int) -> Node:
        """Convert a piece of Python's syntax tree to a node."""
        if depth > MAX_DEPTH:
            self.refuse(f"is nested too deeply: at most {MAX_DEPTH} levels", self.at(tree))
        match tree:
            case ast.Constant(value=value):
                return self.number(value, tree)
            case ast.Name(id=name):
                return self.column(name, tree)
            case ast.BoolOp(op=op, values=values):
                return self.apply(op, [self.node(value, depth + 1) for value in values], tree, truths=True)
            case ast.UnaryOp(op=ast.Not() | ast.USub() as op, operand=operand):
                truths = isinstance(op, ast.Not)
                return self.apply(op, [self.node(operand, depth + 1)], tree, truths=truths)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self.apply(op, [self.node(left, depth + 1), self.node(right, depth + 1)], tree)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                return self.chain(ops, [self.node(side, depth + 1) for side in (left, *rest)], tree)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
                return self.function(name, self.node(argument, depth + 1), tree)
            case ast.Call():
                self.refuse("calls what is not a function of one value given below", self.at(tree))
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr() | ast.BitXor()):
                self.refuse("has '&', '|' or '^': write and, or, not", self.at(tree))
        self.refuse(f"may not contain this ({type(tree).__name__})", self.at(tree))

    def number(self, value: object, tree: ast.expr) -> Number:
        if type(value) is int:
            if value >= INT64:
                self.refuse("has a whole number beyond 64 bits with sign, at most 2^63 - 1", self.at(tree))
            return Number("literal", value)
        if type(value) is float:
            return Number("real", value)
        if type(value) is str and self._has_text:
            return Number("text", value.encode())
        self.refuse(f"may not contain this ({type(value).__name__})", self.at(tree))

    def column(self, name: str, tree: ast.expr) -> Column:
        if name not in self._known:
            self.refuse(f"knows no '{name}'", self.at(tree))
        kind, array, band = self._known[name]
        self.columns.add(array)
        return Column(kind, array, band, self.at(tree))

    def chain(self, ops: Sequence[ast.cmpop], sides: Sequence[Node], tree: ast.expr) -> Node:
        links: list[Node] = []
        for op, left, right in zip(ops, sides, sides[1:], strict=False):
            if type(op) not in _OPERATORS:
                self.refuse("may compare with < <= > >= == != only", self.at(tree))
            links.append(self.apply(op, [left, right], tree, gives="truth"))
        return links[0] if len(links) == 1 else self.apply(ast.And(), links, tree, truths=True)

    def function(self, name: str, operand: Node, tree: ast.expr) -> Node:
        if operand.kind in ("truth", "text"):
            of = "a condition" if operand.kind == "truth" else "text"
            self.refuse(f"takes {name} of {of}: it wants a number", self.at(tree))
        gives: Kind = "truth" if name == "isfinite" else operand.kind if name == "abs" else "real"
        return self.build(Operation(gives, name, FUNCTIONS[name], (operand,), self.at(tree)))

    def apply(
        self,
        op: ast.AST,
        operands: Sequence[Node],
        tree: ast.expr,
        truths: bool = False,
        gives: Kind | None = None,
    ) -> Node:
        """An operator on conditions (`truths`) or numbers; its result is of their kind, or `gives`."""
        symbol, function = _OPERATORS[type(op)]
        kinds = {operand.kind for operand in operands}
        if truths != ("truth" in kinds) or (truths and len(kinds) > 1):
            wants = "conditions" if truths else "numbers"
            self.refuse(f"has something else than {wants} beside '{symbol}'", self.at(tree))
        if "text" in kinds and not (kinds == {"text"} and symbol in ("==", "!=")):
            self.refuse(f"has text beside '{symbol}': compare it with text, by == or !=", self.at(tree))
        if {"whole", "real"} <= kinds:
            name = next(_whole_columns(operands))
            self.refuse(f"mixes {name} with real numbers in '{symbol}': write a whole number", self.at(tree))
        if symbol in "/%" and isinstance(operands[1], Number) and operands[1].value == 0:
            self.refuse("divides by zero", self.at(tree))
        order: tuple[Kind, ...] = ("truth", "whole", "real", "literal", "text")
        kind = next(kind for kind in order if kind in kinds)
        if symbol == "/":
            kind = "real"
        return self.build(Operation(gives or kind, symbol, function, tuple(operands), self.at(tree)))

    def build(self, node: Operation) -> Node:
        """Return the node, or its value where all operands are constants."""
        numbers: list[Any] = [operand.value for operand in node.operands if isinstance(operand, Number)]
        if len(numbers) < len(node.operands):
            return node
        with np.errstate(all="ignore"):
            value: Any = reduce(node.function, numbers) if len(numbers) > 1 else node.function(*numbers)
        if node.kind == "truth":
            return Number("truth", bool(value))
        if node.kind == "literal":
            if not -INT64 < value < INT64:
                self.refuse("has a whole number beyond 64 bits", node.at)
            return Number("literal", int(value))
        if not math.isfinite(value):
            self.refuse(f"comes to {value} in '{node.symbol}'", node.at)
        return Number("real", float(value))


def _kind(column: ExtraColumn) -> Kind:
    kinds: Mapping[str, Kind] = {"b": "truth", "i": "whole", "u": "whole", "f": "real", "S": "text"}
    return kinds[np.dtype(column.dtype).kind]


def _whole_columns(nodes: Sequence[Node]) -> Iterator[str]:
    """Yields the names of the columns of whole numbers from which the values of these nodes are computed."""
    for node in nodes:
        if isinstance(node, Column) and node.kind == "whole":
            yield node.name
        if isinstance(node, Operation) and node.kind == "whole":
            yield from _whole_columns(node.operands)


def refuse(text: str, names: Sequence[str], what: str, at: int) -> NoReturn:
    """Raise a BadInput with the problem, its position and the names that may be used."""
    excerpt = text if len(text) <= 80 else text[:77] + "..."
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    shown = f"{', '.join(names[:_MAX_NAMES])}{more}"
    raise BadInput(
        f"{excerpt!r} {what}, at character {at}; names: {shown}; functions: {', '.join(FUNCTIONS)}"
    ) from None
