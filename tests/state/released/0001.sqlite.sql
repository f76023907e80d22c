BEGIN TRANSACTION;
CREATE TABLE activity (
	cluster TEXT NOT NULL, 
	hour INTEGER NOT NULL, 
	transactions FLOAT NOT NULL, 
	samples BIGINT NOT NULL, 
	CONSTRAINT pk_activity PRIMARY KEY (cluster, hour)
);
INSERT INTO "activity" VALUES('clinic',9,200.0,2);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE alerts (
	number INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	title TEXT NOT NULL, 
	text TEXT NOT NULL, 
	urgent BOOLEAN NOT NULL, 
	first_seen VARCHAR(27) NOT NULL, 
	last_seen VARCHAR(27) NOT NULL, 
	sent VARCHAR(27), 
	times_sent INTEGER NOT NULL, 
	acknowledged VARCHAR(27), 
	acknowledged_by TEXT NOT NULL, 
	ended VARCHAR(27), 
	CONSTRAINT pk_alerts PRIMARY KEY (number)
);
INSERT INTO "alerts" VALUES(1,'ended','Ended','It was so.',0,'2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123456Z',NULL,0,NULL,'','2026-11-23T06:00:00.123456Z');
INSERT INTO "alerts" VALUES(2,'failed:clinic','Backup failed','The drive is away.',1,'2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123456Z',1,'2026-11-23T06:00:00.123456Z','anna',NULL);
CREATE TABLE audit (
	number INTEGER NOT NULL, 
	time VARCHAR(27) NOT NULL, 
	who TEXT NOT NULL, 
	origin TEXT NOT NULL, 
	action TEXT NOT NULL, 
	target TEXT NOT NULL, 
	"before" TEXT, 
	"after" TEXT, 
	reason TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	CONSTRAINT pk_audit PRIMARY KEY (number)
);
INSERT INTO "audit" VALUES(1,'2026-11-23T06:00:00.123456Z','anna','cli','schedule changed','nightly',NULL,'{"at":["01:00"],"kind":"daily","zone":"Europe/Zurich"}','','235ace89ed362b1ea965f94b31dbdf3ecead6c79fcb195c8f6fd8de9e2efd5be');
INSERT INTO "audit" VALUES(2,'2026-11-23T06:00:00.123456Z','bob','page','declined','proof','[1]',NULL,'no time','82b73ca26fe6a956cd0c2bf914c9861084f1c61c3abfca3fecaec2df739d094e');
CREATE TABLE audit_head (
	id INTEGER NOT NULL, 
	number BIGINT NOT NULL, 
	digest TEXT NOT NULL, 
	CONSTRAINT pk_audit_head PRIMARY KEY (id)
);
INSERT INTO "audit_head" VALUES(1,2,'82b73ca26fe6a956cd0c2bf914c9861084f1c61c3abfca3fecaec2df739d094e');
CREATE TABLE clusters (
	name TEXT NOT NULL, 
	system_identifier TEXT NOT NULL, 
	server_version TEXT NOT NULL, 
	size_bytes BIGINT, 
	databases TEXT NOT NULL, 
	newest_backup TEXT NOT NULL, 
	newest_backup_time VARCHAR(27), 
	repository TEXT NOT NULL, 
	seen VARCHAR(27), 
	CONSTRAINT pk_clusters PRIMARY KEY (name)
);
INSERT INTO "clusters" VALUES('clinic','7312','17.6',1099511627776,'["a","\u00e4"]','b1','2026-11-23T06:00:00.123456Z','usb','2026-11-23T06:00:00.123456Z');
CREATE TABLE facts (
	name TEXT NOT NULL, 
	text TEXT NOT NULL, 
	CONSTRAINT pk_facts PRIMARY KEY (name)
);
INSERT INTO "facts" VALUES('digest','2026-11-23');
CREATE TABLE job_events (
	number INTEGER NOT NULL, 
	job TEXT NOT NULL, 
	time VARCHAR(27) NOT NULL, 
	kind TEXT NOT NULL, 
	text TEXT NOT NULL, 
	CONSTRAINT pk_job_events PRIMARY KEY (number), 
	CONSTRAINT fk_job_events_job FOREIGN KEY(job) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "job_events" VALUES(1,'20261123T060000Z-abc123','2026-11-23T06:00:00.123456Z','phase','reading');
INSERT INTO "job_events" VALUES(2,'20261123T060000Z-abc123','2026-11-23T06:00:00.123456Z','warning','ä');
CREATE TABLE jobs (
	id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	arguments TEXT NOT NULL, 
	subject TEXT NOT NULL, 
	"trigger" TEXT NOT NULL, 
	who TEXT NOT NULL, 
	schedule TEXT, 
	due VARCHAR(27), 
	heavy BOOLEAN NOT NULL, 
	low_priority BOOLEAN NOT NULL, 
	limit_seconds FLOAT, 
	state TEXT NOT NULL, 
	queued VARCHAR(27) NOT NULL, 
	started VARCHAR(27), 
	ended VARCHAR(27), 
	host TEXT NOT NULL, 
	pid BIGINT, 
	pid_started FLOAT, 
	heartbeat VARCHAR(27), 
	progress TEXT NOT NULL, 
	exit_code BIGINT, 
	summary TEXT NOT NULL, 
	cause TEXT NOT NULL, 
	effect TEXT NOT NULL, 
	next_step TEXT NOT NULL, 
	result TEXT NOT NULL, 
	warnings TEXT NOT NULL, 
	log TEXT NOT NULL, 
	log_pinned BOOLEAN NOT NULL, 
	cancelled_by TEXT NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT uq_jobs_schedule_due UNIQUE (schedule, due)
);
INSERT INTO "jobs" VALUES('20261123T060000Z-abc123','backup run','["clinic","--tag","Z\u00fcrich \udcff\u0000","%s ''x'' \\"]','clinic','catch-up','anna','nightly','2026-11-23T06:00:00.123456Z',1,1,3600.5,'done with warnings','2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123457Z','2026-11-23T08:00:00.123456Z','server1',1099511627776,1.79541360012345600129e+09,'2026-11-23T07:00:00.123456Z','{"bytes_per_second":123.25,"done_bytes":35184372088832,"fraction":0.5,"phase":"reading","seconds_left":7.0,"total_bytes":70368744177664}',3221225786,'Done.','c','e','n','{"backup_id":"b1","nested":{"list":[1,null,true,0.1]},"size":1152921504606846976}','["one","two"]','backup.log',1,'bob');
INSERT INTO "jobs" VALUES('20261123T070000Z-def456','drill run','["latest"]','clinic','person','',NULL,NULL,0,1,NULL,'queued','2026-11-23T06:00:00.123456Z',NULL,NULL,'',NULL,NULL,NULL,'{"bytes_per_second":null,"done_bytes":0,"fraction":null,"phase":"","seconds_left":null,"total_bytes":null}',NULL,'','','','','{}','[]','',0,'');
CREATE TABLE proofs (
	number INTEGER NOT NULL, 
	backup TEXT NOT NULL, 
	cluster TEXT NOT NULL, 
	system_identifier TEXT NOT NULL, 
	backup_time VARCHAR(27) NOT NULL, 
	time VARCHAR(27) NOT NULL, 
	passed BOOLEAN NOT NULL, 
	seconds FLOAT NOT NULL, 
	restore_seconds FLOAT NOT NULL, 
	checks TEXT NOT NULL, 
	finding TEXT NOT NULL, 
	source TEXT NOT NULL, 
	host TEXT NOT NULL, 
	job TEXT NOT NULL, 
	CONSTRAINT pk_proofs PRIMARY KEY (number)
);
INSERT INTO "proofs" VALUES(1,'b1','clinic','7312','2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123456Z',1,60.25,12.5,'{"rows":1099511627776}','','usb','h','');
INSERT INTO "proofs" VALUES(2,'b0','clinic','7312','2026-11-23T06:00:00.123456Z','2026-11-23T05:00:00.123456Z',0,1.0,0.0,'{}','index','','','j1');
CREATE TABLE repositories (
	name TEXT NOT NULL, 
	url TEXT NOT NULL, 
	repository_id TEXT NOT NULL, 
	backups BIGINT NOT NULL, 
	stored_bytes BIGINT, 
	free_bytes BIGINT, 
	seen VARCHAR(27), 
	CONSTRAINT pk_repositories PRIMARY KEY (name)
);
INSERT INTO "repositories" VALUES('usb','/mnt/usb','r1',12,1099511627776,NULL,'2026-11-23T06:00:00.123456Z');
CREATE TABLE schedules (
	name TEXT NOT NULL, 
	recurrence TEXT NOT NULL, 
	request TEXT NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	created VARCHAR(27) NOT NULL, 
	changed VARCHAR(27) NOT NULL, 
	next_due VARCHAR(27), 
	last_due VARCHAR(27), 
	caught_up INTEGER NOT NULL, 
	CONSTRAINT pk_schedules PRIMARY KEY (name)
);
INSERT INTO "schedules" VALUES('nightly','{"at":["01:00"],"kind":"daily","zone":"Europe/Zurich"}','{"arguments":["clinic"],"heavy":true,"kind":"backup run","limit_seconds":null,"low_priority":false,"subject":"clinic","who":"anna"}',1,'2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123456Z','2026-11-23T07:00:00.123456Z','2026-11-23T06:00:00.123456Z',2);
INSERT INTO "schedules" VALUES('never','{"kind":"once"}','{"arguments":["clinic"],"heavy":true,"kind":"backup run","limit_seconds":null,"low_priority":false,"subject":"clinic","who":"anna"}',0,'2026-11-23T06:00:00.123456Z','2026-11-23T06:00:00.123456Z',NULL,NULL,0);
CREATE INDEX ix_jobs_kind_queued ON jobs (kind, queued);
CREATE INDEX ix_jobs_kind_subject_queued ON jobs (kind, subject, queued);
CREATE INDEX ix_jobs_queued ON jobs (queued);
CREATE INDEX ix_jobs_schedule_queued ON jobs (schedule, queued);
CREATE INDEX ix_jobs_state_queued ON jobs (state, queued);
CREATE INDEX ix_jobs_subject_queued ON jobs (subject, queued);
CREATE INDEX ix_job_events_job ON job_events (job);
CREATE INDEX ix_schedules_enabled_next_due ON schedules (enabled, next_due);
CREATE INDEX ix_alerts_key_number ON alerts ("key", number);
CREATE UNIQUE INDEX uq_alerts_open ON alerts ("key") WHERE ended IS NULL;
CREATE INDEX ix_proofs_cluster_time ON proofs (cluster, time);
CREATE INDEX ix_proofs_time ON proofs (time);
CREATE UNIQUE INDEX uq_proofs_job ON proofs (job, backup) WHERE job <> '';
COMMIT;
