BEGIN;

DELETE FROM unleash_analytics WHERE start_date = '{{ data_interval_start | ds }}';

COPY INTO unleash_analytics
FROM (
    SELECT
        TO_DATE(REGEXP_SUBSTR(METADATA$FILENAME, 'start_date=([^/]+)', 1, 1, 'e')),
        $1:class_name::VARCHAR,
        $1:count::FLOAT,
        $1:device_id::VARCHAR,
        $1:frame_number::INTEGER,
        $1:model_id::VARCHAR,
        $1:session_id::VARCHAR,
        $1:source_file_name::VARCHAR,
        $1:timestamp::TIMESTAMP_TZ,
        $1:extra::VARCHAR
    FROM @unleash_lake
)
PATTERN = '.*start_date={{ data_interval_start | ds }}/.*[.]parquet'
FORCE = TRUE;

COMMIT;
