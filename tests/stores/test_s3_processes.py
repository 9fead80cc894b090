"""What a process leaves on an S3-compatible store that ends before it should; the rest of S3 is in tests/test_s3.py."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("store_cases")
from store_cases import ProcessCases  # noqa: E402
from test_s3 import lake, seaweedfs  # noqa: E402, F401 – fixtures


class TestS3Processes(ProcessCases):
    pass
