"""The REST API: Azure Resource Manager's paths, long-running operations and errors, served by ourselves.

One file per resource; all lie under ``/subscriptions/{s}/resourceGroups/{g}/providers/Microsoft.RecoveryServices/vaults/{v}``.
Any subscription, group, vault and ``api-version`` is accepted and echoed in ids: one server is one vault. Every route
needs a bearer token (``sign_in``); every change writes an audit row. What a request becomes is decided in pure functions
(``*_shape`` modules build the answers); routes only fetch, decide, store.

::

    around = Surroundings(database=..., orders=..., news=..., fabrics={...})
    engine = JobEngine(..., World(..., preflight=readiness.preflight_of(around)))
    services = Services(**{...}, jobs=engine, groups=GroupPoints(database))
    app.include_router(arm_router(services))
"""

from __future__ import annotations

from fastapi import APIRouter, Depends

from failback.configuration_server.api.services import JobControl, Services, SiteFabric, Surroundings

__all__ = ["JobControl", "Services", "SiteFabric", "Surroundings", "arm_router"]


def arm_router(services: Services) -> APIRouter:
    """Every ARM route over these services."""
    from failback.configuration_server.api import (
        clients,
        containers,
        events,
        fabrics,
        jobs,
        long_running,
        policies,
        protected_items,
        readiness,
        recovery_points,
        replication_groups,
        scrubs,
        site_resources,
        unavailable,
        views,
    )
    from failback.configuration_server.api.arm import VAULT
    from failback.configuration_server.api.faults import FaultRoute
    from failback.configuration_server.api.sign_in import signed_in

    router = APIRouter(prefix=VAULT, route_class=FaultRoute, dependencies=[Depends(signed_in(services))])
    for resource in (
        fabrics,
        containers,
        protected_items,
        recovery_points,
        replication_groups,
        scrubs,
        views,
        readiness,
        jobs,
        policies,
        events,
        long_running,
        clients,
        site_resources,
        unavailable,
    ):
        router.include_router(resource.router(services))
    return router
