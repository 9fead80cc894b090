CREATE EXTERNAL TABLE IF NOT EXISTS unleash.lake
WITH PARTITION COLUMNS (device STRING, start_date DATE)
OPTIONS (
    format = 'PARQUET',
    uris = ['gs://lake/unleash_bigquery/device=*'],
    hive_partition_uri_prefix = 'gs://lake/unleash_bigquery',
    require_hive_partition_filter = TRUE
);

CREATE TABLE IF NOT EXISTS unleash.analytics (
    start_date DATE,
    class_name STRING,
    count FLOAT64,
    device_id STRING,
    frame_number INT64,
    model_id STRING,
    session_id STRING,
    source_file_name STRING,
    timestamp TIMESTAMP,
    extra STRING
)
PARTITION BY start_date
CLUSTER BY device_id;
