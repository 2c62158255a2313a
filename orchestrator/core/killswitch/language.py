"""Text to tree: a tokeniser and a recursive descent, written out so that every error can point at its place.

    condition  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | comparison
    comparison = sum ( "<" | "<=" | ">" | ">=" | "==" | "!=" ) sum
    sum        = product { ( "+" | "-" ) product }
    product    = factor { ( "*" | "/" ) factor }
    factor     = "-" factor | number | name | errors "[" string "]" | recent_failed_rate "(" n ")" | "(" condition ")"

Python's own parser is not used: it normalises Unicode names, counts columns in bytes, recurses on what strangers send,
and its messages speak of Python. Nothing is ever evaluated but the tree of `tree`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from orchestrator.core.killswitch.names import ERRORS, FORMS, KEYWORDS, NAMES, RECENT
from orchestrator.core.killswitch.tree import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_WINDOW,
    And,
    Arithmetic,
    Comparison,
    Condition,
    Errors,
    Name,
    Negative,
    Node,
    Not,
    Number,
    Or,
    Quantity,
    RecentRate,
    all_of,
    any_of,
    depth,
    is_rate_beyond_one,
    written,
)
from orchestrator.errors import ExpressionError

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
      | (?P<string>"[^"\\]*"|'[^'\\]*')
      | (?P<op><=|>=|==|!=|[-+*/<>()\[\]])""",
    re.VERBOSE,
)
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")

