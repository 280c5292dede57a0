"""Addresses as text. Pure, so that cores may use it; binding is in `meshcommon.listen`."""

from __future__ import annotations


def split(listen: str) -> tuple[str, int]:
    """`host:port` as (host, port); IPv6 hosts in brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
