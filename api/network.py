"""Which network a request comes from: what failed sign-ins and requests without a credential are counted by."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from flask import request

UNKNOWN: Final = "unknown"
IPV6_PREFIX: Final = 64  # what one customer of a provider has at least


def network_of_request() -> str:
    """The address of the client, or for IPv6 its network, within which it can choose any address."""
    return network_of(request.remote_addr)


@lru_cache(maxsize=4_096)
def network_of(address: str | None) -> str:
    """The same of an address as text. What cannot be read shares one name, so that nobody gains by it."""
    written = (address or "").strip()
    if written.startswith("["):
        written = written[1:].partition("]")[0]
    elif written.count(":") == 1:  # some proxies add the port
        written = written.partition(":")[0]
    try:
        read = ip_address(written)
    except ValueError:
        return UNKNOWN
    match read:
        case IPv6Address(ipv4_mapped=IPv4Address() as mapped):
            return str(mapped)
        case IPv6Address():
            return str(IPv6Network((int(read), IPV6_PREFIX), strict=False))
        case _:
            return str(read)
