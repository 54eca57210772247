//! Opening a store: its schema is brought up to date once, and what would break the promise is
//! refused with a text that says what to do.

use campanile::store::{Location, OpenError, Store, migrations_applied};

use crate::support::store::*;

async fn refusal(options: &campanile::store::Options) -> String {
    match Store::open(options).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("the store opens"),
    }
}

async fn each_migration_is_applied_once(location: Location) -> Vec<String> {
    let options = options(location);
    let first = migrations_applied(&options).await.unwrap();
    assert!(!first.is_empty() && first.iter().all(|(_, new)| *new), "{first:?}");
    let again = migrations_applied(&options).await.unwrap();
    assert!(again.iter().all(|(_, new)| !new), "{again:?}");
    Store::open(&options).await.unwrap();
    first.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn each_migration_is_applied_once_and_has_one_name_on_both() {
    let mut names = Vec::new();
    in_folder(async |location| names.push(each_migration_is_applied_once(location).await));
    in_schema(async |location| names.push(each_migration_is_applied_once(location).await));
    assert_eq!(names[0], names[1]);
}

#[test]
fn nodes_that_start_together_find_one_schema() {
    in_schema(async |location| {
        let options = options(location);
        let opened = futures_util::future::join_all((0..4).map(|_| Store::open(&options))).await;
        let generations: Vec<_> = opened.into_iter().map(|store| store.unwrap().generation()).collect();
        assert!(generations.iter().all(|generation| *generation == generations[0]));
    });
}

async fn a_schema_of_a_newer_version_is_refused(store: TestStore) {
    store.execute("UPDATE meta SET value = '99.1.0' WHERE key = 'oldest_binary'").await;
    let TestStore { store, options } = store;
    drop(store);
    let refused = refusal(&options).await;
    assert!(refused.contains("needs Campanile 99.1.0 or newer") && refused.contains("upgrade"), "{refused}");
}

on_both![a_schema_of_a_newer_version_is_refused];

#[test]
fn a_folder_in_use_is_refused_until_it_is_free() {
    on_sqlite(async |store| {
        let refused = refusal(&store.options).await;
        assert!(refused.contains("is in use by another campanile: stop it first"), "{refused}");
        assert!(matches!(migrations_applied(&store.options).await, Err(OpenError::Locked(_))));
        let TestStore { store, options } = store;
        drop(store);
        Store::open(&options).await.unwrap();
    });
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    in_folder(async |location| {
        let Location::Sqlite { path } = location else { panic!("a folder is SQLite's") };
        std::fs::write(&path, "a file").unwrap();
        let refused =
            refusal(&options(Location::Sqlite { path: path.join("deeper").join("campanile.db") })).await;
        assert!(refused.contains("campanile.db/deeper") && refused.contains("may be written"), "{refused}");
        let refused = refusal(&options(Location::Sqlite { path })).await;
        assert!(refused.contains("not a database"), "{refused}");
    });
}

#[test]
fn a_server_that_is_not_there_is_named_by_its_variable() {
    in_folder(async |_| {
        let url = "postgres://nobody@127.0.0.1:1/nothing".to_owned();
        let refused = refusal(&options(Location::Postgres { url, direct_url: None })).await;
        assert!(refused.contains("Check DATABASE_URL"), "{refused}");
    });
}

#[test]
fn a_server_that_forgets_commits_is_refused_unless_that_is_fine() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
        let url = with_setting(&url, "synchronous_commit", "off");
        let mut options = options(Location::Postgres { url, direct_url: None });
        let refused = refusal(&options).await;
        assert!(refused.contains("synchronous_commit off"), "{refused}");
        assert!(refused.contains("store.allow_data_loss = true"), "{refused}");
        options.allow_data_loss = true;
        Store::open(&options).await.unwrap();
    });
}

/// A user of the tests' Postgres that may log in, and what the test says to a schema.
async fn as_role(location: &Location, grants: &str) -> (String, Location) {
    let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    let admin = session(url).await;
    admin.batch_execute(&format!("CREATE ROLE {role} LOGIN")).await.unwrap();
    let schema: String = admin.query_one("SELECT current_schema()::text", &[]).await.unwrap().get(0);
    admin.batch_execute(&format!("GRANT USAGE ON SCHEMA {schema} TO {role}")).await.unwrap();
    admin.batch_execute(&grants.replace("OURS", &schema).replace("ROLE", &role)).await.unwrap();
    let url = url.replacen("postgres://postgres@", &format!("postgres://{role}@"), 1);
    (role, Location::Postgres { url, direct_url: None })
}

async fn drop_role(location: &Location, role: &str) {
    let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    session(url).await.batch_execute(&drop).await.unwrap();
}

