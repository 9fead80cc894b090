SELECT device_id FROM manifest WHERE "start" = '2026-01-12T00:00:00Z' AND "rows" = 0 ORDER BY ALL
