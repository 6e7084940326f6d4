"""Which network a request comes from: what failed sign-ins are counted by."""

from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network
from typing import Final

from flask import request

UNKNOWN: Final = "unknown"
IPV6_PREFIX: Final = 64  # what one customer of a provider has at least


def network_of_request() -> str:
    """The address of the client, or for IPv6 its network, within which it can choose any address."""
    return network_of(request.remote_addr or "")


def network_of(address: str) -> str:
    """The same of an address as text."""
    try:
        return str(IPv4Address(address))
    except AddressValueError:
        pass
    try:
        v6 = IPv6Address(address.partition("%")[0])
    except AddressValueError:
        return UNKNOWN
    if v6.ipv4_mapped is not None:
        return str(v6.ipv4_mapped)
    return str(IPv6Network((v6, IPV6_PREFIX), strict=False))