#[test]
fn a_user_who_may_create_nothing_starts_if_nothing_is_to_be_created() {
    in_schema(async |location| {
        let (role, gateway) = as_role(&location, "").await;
        let refused = refusal(&options(gateway.clone())).await;
        assert!(refused.contains("Outstanding: 00000000000001_spine"), "{refused}");
        assert!(refused.contains("`campanile migrate`"), "{refused}");
        drop_role(&location, &role).await;

        migrations_applied(&options(location.clone())).await.unwrap();
        let rights = "GRANT SELECT ON ALL TABLES IN SCHEMA OURS TO ROLE; \
                      GRANT INSERT, UPDATE, DELETE ON events, channels, meta TO ROLE";
        let (role, gateway) = as_role(&location, rights).await;
        let refused = refusal(&options(gateway)).await;
        assert!(
            refused.contains(&role) && refused.contains("sessions") && refused.contains("GRANT"),
            "{refused}"
        );
        assert!(!refused.contains("events"), "{refused}");
        drop_role(&location, &role).await;

        let rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA OURS TO ROLE";
        let (role, gateway) = as_role(&location, rights).await;
        let store = TestStore::open(options(gateway)).await;
        store.store.probe().await.unwrap();
        store.fill(&channel("news"), 2).await;
        drop(store);
        drop_role(&location, &role).await;
    });
}

#[test]
fn the_rights_that_are_asked_for_are_those_on_all_tables() {
    on_postgres(async |store| {
        let tables = "SELECT string_agg(tablename, ',' ORDER BY tablename) AS text FROM pg_tables \
                      WHERE schemaname = current_schema() AND tablename <> '__diesel_schema_migrations'";
        let there = store.text(tables).await;
        let admin = store.session().await;
        let role = format!("r{}", uuid::Uuid::new_v4().simple());
        let url = store.url();
        let schema = store.text("SELECT current_schema()::text AS text").await;
        let made = format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}; \
             GRANT SELECT ON {schema}.__diesel_schema_migrations TO {role}"
        );
        admin.batch_execute(&made).await.unwrap();
        let url = url.replacen("postgres://postgres@", &format!("postgres://{role}@"), 1);
        let refused = refusal(&options(Location::Postgres { url, direct_url: None })).await;
        for table in there.split(',') {
            assert!(refused.contains(table), "{table} in {refused}");
        }
        admin.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
    });
}

#[test]
fn a_database_that_cannot_hold_every_delivery_is_refused() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
        let admin = session(&url).await;
        for encoding in ["LATIN1", "SQL_ASCII"] {
            let name = format!("t{}", uuid::Uuid::new_v4().simple());
            let made = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
            admin.batch_execute(&made).await.unwrap();
            let mut other: url::Url = url.parse().unwrap();
            other.set_path(&name);
            let refused = refusal(&options(Location::Postgres { url: other.into(), direct_url: None })).await;
            assert!(
                refused.contains(&format!("server_encoding of the Postgres database is {encoding}")),
                "{refused}"
            );
            assert!(refused.contains("UTF8"), "{refused}");
            admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        }
    });
}

#[test]
fn a_hint_names_the_database_that_is_meant() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
        let nowhere = "postgres://nobody@127.0.0.1:1/nothing".to_owned();
        let refused = refusal(&options(Location::Postgres { url, direct_url: Some(nowhere) })).await;
        assert!(refused.contains("Check DATABASE_URL_DIRECT"), "{refused}");
    });
    in_folder(async |location| {
        let Location::Sqlite { path } = location else { panic!("a folder is SQLite's") };
        std::fs::write(&path, "a text that is longer than the head of a database ".repeat(9)).unwrap();
        let refused = refusal(&options(Location::Sqlite { path })).await;
        assert!(refused.contains("SQLite") && !refused.contains("DATABASE_URL"), "{refused}");
    });
}

#[test]
fn errors_of_postgres_are_known_by_their_code_in_any_language() {
    on_postgres(async |store| {
        use campanile::store::StoreError;
        let raised = async |code: &str| {
            let raise = format!(
                "DO $$ BEGIN RAISE EXCEPTION 'Verklemmung entdeckt' USING ERRCODE = '{code}'; END $$"
            );
            store
                .store
                .write(move |conn| conn.execute(diesel::sql_query(raise)))
                .await
                .expect_err("it is raised")
        };
        for code in ["40P01", "40001", "23505"] {
            assert!(matches!(raised(code).await, StoreError::Contended), "{code}");
        }
        for code in [
            "57P01", "57P03", "57014", "53100", "53300", "08006", "25006", "42501", "55000", "55P03", "58030",
        ] {
            let error = raised(code).await;
            assert!(
                matches!(&error, StoreError::Unavailable(why) if why.contains("Verklemmung")),
                "{code}: {error}"
            );
        }
        let words = "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected, terminating connection'; END $$";
        let error = store.store.write(move |conn| conn.execute(diesel::sql_query(words))).await;
        assert!(matches!(error, Err(StoreError::Failed(_))), "{error:?}");
        assert!(matches!(raised("42P01").await, StoreError::Failed(_)));
    });
}
