"""The service as a Ray Serve application: each replica has the whole app, with an engine of its own.

`serve run deploy/ray/serve.yaml` runs it. Needs the extra `ray`; nothing else of the service imports this package.
Serve makes the replicas, keeps their number, passes requests on and replaces a replica that is not healthy.
"""

from __future__ import annotations

import asyncio
import logging

from ray import serve
from ray.serve.config import RequestRouterConfig

from service.cli.startup import start
from service.cluster.ranking import ADAPTERS
from service.cluster.replica_app import ReplicaApp
from service.cluster.replica_settings import check_settings
from service.deps import Services
from service.errors import EngineError

STATS_PERIOD_S = 1.0
"""Between two reports of a replica's adapters to the routers."""

logger = logging.getLogger(__name__)


class Replica:
    """One replica: a whole service. Serve calls its methods on the event loop that runs the app."""

    def __init__(self) -> None:
        self._settings = start()
        check_settings(self._settings)
        self._app: ReplicaApp | None = None
        self._has_started = asyncio.Event()
        self._has_failed = False

    def __serve_build_asgi_app__(self) -> ReplicaApp:
        """Build the app, as Serve asks for it once."""
        from service.app import create_app

        app = create_app(self._settings, on_ready=self._has_started.set, on_failed=self._failed)
        self._app = ReplicaApp(app, serve.get_replica_context().replica_id.unique_id)
        return self._app

    def _failed(self) -> None:
        self._has_failed = True
        self._has_started.set()

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica; it gets no request before the first call returns.

        Raises:
            EngineError: The engine did not start, or is lost for good.
        """
        await self._has_started.wait()
        if self._has_failed:
            raise EngineError("the engine of this replica does not run")

    def record_routing_stats(self) -> dict[str, list[str]]:
        """Tell the routers which adapters answer here without being loaded first."""
        services: Services | None = None if self._app is None else self._app.state.get("services")
        if services is None or services.adapters is None or not self._has_started.is_set():
            return {ADAPTERS: []}
        return {ADAPTERS: services.adapters.resident()}


application = serve.deployment(
    name="Replica",
    request_router_config=RequestRouterConfig(
        request_router_class="service.cluster.adapter_router.AdapterRouter",
        request_routing_stats_period_s=STATS_PERIOD_S,
    ),
)(serve.ingress()(Replica)).bind()
"""What the configuration files in `deploy/ray` name."""
