--
-- PostgreSQL database dump
--

\restrict zLl6D4CrXjvAwVDLt3Zd4aTev1uCeY1CzhODYAPDYk8BDe8heFdhWLuvoNbhMct

-- Dumped from database version 18.6
-- Dumped by pg_dump version 18.6

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: datamanager; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA datamanager;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: activity; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.activity (
    cluster text NOT NULL COLLATE pg_catalog."C",
    hour integer NOT NULL,
    transactions double precision NOT NULL,
    samples bigint NOT NULL
);


--
-- Name: alembic_version; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: alerts; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.alerts (
    number bigint NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    title text NOT NULL COLLATE pg_catalog."C",
    text text NOT NULL COLLATE pg_catalog."C",
    urgent boolean NOT NULL,
    first_seen timestamp with time zone NOT NULL,
    last_seen timestamp with time zone NOT NULL,
    sent timestamp with time zone,
    times_sent integer NOT NULL,
    acknowledged timestamp with time zone,
    acknowledged_by text NOT NULL COLLATE pg_catalog."C",
    ended timestamp with time zone
);


--
-- Name: alerts_number_seq; Type: SEQUENCE; Schema: datamanager; Owner: -
--

CREATE SEQUENCE datamanager.alerts_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: alerts_number_seq; Type: SEQUENCE OWNED BY; Schema: datamanager; Owner: -
--

ALTER SEQUENCE datamanager.alerts_number_seq OWNED BY datamanager.alerts.number;


