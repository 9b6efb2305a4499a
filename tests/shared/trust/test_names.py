"""Names that become file names and arguments."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.trust.names import checked_address, checked_name


@pytest.mark.parametrize("name", ["north", "site-1", "A_b", "7", "x" * 40])
def test_plain_names_pass(name: str) -> None:
    assert checked_name("site name", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "..", "a/b", "../../etc", "a b", "a.b", "-rf", "_x", "a\n", "a\0", 'a"b', "a'b", "ä", "x" * 41, "$(id)"],
)
def test_names_that_could_mean_something_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="site name must be 1 to 40"):
        checked_name("site name", name)


def test_addresses() -> None:
    assert checked_address("fl.example.org:8443") == ("fl.example.org", 8443)
    assert checked_address("127.0.0.1:1") == ("127.0.0.1", 1)
    assert checked_address("[::1]:65535") == ("::1", 65535)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":8443", "host:0", "host:65536", "https://host:1", "a b:1", "::1:2"]
)
def test_odd_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        checked_address(address)
