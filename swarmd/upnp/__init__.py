"""Asking the local router to forward a node's ports: UPnP's Internet Gateway Device, v1 and v2.

`mapping` decides (pure), `port_mapper` acts. `discovery` finds routers by SSDP, `gateway` talks to
one; both take its answers for hostile. SSDP's format, XML and SOAP are `async-upnp-client`'s.
"""
