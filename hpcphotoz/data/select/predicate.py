"""A subset of a dataset by a condition on its labels, such as `z_spec < 0.3 and sky_sigma_r < 0.03`.

A condition has Python's syntax and numpy's meaning, object by object: comparisons (also chained), `and`,
`or`, `not`, `+ - * / %`, numbers, parentheses and the functions of `FUNCTIONS`, on z_spec, ebv, object_id,
ra, dec and sky_sigma_<band>. What follows from that:

- A comparison with NaN is false, but for `!=`: `z_spec < 0.3` leaves out unknown redshifts and
  `not z_spec >= 0.3` keeps them. `isfinite(z_spec)` asks for known ones.
- Numbers are rounded to the type of the column beside them: `z_spec <= 0.3` keeps a float32 0.3.
- A real number divided by a column that is zero somewhere is infinite or NaN there.
- object_id is a whole number, exact to 64 bits: it meets whole numbers only, until it is divided.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

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
Array = npt.NDArray[Any]
Kind = Literal["truth", "whole", "literal", "real"]  # literal: a whole number as written, of any type

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
_INT64 = 2**63
# Judged in float64, whose rounding is below 2^-50 of the figure: the last 8192 numbers are refused too.
_WHOLE = _INT64 * (1 - 2.0**-50)


@dataclass(frozen=True)
class _Number:
    kind: Kind
    value: bool | int | float


@dataclass(frozen=True)
class _Column:
    kind: Kind
    name: str
    band: int | None


@dataclass(frozen=True)
class _Operation:
    kind: Kind
    symbol: str
    function: Callable[..., Any]
    operands: "tuple[_Node, ...]"
    at: int  # character of the text, from 1


_Node = _Number | _Column | _Operation


@dataclass(frozen=True)
class Predicate:
    """Which objects are meant."""

    text: str
    bands: tuple[str, ...]
    columns: frozenset[str] = field(compare=False)  # the columns of a shard that decide
    _root: _Node = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, bands: Sequence[str]) -> "Predicate":
        """Understand a condition; nothing of it is ever executed as Python.

        Args:
            text: the condition, at most `MAX_LENGTH` characters.
            bands: of the dataset, in the order of the second axis of `sky_sigma`.

        Raises:
            BadInput: not a condition on the labels; says why, at which character (from 1), and the names.
        """
        parser = _Parser(text, bands)
        root = parser.node(parser.tree(), 0)
        if root.kind != "truth":
            parser.refuse("is a number, not a condition: compare it with something", 1)
        if not parser.columns:
            parser.refuse("asks nothing of an object: name a label", 1)
        return cls(text, tuple(bands), frozenset(parser.columns), root)

    def __call__(self, columns: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
        """Which rows are meant.

        Args:
            columns: at least `self.columns`, as a shard holds them: (N,), and sky_sigma (N, B) in nMgy.

        Returns:
            (N,) bool.

        Raises:
            BadInput: arithmetic with object_id leaves 64 bits, or divides a whole number by zero.
        """
        with np.errstate(all="ignore"):
            found: npt.NDArray[np.bool_] = self._value(self._root, columns)
        return found

    def _value(self, node: _Node, columns: Mapping[str, Array]) -> Any:
        if isinstance(node, _Number):
            return node.value
        if isinstance(node, _Column):
            return columns[node.name] if node.band is None else columns[node.name][:, node.band]
        values = [self._value(operand, columns) for operand in node.operands]
        if node.kind == "whole":
            # numpy wraps int64 around and gives x % 0 = 0, both without a word: the wrong objects.
            if node.symbol == "%" and np.any(np.equal(values[1], 0)):
                _refuse(self.text, self.bands, "divides a whole number by zero", node.at)
            about = node.function(*(np.asarray(value, np.float64) for value in values))
            if node.symbol != "%" and np.any(np.abs(about) >= _WHOLE):
                _refuse(
                    self.text, self.bands, f"'{node.symbol}' leaves the 64 bits of a whole number", node.at
                )
        return reduce(node.function, values) if len(values) > 2 else node.function(*values)


class _Parser:
    """From text to nodes: anything that is not on the list is refused where it stands."""

    def __init__(self, text: str, bands: Sequence[str]) -> None:
        self.text, self.bands = text, bands
        self.columns: set[str] = set()
        # One line, for Python would end the condition at a line's end; characters keep their places.
        self.line = "".join(" " if c in "\n\r\t\f" else c for c in text)
        self.start = len(self.line) - len(self.line.lstrip(" "))

    def refuse(self, what: str, at: int) -> NoReturn:
        _refuse(self.text, self.bands, what, at)

    def at(self, node: ast.AST) -> int:
        """The character at which a piece of syntax begins, from 1; Python counts bytes."""
        before = self.line[self.start :].encode()[: getattr(node, "col_offset", 0)]
        return self.start + len(before.decode()) + 1

    def tree(self) -> ast.expr:
        """The condition as Python reads it."""
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
            self.refuse(f"is not a condition ({error.msg})", at)
        except (RecursionError, MemoryError):
            self.refuse(f"is nested too deeply: at most {MAX_DEPTH} levels", 1)

    def node(self, tree: ast.expr, depth: int) -> _Node:
        """A piece of syntax as a node of ours."""
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

    def number(self, value: object, tree: ast.expr) -> _Number:
        if type(value) is int:
            if value >= _INT64:
                self.refuse("has a whole number beyond 64 bits", self.at(tree))
            return _Number("literal", value)
        if type(value) is float:
            return _Number("real", value)
        self.refuse(f"may not contain this ({type(value).__name__})", self.at(tree))

    def column(self, name: str, tree: ast.expr) -> _Column:
        band = name.removeprefix("sky_sigma_")
        if band != name and band in self.bands:
            self.columns.add("sky_sigma")
            return _Column("real", "sky_sigma", list(self.bands).index(band))
        if name not in LABEL_NAMES:
            self.refuse(f"knows no '{name}'", self.at(tree))
        self.columns.add(name)
        return _Column("whole" if name == "object_id" else "real", name, None)

    def chain(self, ops: Sequence[ast.cmpop], sides: Sequence[_Node], tree: ast.expr) -> _Node:
        links: list[_Node] = []
        for op, left, right in zip(ops, sides, sides[1:], strict=False):
            if type(op) not in _OPERATORS:
                self.refuse("may compare with < <= > >= == != only", self.at(tree))
            links.append(self.apply(op, [left, right], tree, gives="truth"))
        return links[0] if len(links) == 1 else self.apply(ast.And(), links, tree, truths=True)

    def function(self, name: str, operand: _Node, tree: ast.expr) -> _Node:
        if operand.kind == "truth":
            self.refuse(f"takes {name} of a condition: it wants a number", self.at(tree))
        gives: Kind = "truth" if name == "isfinite" else operand.kind if name == "abs" else "real"
        return self.build(_Operation(gives, name, FUNCTIONS[name], (operand,), self.at(tree)))

    def apply(
        self,
        op: ast.AST,
        operands: Sequence[_Node],
        tree: ast.expr,
        truths: bool = False,
        gives: Kind | None = None,
    ) -> _Node:
        """An operator between conditions (`truths`) or numbers; it gives what it takes unless told."""
        symbol, function = _OPERATORS[type(op)]
        kinds = {operand.kind for operand in operands}
        if truths != ("truth" in kinds) or (truths and len(kinds) > 1):
            wants = "conditions" if truths else "numbers"
            self.refuse(f"has something else than {wants} beside '{symbol}'", self.at(tree))
        if {"whole", "real"} <= kinds:
            self.refuse(
                f"mixes object_id with real numbers in '{symbol}': write a whole number", self.at(tree)
            )
        if symbol in "/%" and isinstance(operands[1], _Number) and operands[1].value == 0:
            self.refuse("divides by zero", self.at(tree))
        order: tuple[Kind, ...] = ("truth", "whole", "real", "literal")
        kind = next(kind for kind in order if kind in kinds)
        if symbol == "/":
            kind = "real"
        return self.build(_Operation(gives or kind, symbol, function, tuple(operands), self.at(tree)))

    def build(self, node: _Operation) -> _Node:
        """The node; a number where it holds numbers only."""
        numbers = [operand.value for operand in node.operands if isinstance(operand, _Number)]
        if len(numbers) < len(node.operands):
            return node
        with np.errstate(all="ignore"):
            value = reduce(node.function, numbers) if len(numbers) > 1 else node.function(*numbers)
        if node.kind == "truth":
            return _Number("truth", bool(value))
        if node.kind == "literal":
            if not -_INT64 < value < _INT64:
                self.refuse("has a whole number beyond 64 bits", node.at)
            return _Number("literal", int(value))
        if not math.isfinite(value):
            self.refuse(f"comes to {value} in '{node.symbol}'", node.at)
        return _Number("real", float(value))


def _refuse(text: str, bands: Sequence[str], what: str, at: int) -> NoReturn:
    shown = text if len(text) <= 80 else text[:77] + "..."
    names = ", ".join([*LABEL_NAMES, *(f"sky_sigma_{band}" for band in bands)])
    raise BadInput(
        f"{shown!r} {what}, at character {at}; names: {names}; functions: {', '.join(FUNCTIONS)}"
    ) from None
