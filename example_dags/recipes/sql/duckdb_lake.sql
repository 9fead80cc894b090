CREATE OR REPLACE VIEW lake AS
SELECT *
FROM read_parquet('s3://lake/unleash/device=*/**/*.parquet', hive_types = {'device': VARCHAR, 'start_date': DATE});

SELECT device, date_trunc('hour', timestamp) AS hour, class_name, avg(count) AS mean
FROM lake
WHERE start_date BETWEEN DATE '2026-01-10' AND DATE '2026-01-12'
GROUP BY ALL
ORDER BY ALL;
