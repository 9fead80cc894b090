-- DuckDB: what each camera saw, over all days that the daily example has landed.
SELECT device, class_name, count(*) AS detections, avg(count) AS mean FROM 's3://lake/unleash/**/*.parquet' GROUP BY ALL
