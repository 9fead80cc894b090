-- DuckDB: what each camera saw, over all days that the daily example has landed.
SELECT device, class_name, sum(count) FROM 's3://lake/unleash/**/*.parquet' GROUP BY ALL
