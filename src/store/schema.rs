//! The tables, once for both backends; `migrations/` holds their SQL.
#![allow(missing_docs, reason = "the columns are described in the migrations")]

use super::types::{SqlId, SqlTs};

/// All of them.
pub(super) const TABLES: [&str; 14] = [
    "leases",
    "meta",
    "channels",
    "events",
    "idempotency",
    "repos",
    "workflow_runs",
    "workflow_jobs",
    "webhook_deliveries",
    "sign_in_links",
    "sessions",
    "revocations",
    "builds",
    "rate_limits",
];

diesel::table! {
    meta (key) { key -> Text, value -> Text, }
}

diesel::table! {
    use super::SqlTs;
    use diesel::sql_types::*;
    channels (name) {
        name -> Text,
        epoch -> Text,
        head -> BigInt,
        version -> BigInt,
        version_epoch -> Text,
        updated_at -> SqlTs,
    }
}

diesel::table! {
    use super::{SqlId, SqlTs};
    use diesel::sql_types::*;
    events (channel, offset) {
        channel -> Text,
        offset -> BigInt,
        event_id -> SqlId,
        kind -> Text,
        data -> Text,
        tags -> Nullable<Text>,
        info -> Nullable<Text>,
        created_at -> SqlTs,
    }
}

diesel::table! {
    use super::SqlTs;
    use diesel::sql_types::*;
    idempotency (channel, key) {
        channel -> Text,
        key -> Text,
        epoch -> Text,
        offset -> BigInt,
        expires_at -> SqlTs,
    }
}

diesel::table! {
    use super::{SqlId, SqlTs};
    use diesel::sql_types::*;
    repos (id) {
        id -> SqlId,
        github_id -> BigInt,
        owner -> Text,
        name -> Text,
        default_branch -> Nullable<Text>,
        private -> Bool,
        installation_id -> Nullable<BigInt>,
        webhook_enabled -> Bool,
        latest_scan_id -> Nullable<SqlId>,
        latest_coverage -> Nullable<Integer>,
        latest_scan_at -> Nullable<SqlTs>,
        removed_at -> Nullable<SqlTs>,
        created_at -> SqlTs,
        updated_at -> SqlTs,
    }
}

diesel::table! {
    use super::{SqlId, SqlTs};
    use diesel::sql_types::*;
    workflow_runs (run_id) {
        run_id -> BigInt,
        repo_id -> SqlId,
        workflow_id -> BigInt,
        workflow_name -> Nullable<Text>,
        run_number -> Nullable<BigInt>,
        status -> Text,
        status_rank -> SmallInt,
        conclusion -> Nullable<Text>,
        event -> Nullable<Text>,
        branch -> Nullable<Text>,
        commit_sha -> Nullable<Text>,
        attempt -> Integer,
        url -> Nullable<Text>,
        started_at -> Nullable<SqlTs>,
        updated_at -> SqlTs,
        created_at -> SqlTs,
    }
}

diesel::table! {
    use super::{SqlId, SqlTs};
    use diesel::sql_types::*;
    workflow_jobs (job_id) {
        job_id -> BigInt,
        run_id -> BigInt,
        repo_id -> SqlId,
        attempt -> Integer,
        name -> Text,
        workflow_name -> Nullable<Text>,
        status -> Text,
        status_rank -> SmallInt,
        conclusion -> Nullable<Text>,
        url -> Nullable<Text>,
        steps -> Text,
        started_at -> Nullable<SqlTs>,
        completed_at -> Nullable<SqlTs>,
    }
}

diesel::table! {
    use super::{SqlId, SqlTs};
    use diesel::sql_types::*;
    webhook_deliveries (id) {
        id -> SqlId,
        delivery_id -> Text,
        event -> Text,
        action -> Nullable<Text>,
        repo -> Nullable<Text>,
        payload -> Nullable<Binary>,
        status -> Text,
        error -> Nullable<Text>,
        received_at -> SqlTs,
        processed_at -> Nullable<SqlTs>,
    }
}

diesel::table! {
    use super::SqlTs;
    use diesel::sql_types::*;
    sign_in_links (secret_hash) {
        secret_hash -> Binary,
        created_at -> SqlTs,
        expires_at -> SqlTs,
    }
}

diesel::table! {
    use super::SqlTs;
    use diesel::sql_types::*;
    sessions (secret_hash) {
        secret_hash -> Binary,
        subject -> Text,
        scope -> Text,
        created_at -> SqlTs,
        expires_at -> SqlTs,
    }
}

diesel::table! {
    use super::SqlTs;
    use diesel::sql_types::*;
    revocations (kind, subject) {
        kind -> Text,
        subject -> Text,
        expires_at -> Nullable<SqlTs>,
        created_at -> SqlTs,
    }
}

diesel::table! {
    use super::{SqlId, SqlTs};
    use diesel::sql_types::*;
    builds (id) {
        id -> SqlId,
        owner -> Text,
        org -> Nullable<Text>,
        created_at -> SqlTs,
        last_event_at -> SqlTs,
    }
}

diesel::table! {
    use super::SqlTs;
    use diesel::sql_types::*;
    rate_limits (name, key) {
        name -> Text,
        key -> Text,
        free_at -> SqlTs,
    }
}

diesel::allow_tables_to_appear_in_same_query!(channels, events);
diesel::allow_tables_to_appear_in_same_query!(repos, workflow_runs, workflow_jobs);
