"""The report page: words, tables, charts and the picture of the pipeline, without torch or Prefect."""
