"""The sample clinic's tables: what a backup tool must cope with, in the shape of a real practice.

Two schemas (one with letters outside ASCII), foreign keys, a partitioned table, an identity and a free sequence, a
view, a materialized view, an unlogged table, images kept out of line and uncompressed (as JPEG files are), large
objects.
"""

from __future__ import annotations

from typing import LiteralString

TABLES: LiteralString = """
CREATE SCHEMA clinic;
CREATE SCHEMA "Praxis Müller";
CREATE SEQUENCE clinic.invoice_number START 20001 INCREMENT 3;
CREATE TABLE clinic.staff (
    id int PRIMARY KEY, first_name text NOT NULL, last_name text NOT NULL, role text NOT NULL, hired date NOT NULL);
CREATE TABLE clinic.patients (
    id int PRIMARY KEY, first_name text NOT NULL, last_name text NOT NULL, born date NOT NULL, phone text,
    street text, city text, insurance text UNIQUE, balance numeric(10, 2) NOT NULL DEFAULT 0);
CREATE TABLE clinic.visits (
    id bigint PRIMARY KEY, patient_id int NOT NULL, staff_id int NOT NULL, started timestamptz NOT NULL,
    minutes smallint NOT NULL, reason text, invoice bigint NOT NULL);
CREATE TABLE clinic.notes (
    id bigint PRIMARY KEY, visit_id bigint NOT NULL, written timestamptz NOT NULL, body text NOT NULL);
CREATE TABLE clinic.prescriptions (
    id bigint PRIMARY KEY, visit_id bigint NOT NULL, drug text NOT NULL, dose_mg real NOT NULL, days smallint NOT NULL,
    refills smallint NOT NULL DEFAULT 0);
CREATE TABLE clinic.appointments (
    id bigint NOT NULL, patient_id int NOT NULL, starts timestamptz NOT NULL, room smallint NOT NULL, remark text,
    PRIMARY KEY (id, starts)) PARTITION BY RANGE (starts);
CREATE TABLE clinic.appointments_old PARTITION OF clinic.appointments
    FOR VALUES FROM (MINVALUE) TO ('2024-01-01 00:00+00');
CREATE TABLE clinic.appointments_new PARTITION OF clinic.appointments
    FOR VALUES FROM ('2024-01-01 00:00+00') TO (MAXVALUE);
CREATE TABLE clinic.scans (
    id bigint PRIMARY KEY, visit_id bigint NOT NULL, title text NOT NULL, taken timestamptz NOT NULL,
    image bytea NOT NULL);
ALTER TABLE clinic.scans ALTER COLUMN image SET STORAGE EXTERNAL;
CREATE TABLE clinic.documents (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text NOT NULL, content oid NOT NULL);
CREATE TABLE clinic.price_list (code text PRIMARY KEY, price numeric(8, 2) NOT NULL);
CREATE UNLOGGED TABLE clinic.waiting_room (patient_id int PRIMARY KEY, arrived timestamptz NOT NULL DEFAULT now());
CREATE TABLE "Praxis Müller"."Überweisungen" (
    id int PRIMARY KEY, patient_id int NOT NULL, "Fachrichtung" text NOT NULL, "Größe_cm" numeric(5, 1), "備考" text);
"""

INDEXES: LiteralString = """
CREATE INDEX patients_name ON clinic.patients (last_name, first_name);
CREATE INDEX visits_patient ON clinic.visits (patient_id);
CREATE INDEX visits_started ON clinic.visits (started);
CREATE INDEX notes_visit ON clinic.notes (visit_id);
CREATE INDEX prescriptions_visit ON clinic.prescriptions (visit_id);
CREATE INDEX appointments_starts ON clinic.appointments (starts);
CREATE INDEX "Größe" ON "Praxis Müller"."Überweisungen" ("Größe_cm") WHERE "Größe_cm" > 150;
ALTER TABLE clinic.visits ADD FOREIGN KEY (patient_id) REFERENCES clinic.patients;
ALTER TABLE clinic.visits ADD FOREIGN KEY (staff_id) REFERENCES clinic.staff;
ALTER TABLE clinic.notes ADD FOREIGN KEY (visit_id) REFERENCES clinic.visits ON DELETE CASCADE;
ALTER TABLE clinic.prescriptions ADD FOREIGN KEY (visit_id) REFERENCES clinic.visits ON DELETE CASCADE;
ALTER TABLE clinic.scans ADD FOREIGN KEY (visit_id) REFERENCES clinic.visits ON DELETE CASCADE;
ALTER TABLE "Praxis Müller"."Überweisungen" ADD FOREIGN KEY (patient_id) REFERENCES clinic.patients;
CREATE INDEX scans_visit ON clinic.scans (visit_id);
CREATE VIEW clinic.open_balances AS
    SELECT id, first_name, last_name, balance FROM clinic.patients WHERE balance > 0;
CREATE MATERIALIZED VIEW clinic.visits_per_month AS
    SELECT date_trunc('month', started AT TIME ZONE 'UTC') AS month, count(*) AS visits, sum(minutes) AS minutes
    FROM clinic.visits GROUP BY 1;
"""

# Spread over the tables by a hash of the key, so that the changed rows lie on scattered pages. %(seed)s moves them.
CHANGES: tuple[LiteralString, ...] = (
    "UPDATE clinic.notes SET body = body || ' Reviewed.' WHERE hashint8extended(id, %(seed)s) %% 100 = 0",
    "UPDATE clinic.visits SET minutes = minutes + 5 WHERE hashint8extended(id, %(seed)s) %% 100 = 1",
    "UPDATE clinic.prescriptions SET refills = refills + 1 WHERE hashint8extended(id, %(seed)s) %% 100 = 2",
    "UPDATE clinic.patients SET balance = balance + 10 WHERE hashint4extended(id, %(seed)s) %% 100 = 3",
    "UPDATE clinic.scans SET title = title || ' (checked)' WHERE hashint8extended(id, %(seed)s) %% 100 = 4",
    "DELETE FROM clinic.appointments WHERE hashint8extended(id, %(seed)s) %% 100 = 5",
    "DELETE FROM clinic.visits WHERE hashint8extended(id, %(seed)s) %% 1000 = 6",
)

REPLACED_TABLES: LiteralString = """
DROP TABLE clinic.price_list;
CREATE TABLE clinic.price_list (code text PRIMARY KEY, price numeric(8, 2) NOT NULL, valid_from date NOT NULL);
INSERT INTO clinic.price_list
    SELECT 'P' || g, g * 1.25, date '2026-01-01' + g % 365 FROM generate_series(1, 1500) g;
TRUNCATE clinic.waiting_room;
REFRESH MATERIALIZED VIEW clinic.visits_per_month;
"""
