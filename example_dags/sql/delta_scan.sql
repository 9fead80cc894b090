SELECT device, class_name, count(*) AS detections, avg(count) AS mean
FROM delta_scan('s3://lake/unleash_delta')
WHERE start_date = '2026-01-12'
GROUP BY ALL
ORDER BY ALL
