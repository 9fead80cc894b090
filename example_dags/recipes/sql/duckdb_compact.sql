COPY (
    SELECT * EXCLUDE (start_date, filename, file_row_number)
    FROM read_parquet(
        getvariable('urls'),
        hive_types = {'device': VARCHAR, 'start_date': DATE},
        union_by_name = true,
        filename = true,
        file_row_number = true
    )
    -- By device and window, which the file name contains, and within a window in the API's order.
    ORDER BY filename, file_row_number
) TO $file (FORMAT parquet, COMPRESSION zstd, KV_METADATA {sources_hash: getvariable('sources_hash')});
