CREATE FILE FORMAT IF NOT EXISTS unleash_parquet TYPE = PARQUET USE_LOGICAL_TYPE = TRUE;

CREATE STAGE IF NOT EXISTS unleash_lake
    URL = 's3://lake/unleash_snowflake/'
    STORAGE_INTEGRATION = lake
    FILE_FORMAT = (FORMAT_NAME = 'unleash_parquet');

CREATE TABLE IF NOT EXISTS unleash_analytics (
    start_date DATE,
    class_name VARCHAR,
    count FLOAT,
    device_id VARCHAR,
    frame_number INTEGER,
    model_id VARCHAR,
    session_id VARCHAR,
    source_file_name VARCHAR,
    timestamp TIMESTAMP_TZ,
    extra VARCHAR
)
CLUSTER BY (start_date);
