"""The Celery application: `celery -A worker.app worker -Q inference --pool=prefork --concurrency=1`, one a GPU."""

from typing import Any

from celery import Celery

from dicom_node.settings import load_settings
from worker.settings import limits

QUEUE = "inference"
"""The one queue; the node rings on it."""


def configuration() -> dict[str, Any]:
    """Return Celery's configuration, from the node's; celery calls it at its first need, not at import."""
    settings = load_settings()
    bounds = limits(settings.worker)
    return {
        "broker_url": settings.broker.url.get_secret_value(),
        "task_default_queue": QUEUE,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        # The ledger is the truth: a message is acknowledged late, and one that is lost or comes twice does no harm.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_proc_alive_timeout": 300.0,  # a child loads the ensemble before it says that it is alive
        "task_time_limit": bounds.task.total_seconds(),
        "broker_transport_options": {
            "visibility_timeout": bounds.visibility.total_seconds(),
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a worker waits for its broker as long as it takes
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


app = Celery("worker", include=["worker.tasks"])
app.add_defaults(configuration)
