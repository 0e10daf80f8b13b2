"""Which replica gets a request: one of those that hold its adapter, else any.

A request names its adapter in the header that Ray Serve has for models, `serve_multiplexed_model_id`, or
`serve-multiplexed-model-id` where a proxy drops underscores. Without it a request goes to any replica; each can load
each adapter. Runs in Serve's proxies.
"""

from __future__ import annotations

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from service.cluster.ranking import rank


class AdapterRouter(FIFOMixin, RequestRouter):
    """Offers the holders of an adapter first, and the others if those have no room."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Choose a few replicas, in ranks of which Serve tries the first one first."""
        wanted = pending_request.metadata.multiplexed_model_id if pending_request is not None else ""
        return rank(candidate_replicas, wanted)
