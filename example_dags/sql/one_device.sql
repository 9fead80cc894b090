SELECT class_name, count(*) AS detections, avg(count) AS mean
FROM 's3://lake/unleash/start_date=*/*.parquet'
WHERE device_id = 'Wb8fabc31378ce07'
GROUP BY ALL
