"""What the package is made of."""

import dualpipe


def test_names() -> None:
    assert "dualpipe" in dualpipe.names()
