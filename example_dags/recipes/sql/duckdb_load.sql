CREATE TABLE IF NOT EXISTS daily_counts (
    device VARCHAR, start_date DATE, class_name VARCHAR, mean DOUBLE, row_count BIGINT
);
BEGIN;
-- Delete what an earlier run loaded for the devices and days that this run wrote.
DELETE FROM daily_counts WHERE (device, start_date) IN (
    SELECT (url_decode(regexp_extract(url, 'device=([^/]+)', 1)), regexp_extract(url, 'start_date=([^/]+)', 1)::DATE)
    FROM (SELECT unnest(getvariable('urls')) AS url)
);
INSERT INTO daily_counts
SELECT device, start_date, class_name, avg(count), count(*)
FROM read_parquet(getvariable('urls'), hive_types = {'device': VARCHAR, 'start_date': DATE})
GROUP BY ALL;
COMMIT;
