-- Run once, when the volume is empty.  The catalog's own database is POSTGRES_DB.
CREATE DATABASE prefect;
