BEGIN TRANSACTION;

DELETE FROM unleash.analytics WHERE start_date = DATE '{{ data_interval_start | ds }}';

INSERT INTO unleash.analytics (
    start_date, class_name, count, device_id, frame_number, model_id, session_id, source_file_name, timestamp, extra
)
SELECT
    start_date, class_name, count, device_id, frame_number, model_id, session_id, source_file_name, timestamp, extra
FROM unleash.lake
WHERE start_date = DATE '{{ data_interval_start | ds }}';

COMMIT TRANSACTION;
