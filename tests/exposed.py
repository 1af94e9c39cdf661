"""Everything that node and workers expose, as one scrape of all of them would show it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from prometheus_client import CollectorRegistry, generate_latest

from dicom_node.ledger.engine import close_ledger, open_ledger
from dicom_node.metrics.acceptor import AcceptorMetrics
from dicom_node.metrics.delivery import DeliveryMetrics
from dicom_node.settings import settings_from
from dicom_node.store import InstanceStore
from dicom_node.web.health import Pulse
from dicom_node.web.metrics import NodeCollector
from worker.engine import Engine
from worker.metrics import WorkerMetrics

FREE, TOTAL = 3 << 30, 8 << 30


def exposed(folder: Path) -> str:
    """Return the text of a scrape; the ledger and the store are in `folder`."""
    settings = settings_from(
        {
            "node": {"data_dir": str(folder)},
            "broker": {"url": "redis://127.0.0.1:1/0"},
            "objects": {"url": "s3://nowhere"},
        }
    )
    store = InstanceStore(folder, min_free_bytes=0)
    sessions = open_ledger(settings.database_url)
    registry = CollectorRegistry()
    AcceptorMetrics(registry)
    DeliveryMetrics(["pacs"], registry)
    worker = WorkerMetrics(registry)
    worker.holds(engine_like("phantom"))
    worker.look_at_gpu(torch.device("cuda:1"), cuda_like())
    registry.register(NodeCollector(settings, sessions, store, Pulse()))
    try:
        return generate_latest(registry).decode()
    finally:
        close_ledger(sessions)


def engine_like(name: str) -> Engine:
    """Return what the metrics ask of an engine."""
    return cast(Engine, SimpleNamespace(info=SimpleNamespace(name=name, version="1.0"), device="cpu"))


def cuda_like() -> Any:
    """Return what PyTorch says of a GPU, for machines without one."""
    return SimpleNamespace(mem_get_info=lambda _device: (FREE, TOTAL), utilization=lambda _device: 40)
