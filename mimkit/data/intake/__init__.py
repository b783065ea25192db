"""What users have as data - folders, parquet, tables, archives - as one kind of listing."""