--
-- Name: audit; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.audit (
    number bigint NOT NULL,
    "time" timestamp with time zone NOT NULL,
    who text NOT NULL COLLATE pg_catalog."C",
    origin text NOT NULL COLLATE pg_catalog."C",
    action text NOT NULL COLLATE pg_catalog."C",
    target text NOT NULL COLLATE pg_catalog."C",
    before text COLLATE pg_catalog."C",
    after text COLLATE pg_catalog."C",
    reason text NOT NULL COLLATE pg_catalog."C",
    digest text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: audit_head; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.audit_head (
    id integer NOT NULL,
    number bigint NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: clusters; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.clusters (
    name text NOT NULL COLLATE pg_catalog."C",
    system_identifier text NOT NULL COLLATE pg_catalog."C",
    server_version text NOT NULL COLLATE pg_catalog."C",
    size_bytes bigint,
    databases text NOT NULL COLLATE pg_catalog."C",
    newest_backup text NOT NULL COLLATE pg_catalog."C",
    newest_backup_time timestamp with time zone,
    repository text NOT NULL COLLATE pg_catalog."C",
    seen timestamp with time zone
);


--
-- Name: facts; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.facts (
    name text NOT NULL COLLATE pg_catalog."C",
    text text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: job_events; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.job_events (
    number bigint NOT NULL,
    job text NOT NULL COLLATE pg_catalog."C",
    "time" timestamp with time zone NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    text text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: job_events_number_seq; Type: SEQUENCE; Schema: datamanager; Owner: -
--

CREATE SEQUENCE datamanager.job_events_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: job_events_number_seq; Type: SEQUENCE OWNED BY; Schema: datamanager; Owner: -
--

ALTER SEQUENCE datamanager.job_events_number_seq OWNED BY datamanager.job_events.number;


--
-- Name: jobs; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.jobs (
    id text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    arguments text NOT NULL COLLATE pg_catalog."C",
    subject text NOT NULL COLLATE pg_catalog."C",
    trigger text NOT NULL COLLATE pg_catalog."C",
    who text NOT NULL COLLATE pg_catalog."C",
    schedule text COLLATE pg_catalog."C",
    due timestamp with time zone,
    heavy boolean NOT NULL,
    low_priority boolean NOT NULL,
    limit_seconds double precision,
    state text NOT NULL COLLATE pg_catalog."C",
    queued timestamp with time zone NOT NULL,
    started timestamp with time zone,
    ended timestamp with time zone,
    host text NOT NULL COLLATE pg_catalog."C",
    pid bigint,
    pid_started double precision,
    heartbeat timestamp with time zone,
    progress text NOT NULL COLLATE pg_catalog."C",
    exit_code bigint,
    summary text NOT NULL COLLATE pg_catalog."C",
    cause text NOT NULL COLLATE pg_catalog."C",
    effect text NOT NULL COLLATE pg_catalog."C",
    next_step text NOT NULL COLLATE pg_catalog."C",
    result text NOT NULL COLLATE pg_catalog."C",
    warnings text NOT NULL COLLATE pg_catalog."C",
    log text NOT NULL COLLATE pg_catalog."C",
    log_pinned boolean NOT NULL,
    cancelled_by text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: proofs; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.proofs (
    number bigint NOT NULL,
    backup text NOT NULL COLLATE pg_catalog."C",
    cluster text NOT NULL COLLATE pg_catalog."C",
    system_identifier text NOT NULL COLLATE pg_catalog."C",
    backup_time timestamp with time zone NOT NULL,
    "time" timestamp with time zone NOT NULL,
    passed boolean NOT NULL,
    seconds double precision NOT NULL,
    restore_seconds double precision NOT NULL,
    checks text NOT NULL COLLATE pg_catalog."C",
    finding text NOT NULL COLLATE pg_catalog."C",
    source text NOT NULL COLLATE pg_catalog."C",
    host text NOT NULL COLLATE pg_catalog."C",
    job text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: proofs_number_seq; Type: SEQUENCE; Schema: datamanager; Owner: -
--

CREATE SEQUENCE datamanager.proofs_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: proofs_number_seq; Type: SEQUENCE OWNED BY; Schema: datamanager; Owner: -
--

ALTER SEQUENCE datamanager.proofs_number_seq OWNED BY datamanager.proofs.number;


--
-- Name: repositories; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.repositories (
    name text NOT NULL COLLATE pg_catalog."C",
    url text NOT NULL COLLATE pg_catalog."C",
    repository_id text NOT NULL COLLATE pg_catalog."C",
    backups bigint NOT NULL,
    stored_bytes bigint,
    free_bytes bigint,
    seen timestamp with time zone
);


--
-- Name: schedules; Type: TABLE; Schema: datamanager; Owner: -
--

CREATE TABLE datamanager.schedules (
    name text NOT NULL COLLATE pg_catalog."C",
    recurrence text NOT NULL COLLATE pg_catalog."C",
    request text NOT NULL COLLATE pg_catalog."C",
    enabled boolean NOT NULL,
    created timestamp with time zone NOT NULL,
    changed timestamp with time zone NOT NULL,
    next_due timestamp with time zone,
    last_due timestamp with time zone,
    caught_up integer NOT NULL
);


--
-- Name: alerts number; Type: DEFAULT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.alerts ALTER COLUMN number SET DEFAULT nextval('datamanager.alerts_number_seq'::regclass);


--
-- Name: job_events number; Type: DEFAULT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.job_events ALTER COLUMN number SET DEFAULT nextval('datamanager.job_events_number_seq'::regclass);


--
-- Name: proofs number; Type: DEFAULT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.proofs ALTER COLUMN number SET DEFAULT nextval('datamanager.proofs_number_seq'::regclass);


--
-- Data for Name: activity; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.activity VALUES ('clinic', 9, 200, 2);


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.alembic_version VALUES ('0001');


--
-- Data for Name: alerts; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.alerts VALUES (1, 'ended', 'Ended', 'It was so.', false, '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123456+00', NULL, 0, NULL, '', '2026-11-23 06:00:00.123456+00');
INSERT INTO datamanager.alerts VALUES (2, 'failed:clinic', 'Backup failed', 'The drive is away.', true, '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123456+00', 1, '2026-11-23 06:00:00.123456+00', 'anna', NULL);


--
-- Data for Name: audit; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.audit VALUES (1, '2026-11-23 06:00:00.123456+00', 'anna', 'cli', 'schedule changed', 'nightly', NULL, '{"at":["01:00"],"kind":"daily","zone":"Europe/Zurich"}', '', '235ace89ed362b1ea965f94b31dbdf3ecead6c79fcb195c8f6fd8de9e2efd5be');
INSERT INTO datamanager.audit VALUES (2, '2026-11-23 06:00:00.123456+00', 'bob', 'page', 'declined', 'proof', '[1]', NULL, 'no time', '82b73ca26fe6a956cd0c2bf914c9861084f1c61c3abfca3fecaec2df739d094e');


--
-- Data for Name: audit_head; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.audit_head VALUES (1, 2, '82b73ca26fe6a956cd0c2bf914c9861084f1c61c3abfca3fecaec2df739d094e');


--
-- Data for Name: clusters; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.clusters VALUES ('clinic', '7312', '17.6', 1099511627776, '["a","\u00e4"]', 'b1', '2026-11-23 06:00:00.123456+00', 'usb', '2026-11-23 06:00:00.123456+00');


--
-- Data for Name: facts; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.facts VALUES ('digest', '2026-11-23');


--
-- Data for Name: job_events; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.job_events VALUES (1, '20261123T060000Z-abc123', '2026-11-23 06:00:00.123456+00', 'phase', 'reading');
INSERT INTO datamanager.job_events VALUES (2, '20261123T060000Z-abc123', '2026-11-23 06:00:00.123456+00', 'warning', 'ä');


--
-- Data for Name: jobs; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.jobs VALUES ('20261123T060000Z-abc123', 'backup run', '["clinic","--tag","Z\u00fcrich \udcff\u0000","%s ''x'' \\"]', 'clinic', 'catch-up', 'anna', 'nightly', '2026-11-23 06:00:00.123456+00', true, true, 3600.5, 'done with warnings', '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123457+00', '2026-11-23 08:00:00.123456+00', 'server1', 1099511627776, 1795413600.123456, '2026-11-23 07:00:00.123456+00', '{"bytes_per_second":123.25,"done_bytes":35184372088832,"fraction":0.5,"phase":"reading","seconds_left":7.0,"total_bytes":70368744177664}', 3221225786, 'Done.', 'c', 'e', 'n', '{"backup_id":"b1","nested":{"list":[1,null,true,0.1]},"size":1152921504606846976}', '["one","two"]', 'backup.log', true, 'bob');
INSERT INTO datamanager.jobs VALUES ('20261123T070000Z-def456', 'drill run', '["latest"]', 'clinic', 'person', '', NULL, NULL, false, true, NULL, 'queued', '2026-11-23 06:00:00.123456+00', NULL, NULL, '', NULL, NULL, NULL, '{"bytes_per_second":null,"done_bytes":0,"fraction":null,"phase":"","seconds_left":null,"total_bytes":null}', NULL, '', '', '', '', '{}', '[]', '', false, '');


--
-- Data for Name: proofs; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.proofs VALUES (1, 'b1', 'clinic', '7312', '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123456+00', true, 60.25, 12.5, '{"rows":1099511627776}', '', 'usb', 'h', '');
INSERT INTO datamanager.proofs VALUES (2, 'b0', 'clinic', '7312', '2026-11-23 06:00:00.123456+00', '2026-11-23 05:00:00.123456+00', false, 1, 0, '{}', 'index', '', '', 'j1');


--
-- Data for Name: repositories; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.repositories VALUES ('usb', '/mnt/usb', 'r1', 12, 1099511627776, NULL, '2026-11-23 06:00:00.123456+00');


--
-- Data for Name: schedules; Type: TABLE DATA; Schema: datamanager; Owner: -
--

INSERT INTO datamanager.schedules VALUES ('nightly', '{"at":["01:00"],"kind":"daily","zone":"Europe/Zurich"}', '{"arguments":["clinic"],"heavy":true,"kind":"backup run","limit_seconds":null,"low_priority":false,"subject":"clinic","who":"anna"}', true, '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123456+00', '2026-11-23 07:00:00.123456+00', '2026-11-23 06:00:00.123456+00', 2);
INSERT INTO datamanager.schedules VALUES ('never', '{"kind":"once"}', '{"arguments":["clinic"],"heavy":true,"kind":"backup run","limit_seconds":null,"low_priority":false,"subject":"clinic","who":"anna"}', false, '2026-11-23 06:00:00.123456+00', '2026-11-23 06:00:00.123456+00', NULL, NULL, 0);


--
-- Name: alerts_number_seq; Type: SEQUENCE SET; Schema: datamanager; Owner: -
--

SELECT pg_catalog.setval('datamanager.alerts_number_seq', 2, true);


--
-- Name: job_events_number_seq; Type: SEQUENCE SET; Schema: datamanager; Owner: -
--

SELECT pg_catalog.setval('datamanager.job_events_number_seq', 2, true);


--
-- Name: proofs_number_seq; Type: SEQUENCE SET; Schema: datamanager; Owner: -
--

SELECT pg_catalog.setval('datamanager.proofs_number_seq', 2, true);


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: activity pk_activity; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.activity
    ADD CONSTRAINT pk_activity PRIMARY KEY (cluster, hour);


--
-- Name: alerts pk_alerts; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.alerts
    ADD CONSTRAINT pk_alerts PRIMARY KEY (number);


--
-- Name: audit pk_audit; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.audit
    ADD CONSTRAINT pk_audit PRIMARY KEY (number);


--
-- Name: audit_head pk_audit_head; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.audit_head
    ADD CONSTRAINT pk_audit_head PRIMARY KEY (id);


--
-- Name: clusters pk_clusters; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.clusters
    ADD CONSTRAINT pk_clusters PRIMARY KEY (name);


--
-- Name: facts pk_facts; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.facts
    ADD CONSTRAINT pk_facts PRIMARY KEY (name);


--
-- Name: job_events pk_job_events; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.job_events
    ADD CONSTRAINT pk_job_events PRIMARY KEY (number);


--
-- Name: jobs pk_jobs; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (id);


--
-- Name: proofs pk_proofs; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.proofs
    ADD CONSTRAINT pk_proofs PRIMARY KEY (number);


--
-- Name: repositories pk_repositories; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.repositories
    ADD CONSTRAINT pk_repositories PRIMARY KEY (name);


--
-- Name: schedules pk_schedules; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.schedules
    ADD CONSTRAINT pk_schedules PRIMARY KEY (name);


--
-- Name: jobs uq_jobs_schedule_due; Type: CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.jobs
    ADD CONSTRAINT uq_jobs_schedule_due UNIQUE (schedule, due);


--
-- Name: ix_alerts_key_number; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_alerts_key_number ON datamanager.alerts USING btree (key, number);


--
-- Name: ix_job_events_job; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_job_events_job ON datamanager.job_events USING btree (job);


--
-- Name: ix_jobs_kind_queued; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_jobs_kind_queued ON datamanager.jobs USING btree (kind, queued);


--
-- Name: ix_jobs_kind_subject_queued; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_jobs_kind_subject_queued ON datamanager.jobs USING btree (kind, subject, queued);


--
-- Name: ix_jobs_queued; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_jobs_queued ON datamanager.jobs USING btree (queued);


--
-- Name: ix_jobs_schedule_queued; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_jobs_schedule_queued ON datamanager.jobs USING btree (schedule, queued);


--
-- Name: ix_jobs_state_queued; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_jobs_state_queued ON datamanager.jobs USING btree (state, queued);


--
-- Name: ix_jobs_subject_queued; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_jobs_subject_queued ON datamanager.jobs USING btree (subject, queued);


--
-- Name: ix_proofs_cluster_time; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_proofs_cluster_time ON datamanager.proofs USING btree (cluster, "time");


--
-- Name: ix_proofs_time; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_proofs_time ON datamanager.proofs USING btree ("time");


--
-- Name: ix_schedules_enabled_next_due; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE INDEX ix_schedules_enabled_next_due ON datamanager.schedules USING btree (enabled, next_due);


--
-- Name: uq_alerts_open; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE UNIQUE INDEX uq_alerts_open ON datamanager.alerts USING btree (key) WHERE (ended IS NULL);


--
-- Name: uq_proofs_job; Type: INDEX; Schema: datamanager; Owner: -
--

CREATE UNIQUE INDEX uq_proofs_job ON datamanager.proofs USING btree (job, backup) WHERE (job <> ''::text);


--
-- Name: job_events fk_job_events_job; Type: FK CONSTRAINT; Schema: datamanager; Owner: -
--

ALTER TABLE ONLY datamanager.job_events
    ADD CONSTRAINT fk_job_events_job FOREIGN KEY (job) REFERENCES datamanager.jobs(id) ON DELETE CASCADE;


--
-- PostgreSQL database dump complete
--

\unrestrict zLl6D4CrXjvAwVDLt3Zd4aTev1uCeY1CzhODYAPDYk8BDe8heFdhWLuvoNbhMct

