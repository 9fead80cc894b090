SELECT count(*) AS row_groups,
    count(*) FILTER ('Wb8fabc31378ce07' BETWEEN stats_min_value AND stats_max_value) AS to_read
FROM parquet_metadata('s3://lake/unleash/start_date=*/*.parquet')
WHERE path_in_schema = 'device_id'
