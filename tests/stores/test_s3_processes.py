"""What a process that ends early leaves on an S3-compatible store; the other tests of S3 are in test_s3.py."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("store_cases")
from store_cases import ProcessCases  # noqa: E402
from test_s3 import lake, seaweedfs  # noqa: E402, F401 – fixtures


class TestS3Processes(ProcessCases):
    pass
