"""
Compute daily counts by device and class from the whole lake, as a spark-submit job.

::

    spark-submit spark_daily_counts.py s3a://lake/unleash s3a://lake/daily_counts
"""

from __future__ import annotations

# [START spark]
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 (its usual name)

lake, result = sys.argv[1:]
spark = SparkSession.builder.appName("unleash_daily_counts").getOrCreate()
# Device ids are strings, even if all of them look like numbers.
spark.conf.set("spark.sql.sources.partitionColumnTypeInference.enabled", False)
# Overwrite only the partitions that this job writes.
spark.conf.set("spark.sql.sources.partitionOverwriteMode", "dynamic")

rows = spark.read.parquet(lake)
counts = rows.groupBy("start_date", "device_id", "class_name").agg(
    F.avg("count").alias("mean"), F.count("*").alias("row_count")
)
counts.write.mode("overwrite").partitionBy("start_date").parquet(result)
# [END spark]
spark.stop()
