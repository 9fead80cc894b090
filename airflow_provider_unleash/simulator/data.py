"""Simulated rows and sessions: pure functions of seed, device and time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any
from zlib import crc32

Record = dict[str, Any]

HOUR_MS = 3_600_000
FRAMES_PER_SECOND = 15
ROWS_PER_DAY = 5000
SESSION_PERIOD = 4 * 3600.0

# The documented examples order keys like this in descriptive responses, and alphabetically in compact ones.
TABLEAU_KEYS = (
    "timestamp", "class_name", "count", "device_id", "source_file_name", "frame_number", "model_id", "session_id",
)  # fmt: skip
KEYS = tuple(sorted(TABLEAU_KEYS))

# How busy a place is, by hour of the day: quiet nights and two rush hours.
BUSY = (
    0.05, 0.03, 0.02, 0.02, 0.05, 0.20, 0.50, 0.90, 1.00, 0.70, 0.55, 0.60,
    0.70, 0.65, 0.60, 0.70, 0.90, 1.00, 0.85, 0.60, 0.40, 0.30, 0.20, 0.10,
)  # fmt: skip
ADJECTIVES = ("sneaky", "gentle", "brave", "quiet", "rapid", "sunny", "clever", "lucky")
ANIMALS = ("firefox", "wombat", "heron", "otter", "badger", "lynx", "magpie", "gecko")


@dataclass(frozen=True)
class Profile:
    """
    What a device detects.

    :param classes: (name, weight, highest count) of each class; empty for a device without rows
    :param crowd: each frame has one row for every class, instead of one row for a random class
    :param recorded: the source is a recording, not a live stream
    """

    model_id: str
    classes: tuple[tuple[str, int, int], ...]
    crowd: bool = False
    recorded: bool = False


STREET = Profile("starter-ai", (("person", 4, 7), ("car", 5, 9), ("truck", 1, 2), ("bicycle", 2, 4)))
CROWD = (
    ("this_frame_persons_count", 1, 12),
    ("number_of_groups", 1, 4),
    ("group_pixel_size", 1, 900),
    ("total_count", 1, 60),
)
PROFILES = {
    "Wb8fabc31378ce07": STREET,
    "W022abc5be35bb72": Profile("starter-ai", (("bicycle", 5, 6), ("person", 4, 5), ("car", 1, 3))),
    "Weea288bc1faaddd": Profile("vehicle-counting", (("car", 6, 14), ("truck", 3, 4), ("bicycle", 1, 2))),
    "W9d3f1bcad8e8abd": Profile("sparse-crowd-density-alphapose", CROWD, crowd=True),
    "W41f0c6e7a9d2b38": replace(STREET, recorded=True),
    "W7d2e90b4c6a1f58": replace(STREET, classes=()),
}


def profile_of(device_id: str) -> Profile:
    """Return the profile of a device; one that is not in :data:`PROFILES` is a street camera."""
    return PROFILES.get(device_id, STREET)


def generate_rows(
    seed: int,
    device_id: str,
    start_ms: int,
    end_ms: int,
    *,
    rows_per_day: int = ROWS_PER_DAY,
    session_period: float = SESSION_PERIOD,
) -> Iterator[Record]:
    """
    Yield the rows of a device with timestamps in [start_ms, end_ms], both included, ordered by time.

    A row depends only on seed, device and time, so overlapping windows return the same rows for their overlap.

    :param rows_per_day: approximate number of rows per day
    :param session_period: average seconds between new sessions
    """
    for hour in range(max(start_ms, 0) // HOUR_MS, end_ms // HOUR_MS + 1):
        for time_ms, record in _hour_records(seed, device_id, hour, rows_per_day, session_period):
            if start_ms <= time_ms <= end_ms:
                yield dict(record)


class EvenRows:
    """``total`` rows spread evenly over [start_ms, end_ms), computed when they are read, for benchmarks."""

    def __init__(self, seed: int, device_id: str, start_ms: int, end_ms: int, total: int) -> None:
        self._prefix, self._device_id, self._profile = f"{seed}/{device_id}", device_id, profile_of(device_id)
        self._start, self._span, self._total = start_ms, end_ms - start_ms, total
        self._session = str(session_start(seed, start_ms))
        self._source = _source_file_name(seed, device_id, start_ms // HOUR_MS)

    def __len__(self) -> int:
        return self._total if self._profile.classes else 0

    def __getitem__(self, index: int) -> Record:
        profile, time_ms = self._profile, self._start + index * self._span // self._total
        digest = crc32(f"{self._prefix}/{time_ms}/{index}".encode())
        name, _, max_count = profile.classes[digest % len(profile.classes)]
        origin = (self._device_id, index + 1, profile.model_id, self._session, self._source)
        return _record(name, 1 + digest // 16 % max_count, *origin, format_timestamp(time_ms))


def generate_sessions(seed: int, start_ms: int, end_ms: int, session_period: float = SESSION_PERIOD) -> Iterator[int]:
    """Yield the start times of the sessions that started in [start_ms, end_ms], in epoch milliseconds."""
    period = max(1, int(session_period * 1000))
    for index in range(start_ms // period, end_ms // period + 1):
        if start_ms <= (start := _nth_session(seed, index, period)) <= end_ms:
            yield start


def session_start(seed: int, time_ms: int, session_period: float = SESSION_PERIOD) -> int:
    period = max(1, int(session_period * 1000))
    index = time_ms // period
    start = _nth_session(seed, index, period)
    return start if start <= time_ms else _nth_session(seed, index - 1, period)


def _nth_session(seed: int, index: int, period: int) -> int:
    return index * period + crc32(f"{seed}/session/{index}".encode()) % max(1, period * 3 // 4)


@lru_cache(maxsize=256)
def _hour_records(
    seed: int, device_id: str, hour: int, rows_per_day: int, session_period: float
) -> tuple[tuple[int, Record], ...]:
    profile = profile_of(device_id)
    rng = random.Random(f"{seed}/{device_id}/{hour}")
    source = _source_file_name(seed, device_id, hour)
    frames_in_second: Counter[int] = Counter()
    records = []
    for second in _frame_seconds(rng, profile, hour, rows_per_day):
        time_ms = hour * HOUR_MS + second * 1000
        session = session_start(seed, time_ms, session_period)
        # All further frames of a crowded second get the number of its last one, so frame numbers never decrease.
        nth = min(frames_in_second[second], FRAMES_PER_SECOND - 1)
        frames_in_second[second] += 1
        frame = (time_ms - session) * FRAMES_PER_SECOND // 1000 + nth
        constant = (device_id, frame, profile.model_id, str(session), source, format_timestamp(time_ms))
        for name, count in _draw_counts(rng, profile, hour):
            records.append((time_ms, _record(name, count, *constant)))
    return tuple(records)


def _frame_seconds(rng: random.Random, profile: Profile, hour: int, rows_per_day: int) -> list[int]:
    if not profile.classes:
        return []
    rows = rows_per_day * BUSY[hour % 24] / sum(BUSY) * (0.8 + 0.4 * rng.random())
    frames = round(rows / len(profile.classes)) if profile.crowd else round(rows)
    return sorted(int(rng.random() * 3600) for _ in range(frames))


def _draw_counts(rng: random.Random, profile: Profile, hour: int) -> list[tuple[str, int]]:
    classes, busy = profile.classes, BUSY[hour % 24]
    if profile.crowd:
        return [(name, int(rng.random() * (1 + max_count * busy))) for name, _, max_count in classes]
    [(name, _, max_count)] = rng.choices(classes, [weight for _, weight, _ in classes])
    return [(name, 1 + int(rng.random() ** 2 * max_count * busy))]


@lru_cache(maxsize=1024)
def _source_file_name(seed: int, device_id: str, hour: int) -> str:
    if profile_of(device_id).recorded:
        start = hour * HOUR_MS // 1000
        return f"{device_id}-{start}-{time.strftime('%d-%b-%y-%H-%M-%S', time.gmtime(start))}.mp4"
    rng = random.Random(f"{seed}/{device_id}")
    return f"{device_id}?token={rng.choice(ADJECTIVES)}-{rng.choice(ANIMALS)}-{rng.randrange(100, 1000)}"


def _record(*values: Any) -> Record:
    return dict(zip(KEYS, values, strict=True))


def format_timestamp(time_ms: int) -> str:
    """Format epoch milliseconds as the API does: ``2020-08-17T02:08:49.000Z``."""
    second, millisecond = divmod(time_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{millisecond:03d}Z"


def parse_timestamp(timestamp: Any) -> int | None:
    """Return epoch milliseconds, or None if the value is not an ISO 8601 time."""
    try:
        parsed = datetime.fromisoformat(timestamp)
    except (TypeError, ValueError):
        return None
    return round((parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp() * 1000)
