DROP TABLE webhook_deliveries;
DROP TABLE workflow_jobs;
DROP TABLE workflow_runs;
DROP TABLE repos;
DROP TABLE idempotency;
DROP TABLE events;
DROP TABLE channels;
DROP TABLE meta;
