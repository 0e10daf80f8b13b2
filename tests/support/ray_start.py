"""`ray start`, for a machine that does much else. The Python that has Ray runs it; the tests import nothing of Ray.

Ray's raylet ends where the agents that it starts have not said within 15 s which ports they found, although each was
told its port, and `ray start` gives up after 30 s. So the ports are said before, and the node gets minutes.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import ray._raylet as names
from ray._private import services
from ray.scripts.scripts import main

LIMIT_S = 300
PORTS = {
    "metrics_agent_port": names.METRICS_AGENT_PORT_NAME,
    "metrics_export_port": names.METRICS_EXPORT_PORT_NAME,
    "dashboard_agent_listen_port": names.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    "runtime_env_agent_port": names.RUNTIME_ENV_AGENT_PORT_NAME,
}
_start_raylet, _get_node = services.start_raylet, services.get_node


def start_raylet(*arguments: Any, **options: Any) -> Any:
    given = inspect.signature(_start_raylet).bind(*arguments, **options).arguments
    for argument, name in PORTS.items():
        names.persist_port(given["session_dir"], given["node_id"], name, given[argument])
    return _start_raylet(*arguments, **options)


def get_node(*arguments: Any, **options: Any) -> Any:
    end_s = time.monotonic() + LIMIT_S
    while True:
        try:
            return _get_node(*arguments, **options)
        except RuntimeError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.3)


if __name__ == "__main__":
    services.start_raylet, services.get_node = start_raylet, get_node
    main()