# What people write out of habit from elsewhere, the longer spelling first, and what it is here.
_HABITS = {
    "&&": "write `and`",
    "||": "write `or`",
    "&": "write `and`",
    "|": "write `or`",
    "~": "write `not`",
    "!": "write `not`",
    "=": "write `==` to compare",
    "%": "there is no percent: write 0.05 for 5 %",
    "≥": "write `>=`",
    "≤": "write `<=`",
    "≠": "write `!=`",
    "×": "write `*`",
    "÷": "write `/`",
    "−": "write `-`",
    "–": "write `-`",
    "“": 'write the plain quotation mark "',
    "”": 'write the plain quotation mark "',
    "‘": "write the plain quotation mark '",
    "’": "write the plain quotation mark '",
    "\N{NO-BREAK SPACE}": "write an ordinary space",
    ",": "write numbers without separators: 1000",
    "\\": "error types are written without a backslash",
    '"': "the text has no closing quotation mark",
    "'": "the text has no closing quotation mark",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, name, string, op, end; none and stuck: no token is possible there
    text: str
    position: int


def read_condition(text: str, *, field: str | None) -> Condition:
    """The tree of an expression.

    Args:
        text: The expression, at most `MAX_LENGTH` characters and `MAX_DEPTH` levels deep.
        field: The job parameter it was given for, named in errors.

    Raises:
        ExpressionError: it is not one; carries the place.
    """
    return _Parser(text, field).whole()


class _Parser:
    """One pass over one text. Each method reads what its name says, from the current token on."""

    def __init__(self, text: str, field: str | None) -> None:
        self._text, self._field = text, field
        self._nesting = 0
        if len(text) > MAX_LENGTH:
            raise self._refused(
                f"an expression has at most {MAX_LENGTH:,} characters, this one {len(text):,}", MAX_LENGTH
            )
        self._tokens = self._tokenise()
        self._index = 0

    # Tokens

    def _tokenise(self) -> list[_Token]:
        """All tokens up to the end, or up to the first place that is none; `_token` refuses that one when it is met."""
        tokens: list[_Token] = []
        position = 0
        while position < len(self._text):
            found = _TOKEN.match(self._text, position)
            if found is None:
                return [*tokens, _Token("none", "", position)]
            kind, position = str(found.lastgroup), found.end()
            follower = self._text[position : position + 1]
            # Nothing may stick to a number (5m, 1_000, 0x10, 1.2.3), no foreign letter to a name (faıled).
            if kind == "name" and follower.isalnum():
                return [*tokens, _Token("none", "", position)]
            if kind != "space":
                tokens.append(_Token(kind, found.group(), found.start()))
            if kind == "number" and (follower.isalnum() or follower in ("_", ".")):
                return [*tokens, _Token("stuck", follower, position)]
        # The end lies behind the last token, not behind the blanks that follow it.
        return [*tokens, _Token("end", "", len(self._text.rstrip(" \t\r\n")))]

    def _refused_character(self, position: int) -> ExpressionError:
        for habit, remedy in _HABITS.items():
            if self._text.startswith(habit, position):
                return self._refused(f"{_spelled(habit)} has no place here: {remedy}", position)
        return self._refused(f"{_spelled(self._text[position])} has no place here", position)

    @property
    def _token(self) -> _Token:
        token = self._tokens[self._index]
        if token.kind == "none":
            raise self._refused_character(token.position)
        if token.text == "_" and token.kind == "stuck":
            raise self._refused("write numbers without separators: 1000", token.position)
        if token.kind == "stuck":
            reason = "a number stands alone, without a unit: durations are in seconds, rates from 0 to 1"
            raise self._refused(reason, token.position)
        return token

    def _next(self) -> _Token:
        token = self._token
        self._index += 1
        return token

    def _at(self, kind: str, *texts: str) -> bool:
        return self._token.kind == kind and self._token.text in texts

    def _expect(self, op: str, reason: str) -> None:
        if not self._at("op", op):
            raise self._refused(reason, self._token.position)
        self._next()

    # Grammar, from the loosest binding to the tightest

    def whole(self) -> Condition:
        if self._token.kind == "end":
            raise self._refused("the expression is empty; write one like `failed >= 10`", 0)
        start = self._token.position
        condition = self._condition(self._disjunction(), start)
        if self._token.kind != "end":
            raise self._refused_leftover()
        length = len(written(condition))
        if length > MAX_LENGTH:
            reason = (
                f"an expression has at most {MAX_LENGTH:,} characters; with spaces in place this one has {length:,}"
            )
            raise self._refused(reason, len(self._text))
        return condition

    def _disjunction(self) -> Node:
        return self._joined("or", self._conjunction, any_of)

    def _conjunction(self) -> Node:
        return self._joined("and", self._negation, all_of)

    def _joined(self, word: str, operand: Callable[[], Node], join: Callable[[list[Condition]], Condition]) -> Node:
        start = self._token.position
        first = operand()
        if not self._at("name", word):
            return first
        operands = [self._condition(first, start)]
        while self._at("name", word):
            at = self._next().position
            start = self._token.position
            operands.append(self._condition(operand(), start))
        return self._shallow(join(operands), at)

    def _negation(self) -> Node:
        if not self._at("name", "not"):
            return self._comparison()
        at = self._next().position
        start = self._token.position
        operand = self._condition(self._nested(self._negation, at), start)
        return self._shallow(Not(operand), at)

    def _comparison(self) -> Node:
        start = self._token.position
        left = self._sum()
        if not self._at("op", *_COMPARISONS):
            return left
        op = self._next()
        right_start = self._token.position
        right = self._sum()
        comparison = Comparison(cast("Any", op.text), self._quantity(left, start), self._quantity(right, right_start))
        if self._at("op", *_COMPARISONS):
            middle = written(comparison.right)
            remedy = f"{written(comparison)} and {middle} {self._token.text} ..."
            raise self._refused(f"comparisons do not chain: write `{remedy}`", self._token.position)
        if is_rate_beyond_one(comparison):
            raise self._refused("a rate goes from 0 to 1: write 0.05 for 5 %", start)
        return self._shallow(comparison, op.position)

    def _sum(self) -> Node:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Node:
        return self._chain(("*", "/"), self._factor)

    def _chain(self, ops: tuple[str, ...], operand: Callable[[], Node]) -> Node:
        start = self._token.position
        left = operand()
        while self._at("op", *ops):
            op = self._next()
            right_start = self._token.position
            right = self._quantity(operand(), right_start)
            left = self._shallow(Arithmetic(cast("Any", op.text), self._quantity(left, start), right), op.position)
        return left

    def _factor(self) -> Node:
        token = self._token
        if self._at("op", "-"):
            self._next()
            start = self._token.position
            operand = self._quantity(self._nested(self._factor, token.position), start)
            return self._shallow(Negative(operand), token.position)
        if self._at("op", "("):
            self._next()
            inner = self._nested(self._disjunction, token.position)
            self._expect(")", "a closing parenthesis is missing here")
            return inner
        if token.kind == "number":
            return self._number()
        if token.kind == "name" and token.text not in KEYWORDS:
            return self._name()
        if token.kind == "string":
            raise self._refused(f'a quoted text stands only in {ERRORS}["TimeoutError"]', token.position)
        raise self._refused(f"expected a name, a number or a parenthesis here, found {_found(token)}", token.position)

    def _number(self) -> Number:
        token = self._next()
        number = float(token.text)
        if number == float("inf"):
            raise self._refused("the number is too large: it must be finite", token.position)
        if number == 0 and re.search("[1-9]", re.split("[eE]", token.text)[0]):
            raise self._refused("the number is too small: it would count as 0", token.position)
        return Number(number)

    def _name(self) -> Quantity:
        token = self._next()
        if token.text == ERRORS:
            return self._errors()
        if token.text == RECENT:
            return self._recent()
        if token.text not in NAMES:
            raise self._refused(_unknown(token.text), token.position)
        if self._at("op", "(", "["):
            raise self._refused(f"`{token.text}` is a plain name and takes nothing in brackets", self._token.position)
        return Name(token.text)

    def _errors(self) -> Errors:
        example = f'write {ERRORS}["TimeoutError"]'
        self._expect("[", f"`{ERRORS}` needs the type of an error: {example}")
        token = self._next() if self._token.kind == "string" else None
        if token is None:
            raise self._refused(f"expected the type of an error in quotation marks: {example}", self._token.position)
        name = token.text[1:-1]
        if (reason := refuse_type_name(name)) is not None:
            raise self._refused(reason, token.position)
        self._expect("]", f"a closing bracket is missing here: {example}")
        return Errors(name)

    def _recent(self) -> RecentRate:
        self._expect("(", f"`{RECENT}` needs how many items it looks back on: write {RECENT}(500)")
        token = self._token
        # 6 digits at the most, before `int` is let near them
        if token.kind != "number" or not re.fullmatch("0*[1-9][0-9]{0,5}", token.text) or int(token.text) > MAX_WINDOW:
            raise self._refused(f"expected a whole number from 1 to {MAX_WINDOW:,}", token.position)
        self._next()
        self._expect(")", f"a closing parenthesis is missing here: write {RECENT}({int(token.text)})")
        return RecentRate(int(token.text))

    # What is refused

    def _condition(self, node: Node, position: int) -> Condition:
        if isinstance(node, Comparison | Not | And | Or):
            return node
        shown = written(node)
        raise self._refused(f"`{shown}` is a number, not a condition: compare it, as in `{shown} > 0`", position)

    def _quantity(self, node: Node, position: int) -> Quantity:
        if isinstance(node, Comparison | Not | And | Or):
            raise self._refused(
                f"`{written(node)}` is a condition, not a number: join conditions by `and`, `or`", position
            )
        return node

    def _nested(self, inner: Callable[[], Node], position: int) -> Node:
        if self._nesting >= MAX_DEPTH:
            raise self._refused(f"nested deeper than {MAX_DEPTH} levels", position)
        self._nesting += 1
        try:
            return inner()
        finally:
            self._nesting -= 1

    def _shallow(self, node: Node, position: int) -> Node:
        if depth(node) > MAX_DEPTH:
            raise self._refused(f"nested deeper than {MAX_DEPTH} levels", position)
        return node

    def _refused_leftover(self) -> ExpressionError:
        token = self._token
        if self._at("op", ")"):
            return self._refused("this parenthesis was never opened", token.position)
        if token.kind == "name" and (near := _near(token.text, KEYWORDS)):
            return self._refused(f"expected `and` or `or` here; did you mean `{near}`?", token.position)
        return self._refused(f"expected `and`, `or` or the end here, found {_found(token)}", token.position)

    def _refused(self, reason: str, position: int) -> ExpressionError:
        return ExpressionError(reason, text=self._text, position=position, field=self._field)


def refuse_type_name(name: str) -> str | None:
    """Why that cannot be the type of an error in an expression; None when it can."""
    if not name or name != name.strip() or not name.isprintable() or set(name) & set("\"'\\") or len(name) > 200:
        return 'the type of an error is its class name, as in errors["TimeoutError"]'
    return None


def _near(name: str, candidates: tuple[str, ...]) -> str | None:
    by_lower = {c.lower(): c for c in candidates}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[close[0]] if close else None


def _unknown(name: str) -> str:
    if near := _near(name, (*NAMES, *FORMS, *KEYWORDS)):
        return f"there is no name `{name}`; did you mean `{near}`?"
    return f"there is no name `{name}`; the names are {', '.join((*NAMES, *FORMS))}"


def _found(token: _Token) -> str:
    return "the end" if token.kind == "end" else f"`{token.text}`"


def _spelled(characters: str) -> str:
    """Characters for a message; those that look like others or like nothing by their Unicode name too."""
    if characters.isascii() and characters.isprintable():
        return f"`{characters}`"
    name = f"{unicodedata.name(characters, 'a character without a name')} (U+{ord(characters):04X})"
    return f"`{characters}`, {name}," if characters.isprintable() else name
