"""Everything that works without Airflow: the API, time windows, file formats and stores."""
