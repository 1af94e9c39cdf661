"""Delivery: each report to each of its peers, until the peer has answered, from the outbox of the ledger.

One thread a peer, so that a dead destination never blocks another. What a failure means follows PS3.4 B.2.3 and
PS3.8 9.3.4: what may pass is tried again, longer and longer apart; what will not is a dead letter.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import structlog
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from sqlalchemy.exc import SQLAlchemyError

from dicom_node.clock import Clock
from dicom_node.errors import DeliveryError, Refused, Transient
from dicom_node.ledger import outbox
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.outbox import DueDelivery
from dicom_node.settings import Peer
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)
