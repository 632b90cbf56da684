"""Faults of one edit each, made from the syntax of a module or listed by hand."""

import ast
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPARED = {ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"),
            ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",),
            ast.In: ("not in",), ast.NotIn: ("in",)}  # fmt: skip
COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*"}


@dataclass(frozen=True)
class Fault:
    """One edit of a file: its characters from ``start`` to ``end`` become ``text``."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """The file with the fault."""
        return source[: self.start] + self.text + source[self.end :]

    def change(self) -> str:
        """The lines that it touches, before and after."""
        source = (ROOT / self.file).read_text()
        rest = len(source) - source.find("\n", self.end)
        first, faulty = source.rfind("\n", 0, self.start) + 1, self.apply(source)
        return " -> ".join(" ".join(s[first : len(s) - rest].split()) for s in (source, faulty))

    def key(self) -> tuple[str, str]:
        """What tells it from others."""
        return self.file, self.change()


def faults_of(name: str) -> Iterator[Fault]:
    """Every fault that a module can be given."""
    source = (ROOT / name).read_text()
    lines = source.splitlines(keepends=True)

    def place(node: ast.AST) -> tuple[int, int]:
        ends = ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        return tuple(
            sum(map(len, lines[: number - 1])) + len(lines[number - 1].encode()[:column].decode())
            for number, column in ends
        )

    def text(node: ast.AST) -> str:
        return source[slice(*place(node))]

    for node in _code(ast.parse(source)):
        for kind, edited, new in _edits(node, text):
            yield Fault(name, node.lineno, kind, *place(edited), new)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that act: neither annotations nor decorators, messages and imports."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            match child:
                case ast.JoinedStr() | ast.Import() | ast.ImportFrom():
                    pass
                case ast.Raise():
                    yield child
                case ast.AST():
                    if hasattr(child, "lineno"):
                        yield child
                    yield from _code(child)


def _edits(node: ast.AST, text: Callable[[ast.AST], str]) -> Iterator[tuple[str, ast.AST, str]]:
    """Kind, edited node and new text of each fault of a node."""
    match node:
        case ast.Compare(left=left, ops=[sign], comparators=[right]):
            for new in COMPARED[type(sign)]:
                yield "comparison", node, f"({text(left)} {new} {text(right)})"
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in COMPUTED:
            yield "arithmetic", node, f"({text(left)} {COMPUTED[type(sign)]} {text(right)})"
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield "sign", node, text(operand)
        case ast.BoolOp(op=word, values=values):
            other = " or " if isinstance(word, ast.And) else " and "
            yield "boolean", node, "(" + other.join(f"({text(value)})" for value in values) + ")"
        case ast.Constant(value=bool(value)):
            yield "boolean", node, str(not value)
        case ast.Constant(value=int(value)):
            yield "constant", node, {0: "1", 1: "0"}.get(value, str(value + 1))
        case ast.Constant(value=float(value)):
            yield "constant", node, repr(value * 2 or 1.0)
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            pass
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "branches", test, f"(not ({text(test)}))"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            yield "deleted", node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "deleted", node, "pass"


def sample(modules: Iterable[str], count: int, seed: int) -> list[Fault]:
    """Faults of each module in turn, so that small ones have their share."""
    draw = random.Random(seed)
    left = [[*faults_of(name)] for name in modules]
    for faults in left:
        draw.shuffle(faults)
    turns = zip_longest(*left)
    return [fault for turn in turns for fault in turn if fault is not None][:count]


def listed(name: str, edits: Iterable[tuple[str, str]]) -> Iterator[Fault]:
    """The faults of a module that are listed by hand, each a text and what it becomes."""
    source = (ROOT / name).read_text()
    for old, new in edits:
        start = source.index(old)
        line = source.count("\n", 0, start) + 1
        yield Fault(name, line, "listed", start, start + len(old), new)
