"""Let pytest explain failed asserts of the shared store cases."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.support.store_cases")
