"""Each row of the table of endings is proven by tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.docs.ending import ENDINGS, rows

TESTS = Path(__file__).parents[1]
PROOFS = sorted({proof for ending in ENDINGS for proof in ending.proofs})


@pytest.mark.parametrize("proof", PROOFS)
def test_a_proof_of_how_a_parent_may_end_is_a_test(proof: str) -> None:
    file, _, name = proof.partition("::")
    functions = [n.name for n in ast.walk(ast.parse((TESTS / file).read_text()))
                 if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]  # fmt: skip
    assert name in functions


def test_no_way_for_a_parent_to_end_is_without_a_proof_or_a_number_that_is_missing() -> None:
    assert all(ending.proofs for ending in ENDINGS)
    assert not [text for row in rows() for text in row if "{" in text or not text]
