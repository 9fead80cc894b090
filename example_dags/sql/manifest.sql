CREATE OR REPLACE VIEW manifest AS
FROM read_json('s3://lake/unleash/_manifest/*/*.manifest', format = 'newline_delimited', columns = {
    device_id: 'VARCHAR', "start": 'TIMESTAMPTZ', "end": 'TIMESTAMPTZ', "rows": 'BIGINT', pages: 'BIGINT',
    bytes: 'BIGINT', path: 'VARCHAR', extracted_at: 'TIMESTAMPTZ', dag_id: 'VARCHAR', run_id: 'VARCHAR'
})
-- A window may have several manifests. The newest line of a device counts.
QUALIFY row_number() OVER (PARTITION BY device_id, "start", "end" ORDER BY extracted_at DESC) = 1;
